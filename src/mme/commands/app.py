"""The command ``mme``: classify videos, show what a pipeline run came to, check the parameters."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mme.commands import data, models, preset, sweep
from mme.commands.ablate import ablate
from mme.commands.convert import convert
from mme.commands.doctor import doctor
from mme.commands.errors import Commands, Traceback
from mme.commands.export import export
from mme.commands.inspect import inspect
from mme.commands.reproduce import reproduce
from mme.config import load_params
from mme.system.files import read_json

DEFAULT_MODEL = "models/export"
SERVICE = "http://127.0.0.1:8000"
TIMEOUT_S = 120.0
"""For a whole request to the service; it answers or gives up much sooner."""

NOT_RUN = "not run yet"

Answer = dict[str, Any]

app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.add_typer(preset.app, name="preset")
app.add_typer(sweep.app, name="sweep")
app.command()(doctor)
app.command()(inspect)
app.command()(reproduce)


@app.callback()
def main(traceback: Traceback = False) -> None:
    """Classify videos, show what a pipeline run came to, check the parameters."""


@app.command()
def classify(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Video files.")],
    model: Annotated[
        str | None, typer.Option(help=f"Model folder or models:/NAME@ALIAS; {DEFAULT_MODEL} if not given.")
    ] = None,
    url: Annotated[str | None, typer.Option(help=f"Ask a running service, such as {SERVICE}.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Labels to name.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line for each file.")] = False,
    api_key: Annotated[str | None, typer.Option(envvar="MME_API_KEY", help="Key for the service.")] = None,
) -> None:
    """Name the most likely actions in videos, with a local model or through the service.

    Ends with status 1 if a file cannot be classified; the others are answered all the same.
    """
    if url is not None and model is not None:
        raise typer.BadParameter("--model and --url exclude each other: the service has its own model")
    if url is None and model is None and not Path(DEFAULT_MODEL).is_dir():
        raise typer.BadParameter(f"there is no {DEFAULT_MODEL} here yet: `make repro` makes it", param_hint="--model")
    ask = _offline(model or DEFAULT_MODEL, top_k) if url is None else _through_service(url, top_k, api_key)
    answers: dict[str, Answer] = {}
    for file in files:
        try:
            answers[str(file)] = ask(file)
        except (ValueError, OSError, httpx.HTTPError) as error:
            answers[str(file)] = {"error": str(error) or type(error).__name__}
        if as_json:
            typer.echo(json.dumps({"file": str(file), **answers[str(file)]}))
    if not as_json:
        Console().print(_answers_table(answers))
    if any("error" in answer for answer in answers.values()):
        raise typer.Exit(1)


def _offline(address: str, top_k: int) -> Callable[[Path], Answer]:
    from mme.evaluation.classifier import (
        Classifier,  # the other commands, and the service's clients, do without PyTorch
    )

    try:
        classifier = Classifier.load(address)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--model") from error

    def ask(file: Path) -> Answer:
        result = classifier.classify(file, top_k)
        return {
            "predictions": [asdict(prediction) for prediction in result.predictions],
            "model": {"name": classifier.config.name, "digest": classifier.digest},
            "video": None if result.video is None else asdict(result.video),
            "views": {**classifier.config.views.model_dump(), "num_views": result.num_views},
            "timings": asdict(result.timings),
        }

    return ask


def _through_service(url: str, top_k: int, api_key: str | None) -> Callable[[Path], Answer]:
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    client = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S)

    def ask(file: Path) -> Answer:
        with file.open("rb") as content:
            response = client.post("/classify", params={"top_k": top_k}, files={"file": (file.name, content)})
        try:
            document: Answer = response.json()
        except ValueError as error:
            raise ValueError(f"{url} answered {response.status_code}, but no JSON") from error
        if response.is_error:
            title, detail = document.get("title", response.reason_phrase), document.get("detail", "")
            raise ValueError(f"{file}: {response.status_code} {title}: {detail}")
        return document

    return ask


def _answers_table(answers: dict[str, Answer]) -> Table:
    table = Table("file", "label", box=None, pad_edge=False)
    table.add_column("probability", justify="right")
    for file, answer in answers.items():
        if "error" in answer:
            table.add_row(Text(file), Text(answer["error"], style="red"), "")
        for rank, prediction in enumerate(answer.get("predictions", [])):
            table.add_row(Text("" if rank else file), Text(prediction["label"]), f"{prediction['probability']:.3f}")
    return table


@app.command()
def summary(
    folder: Annotated[Path, typer.Option(help="Where the pipeline ran.")] = Path(),
    url: Annotated[str, typer.Option(help="The service in the line shown.")] = SERVICE,
) -> None:
    """Show what the pipeline's last run came to."""
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
    console.print(Text(f"\n{then}"), soft_wrap=True)


