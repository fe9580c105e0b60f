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
