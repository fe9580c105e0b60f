"""Dotted names of nested values, such as ``pretrain.lr``, and the names that parameters had in earlier versions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_LOOKS = ("sprite_size", "turn_degrees", "zoom", "swing_px", "period_frames", "noise_std", "crf")
_BUDGET = ("objectives", "seeds", "lrs", "mask_ratios", "search_epochs", "epochs", "probe_every_epochs")
_OPTIMISER = ("lr_batch_size", "min_lr_ratio", "weight_decay", "clip_grad", "ema_decay", "precision")
_TRAINING = ("accumulate", "gradient_checkpointing", "compile", "num_loader_workers", "frame_cache_mb")

MOVED = {
    "run.seed": "seed",
    **{f"run.{name}": f"runtime.{name}" for name in ("num_workers", "device", "devices", "num_nodes")},
    "tracking.experiment": "runtime.experiment",
    "synthesize.output": "gone: always data/raw/motion-primitives",
    **{f"synthesize.{name}": "gone: part of the data set's definition" for name in _LOOKS},
    "ingest.gop_frames": "gone: always 8",
    "ingest.engine": "runtime.executor",
    "ingest.min_frames": "gone: all lengths are kept, pretraining leaves out what is too short for it; set ingest.fps,"
    " the frame rate of the normal form (`mme data check` suggests one)",
    "ingest.deadline_s": "runtime.deadline_s",
    "ingest.max_bad_ratio": "runtime.max_bad_ratio",
    "trajectories.engine": "runtime.executor",
    "trajectories.max_bad_ratio": "runtime.max_bad_ratio",
    "trajectories.videos_per_shard": "runtime.videos_per_shard",
    **{f"{section}.{name}": f"runtime.{name}" for section in ("pretrain", "finetune") for name in _TRAINING},
    **{f"{section}.{name}": f"optimiser.{name}" for section in ("pretrain", "finetune") for name in _OPTIMISER},
    "evaluate.batch_size": "runtime.eval_batch_size",
    "sweep.storage": "runtime.sweep_storage",
    "sweep.heartbeat_s": "runtime.sweep_heartbeat_s",
    "sweep.prune_after_trials": "sweep.startup_trials",
    **{f"ablation.full.{name}": f"ablation.{name}" for name in (*_BUDGET, "finetune_epochs", "labels_per_class")},
    "ablation.quick": "gone: `mme ablate --quick` takes one seed and a third of the epochs",
    "pretrain.shape": "pretrain.hog_steps (along -> all, start -> first)",
    "pretrain.hog_window": "pretrain.hog_window_px",
    "pretrain.position_scale_px": "pretrain.patch_std_floor_px (position_norm: scale is gone, it equalled none)",
    "pretrain.position_weight": "pretrain.weights.position",
    "pretrain.shape_weight": "pretrain.weights.hog",
}
"""New names by old ones; a note in brackets says how the value changed.

An old name may be that of a section; ``gone: `` begins the reason why there is no new name."""

_RANGE = re.compile(r"(sweep\.space\..+)\.(low|high|step)")


def flatten(values: Mapping[str, Any], separator: str = ".", depth: int | None = None) -> dict[str, Any]:
    """Return nested values by their joined names.

    Args:
        values: mappings in mappings.
        separator: put between the parts of a name.
        depth: parts that a name has at most, deeper mappings being values; None for no limit.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and depth != 1:
            inner = flatten(value, separator, None if depth is None else depth - 1)
            flat |= {f"{name}{separator}{key}": content for key, content in inner.items()}
        else:
            flat[name] = value
    return flat


def nest(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Return the inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(separator)
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return nested


def moved_names(names: Iterable[str]) -> str:
    """Return ``old -> new`` for every name that has moved, joined by semicolons; empty if none has.

    Names in ``datasets.NAME`` moved as those in ``ingest`` did.
    """
    found = {}
    for name in names:
        section, _, key = name.rpartition(".")
        ranged = _RANGE.fullmatch(name)
        if ranged:
            found[name] = f"{ranged[1]}: {{steps: [low, high, step]}} or {{log: [low, high]}}"
        elif section in MOVED:
            found[section] = MOVED[section]
        else:
            found[name] = MOVED.get(f"ingest.{key}" if section.startswith("datasets.") else name, "")
    return "; ".join(f"{name} -> {new}" for name, new in found.items() if new)
