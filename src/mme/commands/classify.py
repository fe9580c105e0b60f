"""`mme classify`: classify videos with a local model or through the service."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress as ProgressBar
from rich.progress import track
from rich.table import Table
from rich.text import Text

from mme.client import Client
from mme.commands.windows import LONG_TIMEOUT_S, WindowFormat, classify_files, follow_live, local_windows
from mme.config import ModelPrecision
from mme.system.names import shown_name

if TYPE_CHECKING:
    from mme.evaluation.classifier import Classifier

DEFAULT_MODEL = "models/export"
SERVICE_URL = "http://127.0.0.1:8000"

DEFAULT_WINDOW_S = 2.0
"""Window of a live stream."""

_WINDOW_FORMS = (WindowFormat.CSV, WindowFormat.VTT)

Response = dict[str, Any]
"""Answer to one file: the service's JSON, or ``error``."""


def classify_command(  # noqa: PLR0913, PLR0917 - options of the command line
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Video files, or folders of them.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"Model folder or models:/NAME@ALIAS; default: {DEFAULT_MODEL}.")
    ] = None,
    precision: Annotated[
        ModelPrecision, typer.Option(help="bf16: less time, on processors with instructions for it.")
    ] = "32",
    url: Annotated[str | None, typer.Option(help=f"Use a running service, such as {SERVICE_URL}.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Number of labels to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per file and line.")] = False,
    api_key: Annotated[str | None, typer.Option(envvar="MME_API_KEY", help="API key of the service.")] = None,
    window: Annotated[float | None, typer.Option(help="Label windows of this many seconds along the video.")] = None,
    hop: Annotated[float | None, typer.Option(help="Seconds from one window to the next; default: --window.")] = None,
    form: Annotated[
        WindowFormat | None, typer.Option("--format", help="Of labels along a video; csv and vtt hold one file.")
    ] = None,
    live: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Label a stream as it comes: rtsp://..., tcp://..., a device.")
    ] = None,
    live_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Option of FFmpeg for --live, such as format=x11grab."),
    ] = None,
    tries: Annotated[int, typer.Option(min=0, help="Attempts to connect again when --live is lost.")] = 3,
) -> None:
    """Classify videos with a local model or through the service.

    A file that cannot be classified does not stop the others; the status is then 1.
    """
    form = form or (WindowFormat.JSON if as_json else WindowFormat.TABLE)
    _check_options(files, model, precision, url, (window, hop), form, live)
    if live is not None:
        from mme.video.live import LiveSource  # imports PyAV

        source = LiveSource(live, _ffmpeg_options(live_option or []), tries)
        span_s = (window or DEFAULT_WINDOW_S, hop or window or DEFAULT_WINDOW_S)
        follow_live(_load(model, precision), source, span_s, top_k, form)
        return
    files = _with_files_of_folders(files or [])
    if window is not None:
        hop = hop or window
        if url is None:
            along = local_windows(_load(model, precision), window, hop, top_k, form)
        else:
            parameters = {"top_k": top_k, "window_s": window, "hop_s": hop, "format": _sent_format(form)}
            along = _service_windows(url, api_key, parameters)
        classify_files(files, along, form)
        return
    if url is None:
        answers = _local_answers(model, precision, files, top_k)
    else:
        answers = _service_answers(url, api_key, files, top_k)
    responses: dict[str, Response] = {}
    for file, answer in zip(files, answers, strict=True):
        responses[str(file)] = answer
        if as_json:
            typer.echo(json.dumps({"file": str(file), **answer}))
    if not as_json:
        Console().print(_responses_table(responses))
    if any("error" in response for response in responses.values()):
        raise typer.Exit(1)


