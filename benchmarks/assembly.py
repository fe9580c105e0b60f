"""Share of a pretraining step that its targets take: ``python -m benchmarks assembly``.

Medians of CPU time with one thread, measured in turn: reading a batch (frames from the cache, tracks, crop, mask), its
targets, and forward, backward and update of the model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from benchmarks.report import Row, record
from benchmarks.speed import stored
from benchmarks.targets import REPEATS, cpu_ms, large_frames
from mme.config import Params, load_params
from mme.ingest.motion_primitives import sample_scene
from mme.manifest import Manifest
from mme.motion.store import TrackStore, merge_parts, write_index, write_part
from mme.motion.tracking import iter_tracks
from mme.training.pretrain import PretrainModule, pretrain_dataset, target_statistics

VIT_B: dict[str, dict[str, Any]] = {
    "trajectories": {"compensate_camera": True, "cell": 8, "max_length": 6},
    "clip": {"num_frames": 16, "stride_frames": 4, "size": 224},
    "model": {"patch_size": 16, "tubelet_frames": 2, "dim": 768, "depth": 12, "num_heads": 12, "positions": "flat"},
    "pretrain": {
        "mask_ratio": 0.9, "length": 6, "hog_steps": "all", "hog_window_px": 16, "min_scale": 0.5, "batch_size": 2,
        "decoder_dim": 384, "decoder_depth": 4, "decoder_heads": 6,
    },
}  # fmt: skip
"""ViT-B/16 on 16 frames of 224 px, with the video decoder of He et al. and the largest mask ratio in use."""


def changed(params: Params, changes: dict[str, dict[str, Any]]) -> Params:
    """Return the parameters with other values, by section."""
    sections = {name: getattr(params, name).model_copy(update=values) for name, values in changes.items()}
    return params.model_copy(update=sections)


class Batch:
    """A batch of clips of one video, with the steps from its file and tracks to the update."""

    def __init__(self, params: Params, frames: NDArray[np.uint8], folder: Path) -> None:
        self.params = params
        manifest = Manifest([stored(folder / "videos" / "video.mp4", frames, 16.0, params, None, "train")], folder)
        write_part(folder / "part", iter_tracks(frames, params.trajectories), params.trajectories.cell)
        shards = merge_parts(folder / "0.safetensors", {"video": folder / "part"})
        write_index(folder, shards, params.trajectories.model_dump(mode="json"))
        self.dataset = pretrain_dataset(params, manifest, TrackStore(folder), ["train"])
        self.module = PretrainModule(params, target_statistics(self.dataset), 1)
        self.optimizer = torch.optim.AdamW(self.module.model.parameters(), lr=1e-4, fused=True)

    def read(self) -> dict[str, Tensor]:
        """Read the batch."""
        samples = [self.dataset[draw, 0] for draw in range(self.params.pretrain.batch_size)]
        batch: dict[str, Tensor] = default_collate(samples)
        return batch

    def step(self, batch: dict[str, Tensor]) -> None:
        """Compute targets; run forward, backward and update."""
        self.optimizer.zero_grad()
        self.module.losses(self.module.prepare(batch))["loss"].backward()
        self.optimizer.step()


def measure(name: str, at_most: float | None, batch: Batch) -> Iterator[Row]:
    """Measure the parts of one batch, and the share of its targets."""
    read = batch.read()
    actions: list[Callable[[], object]] = [
        lambda: batch.step(read), batch.read, lambda: batch.module.prepare(read),
        lambda: batch.module.visible_pixels(read),
    ]  # fmt: skip
    repeats = REPEATS if batch.params.model.dim < 512 else 2
    step, reading, prepared, pixels = cpu_ms(*actions, repeats=repeats)
    of = f"batch of {len(read['hidden'])}, hog_steps: {batch.params.pretrain.hog_steps}"
    yield Row(f"{name}: step", step, "ms", of=of)
    yield Row(f"{name}: read", reading, "ms per step", of="frames cached")
    yield Row(f"{name}: targets", prepared - pixels, "ms per step")
    yield Row(f"{name}: share of targets", (prepared - pixels) / step, "of the step", at_most=at_most)


def main() -> None:
    """Run the benchmark and record it."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    params = load_params()
    rows: list[Row] = []
    small = sample_scene(params.synthesize.classes[0], params.synthesize, (0,)).render()
    large = changed(params, VIT_B)
    cases = [
        ("default", 0.15, params, small),
        ("default, hog_steps: all", None, changed(params, {"pretrain": {"hog_steps": "all"}}), small),
        ("ViT-B/16, 16 x 224", 0.10, large, large_frames(params, large.clip.span_frames + large.pretrain.length)),
    ]
    for name, at_most, case, frames in cases:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, at_most, Batch(case, frames, Path(folder)))
        record("targets/assembly", rows)


if __name__ == "__main__":
    main()
