"""A small model, its folder, and frames that differ by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from mme.config import ClipParams, ModelParams
from mme.models.checkpoints import FolderConfig, save_folder
from mme.models.classifier import MotionClassifier

LABELS = ("down", "left", "right", "up")


def tiny_config(**changes: Any) -> FolderConfig:
    """Return a config: 4 frames at stride 2, 16 x 16 pixels, two blocks of 16 channels, two segments, a centre crop."""
    values: dict[str, Any] = {
        "format": 2,
        "name": "tiny",
        "model": {
            "patch_size": 8,
            "tubelet_frames": 2,
            "dim": 16,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio": 2.0,
            "positions": "axes",
        },
        "clip": {
            "num_frames": 4,
            "stride_frames": 2,
            "sampling": "stride",
            "size": 16,
            "mean": (0.4, 0.5, 0.6),
            "std": (0.2, 0.25, 0.3),
        },
        "fps": 16.0,
        "views": {"segments": 2, "crops": 1},
        "labels": LABELS,
        "provenance": {"git_commit": "0" * 40},
        "metrics": {"val/top1": 0.5},
    }
    return FolderConfig.model_validate(values | changes)


def tiny_model(config: FolderConfig, seed: int = 0) -> MotionClassifier:
    """Return a model with random weights whose logits differ clearly between videos."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MotionClassifier(
            ModelParams(**config.model.model_dump()),
            ClipParams(**config.clip.model_dump()),
            len(config.labels),
            pool=config.pool,
        )
        torch.nn.init.normal_(model.head.weight, std=1.0)
        torch.nn.init.normal_(model.head.bias, std=0.1)
    return model.eval()


def save_tiny_folder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a model folder with random weights."""
    config = tiny_config(**changes)
    save_folder(folder, tiny_model(config, seed), config)
    return folder


def moving_frames(
    num_frames: int = 20, height: int = 32, width: int = 48, seed: int = 0
) -> UInt8[np.ndarray, "T H W 3"]:
    """Draw a smooth coloured pattern, different for each seed, that moves to the right by two pixels per frame."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    phase, waves = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.1, 0.5, (3, 2))
    frames = [
        np.stack(
            [127 + 110 * np.sin(waves[c, 0] * y + waves[c, 1] * (x - 2 * t) + phase[c]) for c in range(3)], axis=-1
        )
        for t in range(num_frames)
    ]
    return np.stack(frames).round().astype(np.uint8)
