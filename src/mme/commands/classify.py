"""`mme classify`: classify videos with a local model or through the service."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

DEFAULT_MODEL = "models/export"
SERVICE_URL = "http://127.0.0.1:8000"
REQUEST_TIMEOUT_S = 120.0
"""Timeout of a whole request. The service's own limits end a request much earlier."""

Response = dict[str, Any]
"""Answer to one file: the service's JSON, or ``error``."""


def classify_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Video files.")],
    model: Annotated[
        str | None, typer.Option(help=f"Model folder or models:/NAME@ALIAS; default: {DEFAULT_MODEL}.")
    ] = None,
    url: Annotated[str | None, typer.Option(help=f"Use a running service, such as {SERVICE_URL}.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of labels to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per file and line.")] = False,
    api_key: Annotated[str | None, typer.Option(envvar="MME_API_KEY", help="API key of the service.")] = None,
) -> None:
    """Classify videos with a local model or through the service.

    A file that cannot be classified does not stop the others; the status is then 1.
    """
    if url is not None and model is not None:
        raise typer.BadParameter("--model and --url exclude each other: the service has its own model")
    if url is None and model is None and not Path(DEFAULT_MODEL).is_dir():
        raise typer.BadParameter(f"there is no {DEFAULT_MODEL} here yet: `make repro` makes it", param_hint="--model")
    classify = _local_classifier(model or DEFAULT_MODEL, top_k) if url is None else _service_client(url, top_k, api_key)
    responses: dict[str, Response] = {}
    for file in files:
        try:
            responses[str(file)] = classify(file)
        except (ValueError, OSError, httpx.HTTPError) as error:
            responses[str(file)] = {"error": str(error) or type(error).__name__}
        if as_json:
            typer.echo(json.dumps({"file": str(file), **responses[str(file)]}))
    if not as_json:
        Console().print(_responses_table(responses))
    if any("error" in response for response in responses.values()):
        raise typer.Exit(1)


def _local_classifier(address: str, top_k: int) -> Callable[[Path], Response]:
    from mme.evaluation.classifier import Classifier  # imports PyTorch, which other commands do not need

    try:
        classifier = Classifier.load(address)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--model") from error

    def classify(file: Path) -> Response:
        result = classifier.classify(file, top_k)
        return {
            "predictions": [asdict(prediction) for prediction in result.predictions],
            "model": {"name": classifier.config.name, "digest": classifier.digest},
            "video": None if result.video is None else asdict(result.video),
            "views": {**classifier.config.views.model_dump(), "num_views": result.num_views},
            "timings": asdict(result.timings),
        }

    return classify


def _service_client(url: str, top_k: int, api_key: str | None) -> Callable[[Path], Response]:
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    client = httpx.Client(base_url=url, headers=headers, timeout=REQUEST_TIMEOUT_S)

    def classify(file: Path) -> Response:
        with file.open("rb") as content:
            response = client.post("/classify", params={"top_k": top_k}, files={"file": (file.name, content)})
        try:
            document: Response = response.json()
        except ValueError as error:
            raise ValueError(f"{url} answered {response.status_code}, but no JSON") from error
        if response.is_error:
            title, detail = document.get("title", response.reason_phrase), document.get("detail", "")
            raise ValueError(f"{file}: {response.status_code} {title}: {detail}")
        return document

    return classify


def _responses_table(responses: dict[str, Response]) -> Table:
    table = Table("file", "label", box=None, pad_edge=False)
    table.add_column("probability", justify="right")
    for file, response in responses.items():
        if "error" in response:
            table.add_row(Text(file), Text(response["error"], style="red"), "")
        for rank, prediction in enumerate(response.get("predictions", [])):
            table.add_row(Text("" if rank else file), Text(prediction["label"]), f"{prediction['probability']:.3f}")
    return table
