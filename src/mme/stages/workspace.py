"""Shared frame of the stages: their run, their data and their unfinished work.

DVC removes the outputs of a stage before it runs, so unfinished work is kept outside them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mme.config import Params
from mme.config.names import nest
from mme.config.paths import REPORTS_FOLDER, WORK_FOLDER
from mme.manifest import MANIFEST_FILE, Manifest
from mme.system.files import digest, write_json
from mme.tracking import Run, start_noted_run, start_run


def load_manifest(data: str) -> Manifest:
    """Load the manifest of the data set in a folder such as ``data``."""
    return Manifest.load(Path(data, MANIFEST_FILE))


def stage_name(stage: str, name: str | None) -> str:
    """Return the name of a stage's run, report and work: of a pretraining of ``warm_starts``, ``STAGE-NAME``."""
    return stage if name is None else f"{stage}-{name}"


@contextmanager
def recorded_stage(
    stage: str, params: Params, manifest: Manifest, context: str, note: Path | None = None
) -> Iterator[Run]:
    """Record a stage as a run with its data set and, at the end, the files of its report folder.

    Args:
        stage: name of the stage and of its folder in ``reports``.
        params: recorded with the run.
        manifest: data set that the stage reads.
        context: use of the data set, such as ``training`` or the name of a split.
        note: file with the id of an interrupted run, which is continued; None for a new run.
    """
    with start_run(stage, params) if note is None else start_noted_run(stage, params, note) as run:
        run.log_dataset(manifest.folder / MANIFEST_FILE, manifest.digest, context)
        yield run
        report = REPORTS_FOLDER / stage
        if report.is_dir():
            run.log_artifact(report)


def work_folder(stage: str, *depends_on: Any) -> Path:
    """Return the folder for unfinished work that depends on JSON-able values; all processes of a training share it."""
    folder = WORK_FOLDER / stage / digest(depends_on)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def resumable_stage(
    stage: str, params: Params, manifest: Manifest, context: str, *depends_on: Any
) -> Iterator[tuple[Run, Path]]:
    """Open a recorded run and its folder for unfinished work; an interrupted block continues with both.

    When the block has ended, the folder is removed, and with it what interrupted runs of the stage with other values
    left: their results would replace those just written. DVC runs a stage once at a time in a checkout, so that no
    other process works in these folders.

    Args:
        stage: name of the stage.
        params: recorded with the run.
        manifest: data set that the stage reads.
        context: use of the data set.
        depends_on: JSON-able values that decide the result; only unfinished work with equal ones is continued.
    """
    folder = work_folder(stage, *depends_on)
    with recorded_stage(stage, params, manifest, context, folder / "run_id") as run:
        yield run, folder
    shutil.rmtree(folder.parent)


def write_training_report(stage: str, work: Path, row: Mapping[str, float]) -> None:
    """Write the curves of a training and the metrics of one epoch.

    Args:
        stage: name of the stage and of its folder in ``reports``.
        work: folder of ``curves.csv``.
        row: metrics of an epoch, ``{"val/top1": x}``; DVC shows ``{"val": {"top1": x}}`` as a table.
    """
    report = REPORTS_FOLDER / stage
    report.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(work / "curves.csv", report / "curves.csv")
    write_json(report / "metrics.json", nest({name: value for name, value in row.items() if "/" in name}, "/"))
