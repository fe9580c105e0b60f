"""`mme convert` and `mme export`: other frameworks' checkpoints, and ONNX."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


def convert_command(  # noqa: PLR0913, PLR0917 - options of the command line
    source: Annotated[
        Path, typer.Argument(help="A .pth file, a folder of transformers, or a folder of MME.", exists=True)
    ],
    target: Annotated[Path, typer.Argument(help="Folder to write; an existing one is replaced.")],
    labels: Annotated[Path | None, typer.Option(help="Finetuned .pth: file with one label per line.")] = None,
    frames: Annotated[int, typer.Option(min=1, help=".pth: frames per clip.")] = 16,
    size: Annotated[int, typer.Option(min=1, help=".pth: side of a clip in pixels.")] = 224,
    heads: Annotated[
        int | None, typer.Option(min=1, help=".pth: attention heads; default: one per 64 channels.")
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Frames, at --fps, from one frame of a clip to the next.")] = 4,
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=1000,
            help="Frames per second that a clip counts in; default: 12 with the 174 classes of Something-Something,"
            " else 30 (Kinetics).",
        ),
    ] = None,
    segments: Annotated[int, typer.Option(min=1, help="Clips per video whose predictions are averaged.")] = 1,
    crops: Annotated[
        int, typer.Option(min=1, max=3, help="Crops per clip whose predictions are averaged, 1 or 3.")
    ] = 1,
) -> None:
    """Convert a checkpoint: VideoMAE's or MME's .pth, transformers' VideoMAE, or a folder of MME for transformers.

    A finetuned checkpoint becomes a model folder for `mme classify` and the service; a pretrained one becomes weights
    for finetuning. Missing or unexpected keys are an error that lists them.
    """
    from mme.models.convert import ConversionOptions  # PyTorch takes seconds to import
    from mme.models.convert import convert as run

    names = None if labels is None else tuple(labels.read_text(encoding="utf-8").split("\n"))
    names = None if names is None else tuple(name.strip() for name in names if name.strip())
    options = ConversionOptions(stride, fps, segments, crops, frames, size, heads, names)
    typer.echo(f"wrote a {run(source, target, options)}")


class ExportFormat(StrEnum):
    """Format of an exported model."""

    ONNX = "onnx"


def export_command(
    target: Annotated[Path, typer.Argument(help="File to write.")] = Path("models/model.onnx"),
    model: Annotated[Path, typer.Option(help="Model folder.")] = Path("models/export"),
    format: Annotated[ExportFormat, typer.Option(help="Format of the file.")] = ExportFormat.ONNX,  # noqa: A002 - the option's name
) -> None:
    """Write the model as one file for other runtimes, and compare its logits with PyTorch.

    Its input are RGB frames, uint8 [views, T, S, S, 3], resized and cropped; its metadata contain labels and digest.
    """
    assert format is ExportFormat.ONNX
    try:
        from mme.registry.onnx import export_onnx
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing: pip install 'mme[export]'") from error
    gap = export_onnx(model, target)
    typer.echo(f"wrote {target}; its logits are within {gap:.1e} of PyTorch's")
