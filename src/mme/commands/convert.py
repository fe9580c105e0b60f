"""``mme convert``: between our folders and other frameworks' checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(  # noqa: PLR0913, PLR0917 - options of the command line
    source: Annotated[Path, typer.Argument(help="A .pth file, a folder of transformers, or one of ours.", exists=True)],
    target: Annotated[Path, typer.Argument(help="Folder to write; one that stands there is replaced.")],
    labels: Annotated[Path | None, typer.Option(help="A finetuned .pth: file with a label a line.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="A .pth: frames of a clip.")] = 16,
    size: Annotated[int, typer.Option(min=1, help="A .pth: side of a clip in pixels.")] = 224,
    heads: Annotated[int | None, typer.Option(min=1, help="A .pth: attention heads; one for 64 channels.")] = None,
    stride: Annotated[int, typer.Option(min=1, help="Raw frames from one frame of a clip to the next.")] = 4,
    segments: Annotated[int, typer.Option(min=1, help="Clips of a video that are averaged.")] = 1,
    crops: Annotated[int, typer.Option(min=1, max=3, help="Crops of a clip that are averaged, 1 or 3.")] = 1,
) -> None:
    """Convert a checkpoint: VideoMAE's or MME's .pth, transformers' VideoMAE, or a folder of ours for transformers.

    What comes in finetuned becomes a model folder for `mme classify` and the service; what is only pretrained becomes
    weights that finetuning starts from. Keys that are missing or unexpected are an error that lists them.
    """
    from mme.models.convert import ConversionOptions  # PyTorch takes seconds to import
    from mme.models.convert import convert as run

    names = None if labels is None else tuple(labels.read_text(encoding="utf-8").split("\n"))
    names = None if names is None else tuple(name.strip() for name in names if name.strip())
    options = ConversionOptions(stride, segments, crops, frames, size, heads, names)
    typer.echo(f"wrote a {run(source, target, options)}")
