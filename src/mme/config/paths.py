"""Paths of data, models and reports below the project's folder; ``dvc.yaml`` names the same."""

from __future__ import annotations

from pathlib import Path

DATA_FOLDER = Path("data")
MOTION_PRIMITIVES = DATA_FOLDER / "raw/motion-primitives"
SOURCES_FOLDER = DATA_FOLDER / "sources"
"""Tables of what each stage ``ingest`` will read, by source."""
TRACKS_FOLDER = DATA_FOLDER / "trajectories"

MODELS_FOLDER = Path("models")
PRETRAINED_FOLDER = MODELS_FOLDER / "pretrain"
"""Weights of the section ``pretrain``; those of a pretraining NAME of ``warm_starts`` are in ``models/NAME``."""
FINETUNED_FOLDER = MODELS_FOLDER / "finetune"
EXPORTED_FOLDER = MODELS_FOLDER / "export"

REPORTS_FOLDER = Path("reports")

WORK_FOLDER = Path(".work")
"""Unfinished work of stages, sweep and ablation."""


RANDOM = "random"
"""Value of ``pretrain.init`` and ``finetune.init``: no weights, all are drawn from the seed."""


def tracks_folder(name: str | None) -> Path:
    """Return the folder of the tracks of a pretraining of ``warm_starts``, or of the section ``pretrain``."""
    return TRACKS_FOLDER if name is None else TRACKS_FOLDER.with_name(f"{TRACKS_FOLDER.name}-{name}")


def start_weights(init: str) -> Path | None:
    """Return the weights that a training starts from, ``models/INIT/model.safetensors``; None if they are random.

    ``models/random`` holds a file without weights, because a DVC stage depends on a file whatever the value.
    """
    return None if init == RANDOM else MODELS_FOLDER / init / "model.safetensors"


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
