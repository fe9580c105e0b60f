"""A small data set made by the real code: videos, manifest, trajectories, and parameters that fit them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mme.config import Params, RuntimeParams, load_params
from mme.ingest.motion_primitives import CLASSES, sample_scene
from mme.manifest import Manifest, Video
from mme.motion.extract import Extractor
from mme.system.files import sha256_file
from mme.video.codec import write_video

DEFAULTS = load_params(Path(__file__).parents[1] / "params.yaml")

SMALL: dict[str, dict[str, Any]] = {
    "runtime": {"num_loader_workers": 0, "videos_per_shard": 5},
    "synthesize": {"size": 32, "num_frames": 16, "drift_px": 0.0},
    "ingest": {"short_side": 32},
    "trajectories": {"splits": ("pretrain", "val"), "cell": 4, "max_length": 4},
    "clip": {"num_frames": 4, "size": 32},
    "model": {"patch_size": 8, "dim": 32, "depth": 2, "num_heads": 2, "positions": "axes"},
    "pretrain": {
        "splits": ("pretrain",),
        "length": 3,
        "hog_steps": "all",
        "hog_window_px": 8,
        "decoder_dim": 16,
        "decoder_heads": 2,
        "epochs": 3,
        "warmup_epochs": 1,
        "batch_size": 4,
        "lr": 0.0015,
        "objective": "mme",
    },
    "finetune": {"epochs": 3, "warmup_epochs": 1, "batch_size": 4, "horizontal_flip": False, "flip_pairs": ()},
}


def small_params(seed: int = 0, **changes: dict[str, Any]) -> Params:
    """Return ``params.yaml`` with small sizes; ``changes`` by section."""
    raw = DEFAULTS.model_dump() | {"seed": seed}
    for section, values in [*SMALL.items(), *changes.items()]:
        raw[section] = raw[section] | values
    return Params.model_validate(raw)


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate the options of ``runtime`` from those of another section."""
    runtime = {name: value for name, value in options.items() if name in RuntimeParams.model_fields}
    return runtime, {name: value for name, value in options.items() if name not in runtime}


def make_small_data(folder: Path, params: Params) -> Manifest:
    """Write 12 videos for pretraining, 8 labelled ones for training, 4 for validation, and their tracks."""
    rows = []
    for number, (split, count) in enumerate({"pretrain": 12, "train": 8, "val": 4}.items()):
        for index in range(count):
            label = CLASSES[index % 4]
            video_id = f"{split}-{index}"
            path = folder / "videos" / f"{video_id}.mp4"
            frames = sample_scene(label, params.synthesize, (number, index)).render()
            write_video(path, frames, 16, 14, 8)
            labelled = None if split == "pretrain" else label
            rows.append(_row(video_id, path, labelled, split, len(frames)))
    manifest = Manifest(rows, folder)
    manifest.save(folder / "manifest.parquet")
    extractor = Extractor(manifest, params.trajectories, folder / "work", params.runtime)
    extractor.finish(folder / "trajectories", extractor.run(1, lambda _: None))
    return manifest


def _row(video_id: str, path: Path, label: str | None, split: str, num_frames: int) -> Video:
    return Video(
        id=video_id,
        path=path.name,
        sha256=sha256_file(path),
        label=label,
        split=split,
        group=None,
        num_frames=num_frames,
        fps=16.0,
        width=32,
        height=32,
        status="ok",
        reason=None,
        source_path=path.name,
        source_fps=16.0,
    )
