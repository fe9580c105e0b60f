"""``mme export``: the model for other runtimes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """What a model can be written as."""

    ONNX = "onnx"


def export(
    target: Annotated[Path, typer.Argument(help="File to write.")] = Path("models/model.onnx"),
    model: Annotated[Path, typer.Option(help="Model folder.")] = Path("models/export"),
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.ONNX,  # noqa: A002 - the option's name
) -> None:
    """Write the model as one file for other runtimes, and check that it answers alike.

    It takes RGB frames, uint8 [views, T, S, S, 3], resized and cropped; labels and digest are in its metadata.
    """
    assert format is Format.ONNX
    try:
        from mme.registry.onnx import export_onnx
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing: pip install 'mme[export]'") from error
    gap = export_onnx(model, target)
    typer.echo(f"wrote {target}; its logits are within {gap:.1e} of PyTorch's")
