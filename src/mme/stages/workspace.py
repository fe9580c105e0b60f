"""Where an interrupted stage left off: DVC removes outputs before a stage runs, so unfinished work lives elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mme.config import Params
from mme.system.files import digest, write_text
from mme.tracking import Run, start_run

ROOT = Path(".work")


def work_folder(stage: str, *depends_on: Any) -> Path:
    """Where a stage keeps unfinished work that depends on JSON-able values; all processes of a training share it."""
    folder = ROOT / stage / digest(depends_on)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def resumable_run(stage: str, params: Params, *depends_on: Any) -> Iterator[tuple[Run, Path]]:
    """A recorded run and its folder for unfinished work; both are taken up again if the block did not end.

    Args:
        stage: name of the stage.
        params: recorded with the run.
        depends_on: JSON-able values; unfinished work is taken up only if all of them are the same.
    """
    folder = work_folder(stage, *depends_on)
    note = folder / "run_id"
    former = note.read_text(encoding="utf-8") if note.exists() else None
    with start_run(stage, params, resume_run_id=former) as run:
        write_text(note, run.id)
        yield run, folder
    shutil.rmtree(folder)
