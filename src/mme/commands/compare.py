"""`mme models compare`: champion and challenger on the same videos of the traffic, side by side."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mme.commands.classify import SERVICE_URL

TIMEOUT_S = 10.0

_SERIES = ("answers_total", "confidence_sum", "confidence_count", "seconds_sum", "seconds_count", "videos_total")
_PREFIX = "mme_shadow_"

Sample = tuple[str, Mapping[str, str], float]
"""Name of a series without the prefix, labels, value."""


@dataclass(frozen=True)
class Comparison:
    """What two models answered to the same videos.

    Attributes:
        champion, challenger: names, with version or digest.
        videos: that both answered.
        agreement: share of them with the same most probable label.
        confidence: mean probability of that label, champion and challenger.
        latency_ms: mean time in the model, champion and challenger, under the same conditions.
    """

    champion: str
    challenger: str
    videos: int
    agreement: float
    confidence: tuple[float, float]
    latency_ms: tuple[float, float]


def compare_command(
    url: Annotated[list[str], typer.Option("--url", help="Service that is asked; may be repeated.")] = [SERVICE_URL],  # noqa: B006 - typer copies it
    prometheus: Annotated[str | None, typer.Option(help="Ask this Prometheus instead of services.")] = None,
    since: Annotated[str, typer.Option(help="How far Prometheus looks back: 12h, 7d.")] = "7d",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare the challenger of MME_SHADOW_MODEL with the champion, on the videos that both answered.

    A service counts since its start.
    """
    if prometheus is None:
        samples = [sample for address in url for sample in _from_service(address)]
    else:
        samples = _from_prometheus(prometheus.rstrip("/"), since)
    found = comparisons(samples)
    outcomes = Counter[str]()
    for name, labels, value in samples:
        if name == "videos_total":
            outcomes[labels["outcome"]] += round(value)
    if as_json:
        typer.echo(json.dumps({"comparisons": [asdict(one) for one in found], "outcomes": outcomes}))
        return
    console = Console()
    if not found:
        where = ", ".join(url) if prometheus is None else prometheus
        console.print(Text(f"{where}: no video was answered by two models; is MME_SHADOW_MODEL set?"), soft_wrap=True)
    else:
        console.print(_table(found))
    console.print(Text(f"{outcomes['dropped']} videos dropped, {outcomes['failed']} failed in the challenger"))


def comparisons(samples: Iterable[Sample]) -> list[Comparison]:
    """Add up the samples of each pair of models; pairs without a video are left out."""
    sums: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for name, labels, value in samples:
        if "champion" in labels:
            kind = labels.get("role") or labels["agree"]
            sums[labels["champion"], labels["challenger"]][f"{name} {kind}"] += value  # type: ignore[assignment] # a float

    def mean(pair: Mapping[str, float], what: str, role: str) -> float:
        return pair[f"{what}_sum {role}"] / (pair[f"{what}_count {role}"] or 1.0)

    found = []
    for (champion, challenger), pair in sorted(sums.items()):
        num_videos = pair["answers_total yes"] + pair["answers_total no"]
        if num_videos > 0:
            confidence = mean(pair, "confidence", "champion"), mean(pair, "confidence", "challenger")
            seconds = mean(pair, "seconds", "champion"), mean(pair, "seconds", "challenger")
            latency_ms = 1000 * seconds[0], 1000 * seconds[1]
            agreement = pair["answers_total yes"] / num_videos
            found.append(Comparison(champion, challenger, round(num_videos), agreement, confidence, latency_ms))
    return found


def _table(found: Iterable[Comparison]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("champion", "challenger", "videos", "agree", "confidence", "ms in the model"):
        table.add_column(title, overflow="fold")
    for one in found:
        (first, second), (first_ms, second_ms) = one.confidence, one.latency_ms
        columns = (one.champion, one.challenger, str(one.videos), f"{one.agreement:.1%}")
        table.add_row(*map(Text, columns), f"{first:.2f} and {second:.2f}", f"{first_ms:.1f} and {second_ms:.1f}")
    return table


def _from_service(url: str) -> list[Sample]:
    """Read the counts of one service.

    Raises:
        ValueError: it does not answer, or `prometheus-client` is not installed.
    """
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError as error:
        raise ValueError("prometheus-client is missing (pip install 'mme[serving]'), or name a --prometheus") from error
    text = _get(f"{url.rstrip('/')}/metrics", {}).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    wanted = {f"{_PREFIX}{name}" for name in _SERIES}
    return [(one.name.removeprefix(_PREFIX), one.labels, one.value) for one in samples if one.name in wanted]


def _from_prometheus(url: str, since: str) -> list[Sample]:
    """Read the counts of all services from a Prometheus.

    Raises:
        ValueError: it does not answer, or ``since`` is no duration.
    """
    samples = []
    for name in _SERIES:
        labels = "champion, challenger, role, agree, outcome"
        query = f"sum by ({labels}) (increase({_PREFIX}{name}[{since}]))"
        answer: dict[str, Any] = _get(f"{url}/api/v1/query", {"query": query}).json()
        samples += [(name, series["metric"], float(series["value"][1])) for series in answer["data"]["result"]]
    return samples


def _get(url: str, parameters: Mapping[str, str]) -> httpx.Response:
    try:
        response = httpx.get(url, params=parameters, timeout=TIMEOUT_S)
    except httpx.HTTPError as error:
        raise ValueError(f"{url}: {error or type(error).__name__}") from error
    if not response.is_success:
        raise ValueError(f"{url} answered {response.status_code}: {response.text[:200]}")
    return response