def _check_options(
    files: list[Path] | None,
    model: str | None,
    precision: ModelPrecision,
    url: str | None,
    span_s: tuple[float | None, float | None],
    form: WindowFormat,
    live: str | None,
) -> None:
    if url is not None and model is not None:
        raise typer.BadParameter("--model and --url exclude each other: the service has its own model")
    if url is not None and precision != "32":
        raise typer.BadParameter("the service has its own: MME_PRECISION", param_hint="--precision")
    if live is None and not files:
        raise typer.BadParameter("name at least one file, or --live ADDRESS", param_hint="FILE...")
    if live is not None and (files or url is not None):
        raise typer.BadParameter("excludes files and --url: a live stream is classified here", param_hint="--live")
    if span_s[0] is None and live is None and (span_s[1] is not None or form in _WINDOW_FORMS):
        raise typer.BadParameter("--hop, and --format csv or vtt, need --window SECONDS", param_hint="--window")
    if live is not None and form in _WINDOW_FORMS:
        raise typer.BadParameter(f"{form} holds whole files; a live stream has table and json", param_hint="--format")
    if url is None and model is None and not Path(DEFAULT_MODEL).is_dir():
        raise typer.BadParameter(f"there is no {DEFAULT_MODEL} here yet: `make repro` makes it", param_hint="--model")


def _with_files_of_folders(given: list[Path]) -> list[Path]:
    """Replace each folder by the videos below it.

    Raises:
        typer.BadParameter: there are none, or a folder cannot be read.
    """
    from mme.ingest.listing import scan  # imports NumPy, which other commands do not need

    files = []
    for path in given:
        if not path.is_dir():
            files.append(path)
            continue
        try:
            videos = scan(path).videos
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="FILE...") from error
        if not videos:
            raise typer.BadParameter(f"{shown_name(str(path))}: no videos in this folder", param_hint="FILE...")
        files += [path / video for video in videos]
    return files


def _ffmpeg_options(given: list[str]) -> dict[str, str]:
    pairs = [option.partition("=") for option in given]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise typer.BadParameter(f"{name!r} is not NAME=VALUE", param_hint="--live-option")
    return {name: value for name, _, value in pairs}


def _sent_format(form: WindowFormat) -> str:
    return form if form in _WINDOW_FORMS else WindowFormat.JSON


def _load(address: str | None, precision: ModelPrecision) -> Classifier:
    # These import PyTorch, which other commands do not need.
    from mme.evaluation.classifier import Classifier, check_precision, choose_device

    try:
        check_precision(precision, choose_device("cpu"))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--precision") from error
    try:
        return Classifier.load(address or DEFAULT_MODEL, precision=precision)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--model") from error


def _local_answers(address: str | None, precision: ModelPrecision, files: list[Path], top_k: int) -> Iterator[Response]:
    classifier = _load(address, precision)
    for file in files:
        try:
            result = classifier.classify(file, top_k)
        except (ValueError, OSError) as error:
            yield {"error": str(error) or type(error).__name__}
            continue
        yield {
            "predictions": [asdict(prediction) for prediction in result.predictions],
            "model": {"name": classifier.config.name, "digest": classifier.digest},
            "video": None if result.video is None else asdict(result.video),
            "views": {**classifier.config.views.model_dump(), "num_views": result.num_views},
            "timings": asdict(result.timings),
        }


def _service_answers(url: str, api_key: str | None, files: list[Path], top_k: int) -> Iterator[Response]:
    console = Console(stderr=True)
    with Client(url, api_key=api_key) as service:
        outcomes = service.classify_many(files, top_k=top_k)
        for outcome in track(
            outcomes, "classify", len(files), console=console, transient=True, disable=not console.is_terminal
        ):
            yield {"error": str(outcome.error)} if outcome.answer is None else outcome.answer


def _service_windows(url: str, api_key: str | None, parameters: dict[str, Any]) -> Callable[[Path], Response]:
    console = Console(stderr=True)

    def classify(file: Path) -> Response:
        with (
            Client(url, api_key=api_key, timeout_s=LONG_TIMEOUT_S) as service,
            ProgressBar(console=console, transient=True, disable=not console.is_terminal) as bar,
        ):
            task = bar.add_task(f"send {file.name}", total=None)
            response = service.request(
                "/classify", file, parameters, lambda sent, total: bar.update(task, completed=sent, total=total)
            )
        if parameters["format"] in _WINDOW_FORMS:
            return {"text": response.content.decode()}
        document: Response = response.json()
        return document

    return classify


def _responses_table(responses: dict[str, Response]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("probability", justify="right")
    for file, response in responses.items():
        if "error" in response:
            table.add_row(Text(shown_name(file)), Text(shown_name(response["error"]), style="red"), "")
        for rank, prediction in enumerate(response.get("predictions", [])):
            table.add_row(
                Text("" if rank else shown_name(file)), Text(prediction["label"]), f"{prediction['probability']:.3f}"
            )
    return table
