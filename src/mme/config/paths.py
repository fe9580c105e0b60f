"""Paths of data, models and reports below the project's folder; ``dvc.yaml`` names the same."""

from __future__ import annotations

from pathlib import Path

DATA_FOLDER = Path("data")
MOTION_PRIMITIVES = DATA_FOLDER / "raw/motion-primitives"
SOURCES_FOLDER = DATA_FOLDER / "sources"
"""Tables of what each stage ``ingest`` will read, by source."""
TRACKS_FOLDER = DATA_FOLDER / "trajectories"

PRETRAINED_FOLDER = Path("models/pretrain")
PRETRAINED_WEIGHTS = PRETRAINED_FOLDER / "model.safetensors"
FINETUNED_FOLDER = Path("models/finetune")
EXPORTED_FOLDER = Path("models/export")

REPORTS_FOLDER = Path("reports")

WORK_FOLDER = Path(".work")
"""Unfinished work of stages, sweep and ablation."""


def project_folder() -> Path:
    """Return the folder whose runs, registry and audit file are used: the working folder, as a rule.

    ``dvc exp run --temp`` and ``--queue`` run stages in a copy of the repository below ``.dvc/tmp/exps``, which DVC
    removes afterwards; there it is the same folder of the repository that was copied.
    """
    here = Path.cwd()
    repositories = [folder for folder in (here, *here.parents) if (folder / ".git").exists()]
    if len(repositories) > 1 and "/.dvc/tmp/exps/" in repositories[0].as_posix():
        copy, origin = repositories[:2]
        return origin / here.relative_to(copy)
    return here
