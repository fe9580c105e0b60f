"""`mme summary` and `mme params`: show the results of the last pipeline run, and the parameters."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mme.commands.classify import SERVICE_URL
from mme.config import load_params
from mme.evaluation.chance import unlearned
from mme.system.files import read_json

NOT_RUN = "not run yet"


def summary_command(
    folder: Annotated[Path, typer.Option(help="Folder in which the pipeline ran.")] = Path(),
    url: Annotated[str, typer.Option(help="Service in the curl command.")] = SERVICE_URL,
) -> None:
    """Show the results of the last pipeline run."""
    table = Table(title="MME", title_justify="left", show_header=False, box=None, pad_edge=False)
    rows = [*_data_rows(folder), *_accuracy_rows(folder), *_registry_rows(folder)]
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    console = Console()
    console.print(table)
    if any(value == NOT_RUN for _, value in rows):
        then = "`make repro` runs the rest."
    else:
        then = f"Now `make serve`, and in another terminal:\n{_curl_line(folder, url)}"
    for line in [*_unlearned(folder), then]:
        console.print(Text(f"\n{line}"), soft_wrap=True)


def _report(path: Path) -> dict[str, Any]:
    """Read a stage's report; empty if the stage has not run."""
    report: dict[str, Any] = read_json(path) if path.is_file() else {}
    return report


def _manifest_path(folder: Path) -> Path:
    """Return the path of the evaluated data set's manifest."""
    file = folder / "params.yaml"
    return folder / (load_params(file).finetune.data if file.is_file() else "data") / "manifest.parquet"


def _data_rows(folder: Path) -> list[tuple[str, str]]:
    from mme.manifest import SPLITS, Manifest  # Parquet is part of the extra [train]

    path = _manifest_path(folder)
    if not path.is_file():
        return [("videos", NOT_RUN)]
    manifest = Manifest.load(path)
    counts = Counter(row.split for row in manifest.rows if row.status == "ok")
    reasons = Counter(str(row.reason) for row in manifest.quarantined)
    order = [split for split in SPLITS if counts[split]]
    rows = [
        ("videos", ", ".join(f"{counts[split]} {split}" for split in order)),
        ("quarantined", ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "0"),
        ("labels", str(len(manifest.labels))),
    ]
    too_short = _report(folder / "reports/pretrain/metrics.json").get("videos", {}).get("too_short", 0)
    return [*rows, *([("too short to pretrain on", str(too_short))] if too_short else [])]


def _accuracy_rows(folder: Path) -> list[tuple[str, str]]:
    rows = []
    held_out = _report(folder / "reports/pretrain/metrics.json").get("val", {})
    if "position_cosine" in held_out:
        explained, moving = held_out["position_explained"], held_out["position_explained_moving"]
        direction = f"cosine {held_out['position_cosine']:.2f}"
        rows.append(("motion explained, val", f"{explained:.1%}, of moving points {moving:.1%} ({direction})"))
    for stage, usual_split in (("finetune", "val"), ("evaluate", "test")):
        report = _report(folder / f"reports/{stage}/metrics.json")
        measured = {split: metrics for split, metrics in report.items() if "top1" in metrics and split != "train"}
        for split, metrics in measured.items():
            rows.append((f"{split} top-1", f"{metrics['top1']:.1%}"))
            if "top5" in metrics:
                rows.append((f"{split} top-5", f"{metrics['top5']:.1%}"))
            by_class = metrics.get("mean_class_accuracy", metrics["top1"])
            if abs(by_class - metrics["top1"]) > 0.0005:
                rows.append((f"{split} mean of classes", f"{by_class:.1%}"))
        if not measured:
            rows.append((f"{usual_split} top-1", NOT_RUN))
    return rows


def _unlearned(folder: Path) -> Iterator[str]:
    """Say that the measured accuracy is not above chance, and what to try."""
    table = folder / "reports/evaluate/per_class.csv"
    measured = [
        (split, metrics["top1"])
        for split, metrics in _report(folder / "reports/evaluate/metrics.json").items()
        if "top1" in metrics
    ]
    if not measured or not table.is_file():
        return
    with table.open(encoding="utf-8", newline="") as file:
        counts = [int(row["num_videos"]) for row in csv.DictReader(file)]
    ((split, top1),) = measured
    fault = unlearned(split, top1, counts)
    if fault is not None:
        yield fault


def _registry_rows(folder: Path) -> list[tuple[str, str]]:
    result = _report(folder / "reports/register.json")
    if not result:
        return [("registered", NOT_RUN)]
    return [
        ("registered", f"{result['name']} version {result['version']}"),
        ("alias", result["alias"] or f"none: {result['gate']['reason']}"),
    ]


def _curl_line(folder: Path, url: str) -> str:
    from mme.manifest import Manifest

    path, video = _manifest_path(folder), Path("VIDEO.mp4")
    if path.is_file():
        manifest = Manifest.load(path)
        held_out = manifest.videos("test") or manifest.videos(("train", "val", "pretrain"))
        video = manifest.path_of(held_out[0]) if held_out else video
    return f"curl -F file=@{video} {url}/classify"


def params_command(
    file: Annotated[Path, typer.Argument(help="File of parameters.")] = Path("params.yaml"),
) -> None:
    """Check the parameters and show them. The error names every wrong key."""
    checked = load_params(file)
    table = Table("section", "parameter", "value", box=None, pad_edge=False)
    for section, content in checked.model_dump(mode="json").items():
        values = content if isinstance(content, dict) else {"": content}  # `seed` is in no section
        for number, (name, value) in enumerate(values.items()):
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            table.add_row(Text("" if number else section), Text(name), Text(shown))
    Console().print(table)
