"""Share of a pretraining step that its targets take: ``python -m benchmarks assembly``.

Medians of CPU time with one thread, measured in turn: reading tracks, cropping the frames that only HOG needs, and
computing targets, against forward, backward and update of the model on the same batch.
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

from benchmarks.report import Row, record
from benchmarks.targets import REPEATS, cpu_ms, large_frames
from mme.config import Params, load_params
from mme.data.frames import draw_crop
from mme.data.masked.masking import draw_mask
from mme.ingest.motion_primitives import sample_scene
from mme.models.encoder import model_input
from mme.models.losses import masked_mse
from mme.models.masked_motion import MotionModel
from mme.motion.store import TrackStore, merge_parts, write_index, write_part
from mme.motion.tracking import iter_tracks
from mme.targets.assemble import MotionTarget, assemble_batch
from mme.targets.grid import TargetSpec
from mme.video.crop import apply_crop

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
    """A batch of clips of one video, with the steps from files to the update."""

    def __init__(self, params: Params, frames: NDArray[np.uint8], folder: Path) -> None:
        entry = write_part(folder / "part", iter_tracks(frames, params.trajectories), params.trajectories.cell)
        assert entry["num_starts"] == len(frames) - 1
        write_index(folder, merge_parts(folder / "0.safetensors", {"video": folder / "part"}), {})
        self.store, self.frames, self.params = TrackStore(folder), frames, params
        self.spec = TargetSpec.from_params(params.clip, params.model, params.pretrain)
        rng, pretrain = np.random.default_rng(0), params.pretrain
        size, (height, width) = range(pretrain.batch_size), frames.shape[1:3]
        self.crops = [draw_crop(rng, height, width, pretrain.min_scale, pretrain.horizontal_flip) for _ in size]
        side = params.clip.size // params.model.patch_size
        grid = (self.spec.num_tubelets, side, side)
        self.hidden = [draw_mask(rng, grid, pretrain.mask_ratio, pretrain.mask) for _ in size]
        self.views = self.crop(1)
        self.model = MotionModel(params.model, params.clip, params.pretrain)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        clip = params.clip
        self.clips = np.stack([view[: clip.span_frames : clip.stride_frames] for view in self.views])
        self.targets = self.assemble(True)

    def crop(self, every: int) -> list[NDArray[np.uint8]]:
        """Crop every n-th frame of the clips."""
        num_dense = max(self.params.clip.span_frames, self.spec.num_hog_frames)
        return [apply_crop(self.frames[:num_dense:every], crop, self.params.clip.size) for crop in self.crops]

    def read(self) -> list[Any]:
        """Read the tracks of the clips."""
        return [self.store.read("video", self.spec.starts(0), self.spec.length) for _ in self.crops]

    def assemble(self, with_shape: bool) -> list[MotionTarget]:
        """Read the tracks of the clips and compute their targets."""
        return assemble_batch(self.read(), self.crops, self.views if with_shape else None, self.spec, self.hidden)

    def step(self) -> None:
        """Run forward, backward and update."""
        self.optimizer.zero_grad()
        hidden = torch.from_numpy(np.stack(self.hidden))
        predictions = self.model(model_input(torch.from_numpy(self.clips), self.params.clip), hidden)
        valid = torch.from_numpy(np.stack([target.valid for target in self.targets]))
        losses = [
            masked_mse(predicted, torch.from_numpy(np.stack([getattr(target, name) for target in self.targets])), valid)
            for name, predicted in predictions.items()
        ]
        torch.stack(losses).sum().backward()
        self.optimizer.step()


def measure(name: str, at_most: float | None, batch: Batch) -> Iterator[Row]:
    """Measure the parts of one batch, and the share of its targets."""
    stride = batch.params.clip.stride_frames
    actions: list[Callable[[], object]] = [
        batch.step, batch.read, lambda: batch.assemble(False), lambda: batch.assemble(True),
        lambda: batch.crop(1), lambda: batch.crop(stride),
    ]  # fmt: skip
    repeats = REPEATS if batch.params.model.dim < 512 else 2
    step, read, positions, both, dense, sparse = cpu_ms(*actions, repeats=repeats)
    yield Row(
        f"{name}: model", step, "ms per step", of=f"batch of {len(batch.crops)}, {batch.spec.num_tubelets} tubelets"
    )
    yield Row(f"{name}: tracks read", read, "ms per step")
    yield Row(f"{name}: positions", positions - read, "ms per step")
    yield Row(f"{name}: HOG", both - positions, "ms per step", of=f"shape: {batch.spec.hog_steps}")
    yield Row(f"{name}: frames cropped for HOG", dense - sparse, "ms per step")
    targets = both + dense - sparse
    yield Row(f"{name}: targets", targets / (targets + step), "of the step", at_most=at_most)


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
