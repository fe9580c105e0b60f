"""Masked clips for pretraining: a clip is a function of seed, number of the draw and index of the video alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from mme.config import ClipParams, ModelParams, PretrainParams, frames_needed
from mme.data.frames import SEED_PRETRAIN, PlaneCache, SampleKey, draw_crop, sample_rng, video_bytes
from mme.data.masked.masking import draw_mask, num_hidden
from mme.data.masked.motion_map import motion_map
from mme.manifest import Manifest, Video
from mme.motion.store import TrackStore
from mme.motion.tracking import TrackSlice
from mme.targets.base import luma_frames, objective_targets
from mme.targets.grid import TargetSpec, stored_tracks
from mme.video.codec import GOP_FRAMES
from mme.video.crop import Crop
from mme.video.planes import YuvFrame, cut_plane


def empty_batch(shape: tuple[int, ...]) -> Tensor:
    """Allocate bytes for a part of a batch; in a loader process in shared memory, from which they are sent uncopied."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # noqa: SLF001 - as default_collate does
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


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


class ClipView:
    """Planes of one clip, filled frame by frame.

    Args:
        start: frame of the video that is the clip's first.
        crop: part of the frames that the clip shows.
        luma: where the brightness of ``luma_frames`` goes.
        chroma: where the colour of ``seen_frames`` goes.
        luma_frames, seen_frames: frames counted from ``start``.
    """

    def __init__(
        self,
        start: int,
        crop: Crop,
        luma: UInt8[np.ndarray, "F H W"],
        chroma: UInt8[np.ndarray, "T 2 H/2 W/2"],
        luma_frames: Sequence[int],
        seen_frames: Sequence[int],
    ) -> None:
        self.start = start
        self.crop = crop
        self._luma = dict(zip(luma_frames, luma, strict=True))
        self._chroma = dict(zip(seen_frames, chroma, strict=True))

    def add(self, number: int, frame: YuvFrame) -> None:
        """Cut and resize what is needed of a frame of the video."""
        luma = self._luma.get(number - self.start)
        if luma is not None:
            cut_plane(frame.y, self.crop, 1, luma)
        chroma = self._chroma.get(number - self.start)
        if chroma is not None:
            cut_plane(frame.u, self.crop, 2, chroma[0])
            cut_plane(frame.v, self.crop, 2, chroma[1])


class PretrainDataset(Dataset[dict[str, Tensor]]):
    """Masked clips, as fields of `mme.targets.grid.MaskedBatch` without the batch axis.

    Loader processes read and cut; targets are computed on the device of the model.

    Args:
        tracked: videos and tracks.
        clip: frames and size of a clip.
        model: size of a token.
        pretrain: objective, mask, crop and flip.
        seed: of every draw.
    """

    def __init__(
        self,
        tracked: TrackedVideos,
        clip: ClipParams,
        model: ModelParams,
        pretrain: PretrainParams,
        seed: int,
    ) -> None:
        self.tracked = tracked
        self.clip = clip
        self.pretrain = pretrain
        self.seed = seed
        self.spec = TargetSpec.from_params(clip, model, pretrain)
        self.num_hidden = num_hidden(self.spec.grid, pretrain.mask_ratio, pretrain.mask)
        targets = objective_targets(pretrain.objective)
        self.inputs = {name for target in targets for name in target.inputs}
        self.luma_frames = luma_frames(targets, self.spec)
        self.num_frames = frames_needed(clip, model, pretrain.length)

    def __len__(self) -> int:
        return len(self.tracked.videos)

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: list[SampleKey]) -> dict[str, Tensor]:
        """Return a whole batch; consecutive draws of a video from one decoding are decoded once.

        Planes, most of a batch, are written where the batch lies: nothing is stacked and copied. So the loader has
        nothing to collate, see `collate_fn`.
        """
        spec, fields = self.spec, []
        luma = empty_batch((len(keys), len(self.luma_frames), spec.height, spec.width))
        chroma = empty_batch((len(keys), len(spec.seen_frames), 2, spec.height // 2, spec.width // 2))
        planes = zip(luma.numpy(), chroma.numpy(), strict=True)
        for (_, index), group in groupby(keys, lambda key: (key[0] // self.pretrain.draws_per_decode, key[1])):
            video, views = self.tracked.videos[index], []
            for draw, _ in group:
                start, crop, drawn = self._draw(video, draw, index)
                views.append(ClipView(start, crop, *next(planes), self.luma_frames, spec.seen_frames))
                fields.append(drawn)
            self._read(video, views)
        batch: dict[str, Tensor] = default_collate(fields)
        return batch | {"luma": luma, "chroma": chroma}

    @staticmethod
    def collate_fn(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what `__getitems__` returned."""
        return batch

    def _draw(self, video: Video, draw: int, index: int) -> tuple[int, Crop, dict[str, Tensor]]:
        """Draw first frame, crop and mask of a clip, and read its tracks."""
        pretrain, spec = self.pretrain, self.spec
        rng = sample_rng(SEED_PRETRAIN, self.seed, draw, index)
        start = self._start(rng, video, draw, index)
        crop = draw_crop(rng, video.height, video.width, pretrain.min_scale, pretrain.horizontal_flip)

        fields: dict[str, Tensor] = {}
        if "tracks" in self.inputs or pretrain.mask == "motion":
            tracks = stored_tracks(self._tracks(video, start), crop, self.tracked.grid, self.tracked.camera)
        motion = motion_map(tracks, spec) if pretrain.mask == "motion" else None
        hidden = draw_mask(rng, spec.grid, pretrain.mask_ratio, pretrain.mask, motion)
        if "tracks" in self.inputs:
            fields |= tracks
        fields["hidden"] = torch.from_numpy(hidden)
        return start, crop, fields

    def _start(self, rng: np.random.Generator, video: Video, draw: int, index: int) -> int:
        """Draw the first frame of a clip, uniformly.

        Draws from one decoding start between the same two keyframes, which the first of them decides, so that hardly
        more is decoded for all of them than for one.
        """
        num_starts = video.num_frames - self.num_frames + 1
        first = draw - draw % self.pretrain.draws_per_decode
        if draw == first:
            return int(rng.integers(0, num_starts))
        key = int(sample_rng(SEED_PRETRAIN, self.seed, first, index).integers(0, num_starts)) // GOP_FRAMES * GOP_FRAMES
        return int(rng.integers(key, min(key + GOP_FRAMES, num_starts)))

    def _read(self, video: Video, views: Sequence[ClipView]) -> None:
        """Decode the frames of all views once, cutting each view while a frame is in the processor's cache."""
        start = min(view.start for view in views)
        stop = max(view.start for view in views) + self.luma_frames[-1] + 1
        frames = self.tracked.cache.read(self.tracked.manifest.path_of(video), start, stop, video_bytes(video))
        for number, frame in enumerate(frames, start):
            for view in views:
                view.add(number, frame)

    def _tracks(self, video: Video, start: int) -> TrackSlice:
        return self.tracked.tracks.read(video.id, self.spec.starts(start), self.spec.length)
