"""Unfinished work of a stage, kept outside its outputs, which DVC removes before the stage runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mme.config import Params
from mme.config.names import nest
from mme.system.files import digest
from mme.tracking import Run, start_noted_run

ROOT = Path(".work")


def work_folder(stage: str, *depends_on: Any) -> Path:
    """Return the folder for unfinished work that depends on JSON-able values; all processes of a training share it."""
    folder = ROOT / stage / digest(depends_on)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def resumable_run(stage: str, params: Params, *depends_on: Any) -> Iterator[tuple[Run, Path]]:
    """Open a recorded run and its folder for unfinished work; an interrupted block continues with both.

    When the block has ended, the folder is removed, and with it what interrupted runs of the stage with other values
    left: their results would replace those just written. DVC runs a stage once at a time in a checkout, so that no
    other process works in these folders.


    Args:
        stage: name of the stage.
        params: recorded with the run.
        depends_on: JSON-able values that decide the result; only unfinished work with equal ones is continued.
    """
    folder = work_folder(stage, *depends_on)
    with start_noted_run(stage, params, folder / "run_id") as run:
        yield run, folder
    shutil.rmtree(folder.parent)


def metrics_by_split(row: Mapping[str, float]) -> dict[str, Any]:
    """Return a row of curves, ``{"val/top1": x}``, as ``{"val": {"top1": x}}``, the form that DVC shows as a table."""
    return nest({name: value for name, value in row.items() if "/" in name}, "/")
