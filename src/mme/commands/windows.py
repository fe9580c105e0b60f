"""`mme classify --window`: labels along videos, and of live streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mme.client import ClientError
from mme.system.names import shown_name

if TYPE_CHECKING:
    from mme.evaluation.classifier import Classifier
    from mme.evaluation.windows import LabelledWindow
    from mme.video.live import LiveSource

LONG_TIMEOUT_S = 1300.0
"""Timeout of a request for a long video: the service's own limits end it earlier."""


class WindowFormat(StrEnum):
    """Form of the labels along a video."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    VTT = "vtt"


Answer = dict[str, Any]
"""Answer to one file: the service's JSON, the text of a CSV or WebVTT as ``text``, or ``error``."""


def classify_files(files: Sequence[Path], classify: Callable[[Path], Answer], form: WindowFormat) -> None:
    """Print the labels along each file; end with status 1 if one of them cannot be classified."""
    if form in (WindowFormat.CSV, WindowFormat.VTT) and len(files) != 1:
        raise typer.BadParameter(f"{form} holds one file, not {len(files)}", param_hint="--format")
    failed = False
    for file in files:
        try:
            answer = classify(file)
        except (ValueError, OSError, ClientError) as error:
            answer = {"error": str(error) or type(error).__name__}
        failed |= "error" in answer
        _print(file, answer, form)
    if failed:
        raise typer.Exit(1)


def _print(file: Path, answer: Answer, form: WindowFormat) -> None:
    if form == WindowFormat.JSON:
        typer.echo(json.dumps({"file": str(file), **answer}))
    elif "error" in answer:
        typer.echo(shown_name(answer["error"]), err=True)
    elif form == WindowFormat.TABLE:
        Console().print(_segments_table(file, answer["segments"]))
    else:
        typer.get_binary_stream("stdout").write(answer["text"].encode())  # as it is: CSV ends its lines itself


def local_windows(
    classifier: Classifier, window_s: float, hop_s: float, top_k: int, form: WindowFormat
) -> Callable[[Path], Answer]:
    """Return a function that labels the windows of a file with a local model."""
    from mme.evaluation.windows import classify_windows, csv_text, vtt_text, windows_document  # imports PyTorch

    def classify(file: Path) -> Answer:
        found = classify_windows(classifier, file, window_s, hop_s, top_k)
        if form == WindowFormat.CSV:
            return {"text": csv_text(found.windows)}
        if form == WindowFormat.VTT:
            return {"text": vtt_text(found.segments)}
        return windows_document(found.windows, found.segments, window_s, hop_s) | {
            "model": {"name": classifier.config.name, "digest": classifier.digest},
            "video": None if found.video is None else asdict(found.video),
        }

    return classify


def follow_live(classifier: Classifier, source: LiveSource, span_s: tuple[float, float], top_k: int, form: str) -> None:
    """Print a line per window of a live stream, until the stream ends or the user interrupts."""
    from mme.evaluation.windows import follow

    try:
        for window in follow(classifier, source, *span_s, top_k, lambda line: typer.echo(line, err=True)):
            typer.echo(json.dumps(asdict(window)) if form == WindowFormat.JSON else _line(window))
    except KeyboardInterrupt:
        return  # the way to end it


def _line(window: LabelledWindow) -> str:
    labels = ", ".join(f"{one.label} {one.probability:.3f}" for one in window.predictions)
    return f"{window.start_s:8.2f} - {window.end_s:8.2f} s  {labels}"


def _segments_table(file: Path, segments: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    for name in ("from", "to"):
        table.add_column(name, justify="right")
    table.add_column("label")
    table.add_column("probability", justify="right")
    for number, segment in enumerate(segments):
        times = (f"{segment['start_s']:.2f}", f"{segment['end_s']:.2f}")
        table.add_row(
            Text("" if number else shown_name(str(file))),
            *times,
            Text(segment["label"]),
            f"{segment['probability']:.3f}",
        )
    return table