def _report(path: Path) -> dict[str, Any]:
    """A stage's report, empty if the stage has not run."""
    report: dict[str, Any] = read_json(path) if path.is_file() else {}
    return report


def _manifest_path(folder: Path) -> Path:
    """The manifest of the data set that is evaluated."""
    file = folder / "params.yaml"
    return folder / (load_params(file).finetune.data if file.is_file() else "data") / "manifest.parquet"


def _data_rows(folder: Path) -> list[tuple[str, str]]:
    from mme.manifest import SPLITS, Manifest  # Parquet comes with the extra [train], as the pipeline does

    path = _manifest_path(folder)
    if not path.is_file():
        return [("videos", NOT_RUN)]
    manifest = Manifest.load(path)
    counts = Counter(row.split for row in manifest.rows if row.status == "ok")
    reasons = Counter(str(row.reason) for row in manifest.quarantined)
    order = [split for split in SPLITS if counts[split]]
    return [
        ("videos", ", ".join(f"{counts[split]} {split}" for split in order)),
        ("quarantined", ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "0"),
        ("labels", str(len(manifest.labels))),
    ]


def _accuracy_rows(folder: Path) -> list[tuple[str, str]]:
    rows = []
    for stage, usual_split in (("finetune", "val"), ("evaluate", "test")):
        report = _report(folder / f"reports/{stage}/metrics.json")
        measured = {split: figures for split, figures in report.items() if "top1" in figures and split != "train"}
        for split, figures in measured.items():
            rows.append((f"{split} top-1", f"{figures['top1']:.1%}"))
            if "top5" in figures:
                rows.append((f"{split} top-5", f"{figures['top5']:.1%}"))
        if not measured:
            rows.append((f"{usual_split} top-1", NOT_RUN))
    return rows


def _registry_rows(folder: Path) -> list[tuple[str, str]]:
    receipt = _report(folder / "reports/register.json")
    if not receipt:
        return [("registered", NOT_RUN)]
    return [
        ("registered", f"{receipt['name']} version {receipt['version']}"),
        ("alias", receipt["alias"] or f"none: {receipt['gate']['reason']}"),
    ]


def _curl_line(folder: Path, url: str) -> str:
    from mme.manifest import Manifest

    path, video = _manifest_path(folder), Path("VIDEO.mp4")
    if path.is_file():
        manifest = Manifest.load(path)
        held_out = manifest.videos("test") or manifest.videos(("train", "val", "pretrain"))
        video = manifest.path_of(held_out[0]) if held_out else video
    return f"curl -F file=@{video} {url}/classify"


@app.command()
def params(
    file: Annotated[Path, typer.Argument(help="The parameters.")] = Path("params.yaml"),
) -> None:
    """Check the parameters and show them; status 1 names every key that is wrong."""
    checked = load_params(file)
    table = Table("section", "parameter", "value", box=None, pad_edge=False)
    for section, values in checked.model_dump(mode="json").items():
        for number, (name, value) in enumerate(values.items()):
            shown = value if isinstance(value, str) else json.dumps(value)
            table.add_row(Text("" if number else section), Text(name), Text(shown))
    Console().print(table)


app.command()(ablate)
app.command()(convert)
app.command()(export)


if __name__ == "__main__":
    app()
