"""Masked clips for pretraining: a video's clip in epoch ``e`` is a function of (seed, e, index) alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mme.config import ClipParams, ModelParams, PretrainParams
from mme.data.frames import SEED_PRETRAIN, PlaneCache, SampleKey, draw_crop, sample_rng, video_bytes
from mme.data.masked.masking import draw_mask
from mme.data.masked.motion_map import motion_map
from mme.manifest import Manifest, Video
from mme.motion.store import TrackStore
from mme.motion.tracking import TrackSlice
from mme.targets.base import luma_frames, objective_targets
from mme.targets.grid import TargetSpec, stored_tracks
from mme.video.crop import Crop
from mme.video.planes import cut_plane, mirrored


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
        self.cache = PlaneCache(frame_cache_mb)
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
        targets = objective_targets(pretrain.objective)
        self.inputs = {name for target in targets for name in target.inputs}
        self.luma_frames = luma_frames(targets, self.spec)

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

        sample["hidden"] = torch.from_numpy(hidden)
        return sample | self._planes(video, start, crop)

    def _planes(self, video: Video, start: int, crop: Crop) -> dict[str, Tensor]:
        """Read the clip's planes, and cut and resize each while its frame is in the processor's cache."""
        size, half = self.clip.size, self.clip.size // 2
        luma_rows = {frame: row for row, frame in enumerate(self.luma_frames)}
        chroma_rows = {frame: row for row, frame in enumerate(self.spec.seen_frames)}
        luma = np.empty((len(luma_rows), size, size), np.uint8)
        chroma = np.empty((len(chroma_rows), 2, half, half), np.uint8)

        stop = start + self.luma_frames[-1] + 1
        frames = self.tracked.cache.read(self.tracked.manifest.path_of(video), start, stop, video_bytes(video))
        for number, frame in enumerate(frames):
            if number in luma_rows:
                cut_plane(frame.y, crop, 1, luma[luma_rows[number]])
            if number in chroma_rows:
                for plane, out in zip((frame.u, frame.v), chroma[chroma_rows[number]], strict=True):
                    cut_plane(plane, crop, 2, out)
        if crop.flip:
            luma, chroma = mirrored(luma), mirrored(chroma)
        return {"luma": torch.from_numpy(luma), "chroma": torch.from_numpy(chroma)}

    def _tracks(self, video: Video, start: int) -> TrackSlice:
        return self.tracked.tracks.read(video.id, self.spec.starts(start), self.spec.length)
