"""Masked clips for pretraining: a video's clip in epoch ``e`` is a function of (seed, e, index) alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mme.config import ClipParams, ModelParams, PretrainParams
from mme.data.frames import SEED_PRETRAIN, FrameCache, SampleKey, draw_crop, sample_rng, video_bytes
from mme.data.masked.masking import draw_mask
from mme.data.masked.motion_map import motion_map
from mme.manifest import Manifest, Video
from mme.motion.store import TrackStore
from mme.motion.tracking import TrackSlice
from mme.targets.base import objective_targets
from mme.targets.grid import TargetSpec, stored_tracks
from mme.targets.hog import luma_of
from mme.video.crop import apply_crop


class TrackedVideos:
    """Videos of some splits, their stored tracks, and a cache of decoded frames.

    Attributes:
        manifest: rows and files of the videos.
        tracks: stored tracks.
        cache: decoded frames.
        videos: rows of the manifest, in order.
        grid: rows and columns of the largest grid of tracks; smaller ones are padded to it.
        camera: whether the camera's motion was estimated.

    Raises:
        ValueError: the splits have no videos, or all are too short.
        KeyError: a video has no tracks, which is an error and never a zero target.
    """

    def __init__(
        self, manifest: Manifest, tracks: TrackStore, splits: Sequence[str], min_frames: int, frame_cache_mb: float
    ) -> None:
        """Take the videos of ``splits`` that have at least ``min_frames``, the span of a clip and its trajectories."""
        self.manifest = manifest
        self.tracks = tracks
        self.cache = FrameCache(frame_cache_mb)
        self.videos = manifest.videos(splits, min_frames)
        if not self.videos:
            num_short, where = len(manifest.videos(splits)), f"splits {list(splits)}"
            if not num_short:
                raise ValueError(f"{manifest.folder}: no videos in {where}")
            raise ValueError(
                f"{manifest.folder}: all {num_short} videos of {where} are shorter than {min_frames} frames, which a"
                " clip and its trajectories span (clip.num_frames, clip.stride_frames, pretrain.length)"
            )
        missing = [video.id for video in self.videos if video.id not in tracks]
        if missing:
            raise KeyError(f"no trajectories of {len(missing)} videos, the first {missing[0]!r}; run `dvc repro`")
        sizes = [tracks.grid(video.id) for video in self.videos]
        self.grid = (max(rows for rows, _ in sizes), max(columns for _, columns in sizes))
        self.camera = bool(tracks.params.get("compensate_camera", True))


class PretrainDataset(Dataset[dict[str, Tensor]]):
    """Masked clips, as fields of `mme.targets.grid.MaskedBatch` without the batch axis.

    Loader processes read and cut; targets are computed on the device of the model.

    Args:
        tracked: videos and tracks.
        clip: frames and size of a clip.
        model: size of a token.
        pretrain: objective, crop and flip.
        mask_ratio: share of hidden tokens.
        seed: of every draw.
    """

    def __init__(
        self,
        tracked: TrackedVideos,
        clip: ClipParams,
        model: ModelParams,
        pretrain: PretrainParams,
        mask_ratio: float,
        seed: int,
    ) -> None:
        self.tracked = tracked
        self.clip = clip
        self.pretrain = pretrain
        self.mask_ratio = mask_ratio
        self.seed = seed
        self.spec = TargetSpec.from_params(clip, model, pretrain)
        self.inputs = {name for target in objective_targets(pretrain.objective) for name in target.inputs}

    def __len__(self) -> int:
        return len(self.tracked.videos)

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        epoch, index = key
        return self.sample(self.tracked.videos[index], sample_rng(SEED_PRETRAIN, self.seed, epoch, index))

    def sample(self, video: Video, rng: np.random.Generator) -> dict[str, Tensor]:
        """Draw a clip, a crop and a mask of a video."""
        clip, pretrain, spec = self.clip, self.pretrain, self.spec
        span = max(clip.span_frames, spec.starts(0)[-1] + spec.length + 1)
        start = int(rng.integers(0, video.num_frames - span + 1))
        crop = draw_crop(rng, video.height, video.width, pretrain.min_scale, pretrain.horizontal_flip)

        sample: dict[str, Tensor] = {}
        if "tracks" in self.inputs or pretrain.mask == "motion":
            tracks = stored_tracks(self._tracks(video, start), crop, self.tracked.grid, self.tracked.camera)
        motion = motion_map(tracks, spec) if pretrain.mask == "motion" else None
        hidden = draw_mask(rng, spec.grid, self.mask_ratio, pretrain.mask, motion)
        if "tracks" in self.inputs:
            sample |= tracks

        hog_frames = spec.hog_frames if "luma" in self.inputs else []
        num_dense = max(clip.span_frames, *(frame + 1 for frame in hog_frames), 0)
        dense = np.arange(start, start + num_dense)
        frames = self.tracked.cache.read(self.tracked.manifest.path_of(video), dense, video_bytes(video))
        view = apply_crop(frames, crop, clip.size)  # (F, S, S, 3)
        if hog_frames:
            sample["luma"] = torch.from_numpy(luma_of(view[hog_frames]))
        sample["clip"] = torch.from_numpy(np.ascontiguousarray(view[: clip.span_frames : clip.stride_frames]))
        sample["hidden"] = torch.from_numpy(hidden)
        return sample

    def _tracks(self, video: Video, start: int) -> TrackSlice:
        return self.tracked.tracks.read(video.id, self.spec.starts(start), self.spec.length)
