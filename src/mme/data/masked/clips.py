"""Training samples: what a video looks like in epoch ``e`` is a function of (seed, e, index) alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mme.config import Params
from mme.data.frames import SEED_PRETRAIN, FrameCache, SampleKey, draw_crop, sample_rng, video_bytes
from mme.data.masked.masking import draw_mask
from mme.data.masked.motion_map import motion_map
from mme.manifest import Manifest, Video
from mme.motion.store import TrackStore
from mme.targets.assemble import MotionTarget, assemble_batch
from mme.targets.grid import TargetSpec
from mme.video.crop import Crop, apply_crop


class _Clip(NamedTuple):
    """What was drawn of a video: ``view`` is uint8 [F, S, S, 3] from raw frame ``start`` on, ``hidden`` bool [N]."""

    video: Video
    start: int
    crop: Crop
    hidden: NDArray[np.bool_]
    view: NDArray[np.uint8]


class PretrainDataset(Dataset[dict[str, Any]]):
    """Masked clips with their motion targets.

    A sample holds ``clip`` uint8 [T, S, S, 3], ``hidden`` bool [N] (``True`` = hidden) and, for the hidden tokens M
    only, ``position`` float32 [M, C, L, 2], ``shape`` float32 [M, C, L or 1, 9] and ``valid`` bool [M, C]; which of the
    two targets there is depends on the objective. Pixel targets are made from the clip by the training module.

    Raises:
        KeyError: a video has no trajectories (a missing trajectory is an error, never a zero target).
    """

    def __init__(self, params: Params, manifest: Manifest, tracks: TrackStore, splits: Sequence[str]) -> None:
        self.params, self.manifest, self.tracks = params, manifest, tracks
        self.videos = manifest.videos(splits)
        if not self.videos:
            raise ValueError(f"{manifest.folder}: no videos in splits {list(splits)}")
        missing = [video.id for video in self.videos if video.id not in tracks]
        if missing:
            raise KeyError(f"no trajectories of {len(missing)} videos, the first {missing[0]!r}; run `dvc repro`")
        self.cache = FrameCache(params.runtime.frame_cache_mb)
        self.spec = TargetSpec.from_params(params.clip, params.model, params.pretrain)
        side = params.clip.size // params.model.patch_size
        self.grid = (self.spec.num_tubelets, side, side)
        self.with_position = params.pretrain.objective in ("mme", "trajectory")
        self.with_shape = params.pretrain.objective in ("mme", "hog")

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey]) -> list[dict[str, Any]]:
        """A batch, which DataLoader asks for at once: its targets are assembled together."""
        seed = self.params.seed
        return self.samples(
            [(self.videos[index], sample_rng(SEED_PRETRAIN, seed, epoch, index)) for epoch, index in keys]
        )

    def samples(self, drawn: Sequence[tuple[Video, np.random.Generator]]) -> list[dict[str, Any]]:
        """Draw a clip, a crop and a mask of each video."""
        clips = [self._draw(video, rng) for video, rng in drawn]
        targets = self._targets(clips) if self.with_position or self.with_shape else [None] * len(clips)
        return [self._sample(clip, target) for clip, target in zip(clips, targets, strict=True)]

    def _draw(self, video: Video, rng: np.random.Generator) -> _Clip:
        clip, pretrain = self.params.clip, self.params.pretrain
        span = max(clip.span_frames, self.spec.starts(0)[-1] + pretrain.length + 1)
        start = int(rng.integers(0, video.num_frames - span + 1))
        crop = draw_crop(rng, video.height, video.width, pretrain.min_scale, pretrain.horizontal_flip)
        motion = None
        if pretrain.mask == "motion":
            motion = motion_map(self.tracks.read(video.id, self.spec.starts(start), pretrain.length), crop, self.spec)
        hidden = draw_mask(rng, self.grid, pretrain.mask_ratio, pretrain.mask, motion)
        num_dense = max(clip.span_frames, self.spec.num_hog_frames if self.with_shape else 0)
        frames = self.cache.read(self.manifest.path_of(video), np.arange(start, start + num_dense), video_bytes(video))
        return _Clip(video, start, crop, hidden, apply_crop(frames, crop, clip.size))

    def _targets(self, clips: Sequence[_Clip]) -> list[MotionTarget]:
        length = self.params.pretrain.length
        tracks = [self.tracks.read(clip.video.id, self.spec.starts(clip.start), length) for clip in clips]
        crops, hidden = [clip.crop for clip in clips], [clip.hidden for clip in clips]
        frames = [clip.view for clip in clips] if self.with_shape else None
        return assemble_batch(tracks, crops, frames, self.spec, hidden)

    def _sample(self, drawn: _Clip, target: MotionTarget | None) -> dict[str, Any]:
        clip = self.params.clip
        sample: dict[str, Any] = {
            "clip": torch.from_numpy(np.ascontiguousarray(drawn.view[: clip.span_frames : clip.stride_frames])),
            "hidden": torch.from_numpy(drawn.hidden),
        }
        if target is None:
            return sample
        sample["valid"] = torch.from_numpy(target.valid)
        if self.with_position:
            sample["position"] = torch.from_numpy(target.position)
        if self.with_shape:
            sample["shape"] = torch.from_numpy(target.shape)
        return sample
