"""Training samples: what a video looks like in epoch ``e`` is a function of (seed, e, index) alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mme.config import FinetuneParams, Params
from mme.data.augmentation import Augmentation
from mme.data.frames import FrameCache
from mme.data.manifest import Manifest, Video
from mme.data.transforms import SEED_FINETUNE, SEED_PRETRAIN, apply_crop, draw_crop, sample_rng
from mme.data.views import draw_indices, prepare
from mme.models.masking import draw_mask
from mme.targets.assemble import MotionTarget, assemble_batch
from mme.targets.crops import Crop, TargetSpec
from mme.targets.motion import motion_map
from mme.targets.store import TrackStore

Key = tuple[int, int]
"""(draw, index of the video), as `mme.data.sampler.EpochSampler` yields it: a video's first draw is 0."""


def _video_bytes(video: Video) -> int:
    return video.num_frames * video.height * video.width * 3


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
        self.cache = FrameCache(params.pretrain.frame_cache_mb)
        self.spec = TargetSpec.from_params(params.clip, params.model, params.pretrain)
        side = params.clip.size // params.model.patch_size
        self.grid = (self.spec.num_tubelets, side, side)
        self.with_position = params.pretrain.objective in ("mme", "trajectory")
        self.with_shape = params.pretrain.objective in ("mme", "hog")

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """A batch, which DataLoader asks for at once: its targets are assembled together."""
        seed = self.params.run.seed
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
        frames = self.cache.read(self.manifest.path_of(video), np.arange(start, start + num_dense), _video_bytes(video))
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


class LabelledDataset(Dataset[dict[str, Tensor]]):
    """Labelled clips: ``clip`` uint8 [T, S, S, 3] and ``label``, an index into ``labels``.

    In training a clip is drawn from anywhere in the video, cropped at random and, where ``horizontal_flip`` is on,
    flipped half of the times; ``flip_pairs`` swaps the labels that a mirror image swaps; ``rand_augment`` and
    ``erasing`` follow. Otherwise it is the centre view that evaluation takes.
    """

    def __init__(self, params: Params, manifest: Manifest, split: str, training: bool) -> None:
        self.params, self.manifest, self.training = params, manifest, training
        self.labels = manifest.labels
        self.videos = [video for video in manifest.videos(split) if video.label is not None]
        if not self.videos:
            raise ValueError(f"{manifest.folder}: no labelled videos in split '{split}'")
        self.cache = FrameCache(params.finetune.frame_cache_mb)
        self.mirrored = mirrored_labels(self.labels, params.finetune)
        self.augmentation = Augmentation(params.finetune, params.clip)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        epoch, index = key
        video = self.videos[index]
        assert video.label is not None
        label = self.labels.index(video.label)
        if not self.training:
            frames = prepare(self.manifest.path_of(video), self.params.clip, segments=1, crops=1).frames[0]
            return _labelled(frames, label)
        finetune, clip = self.params.finetune, self.params.clip
        rng = sample_rng(SEED_FINETUNE, self.params.run.seed, epoch, index)
        indices = draw_indices(rng, video.num_frames, clip)
        frames = self.cache.read(self.manifest.path_of(video), indices, _video_bytes(video))
        crop = draw_crop(rng, video.height, video.width, finetune.min_scale, finetune.horizontal_flip)
        view = self.augmentation(apply_crop(frames, crop, clip.size), rng)
        return _labelled(view, self.mirrored[label] if crop.flip else label)


def _labelled(frames: NDArray[np.uint8], label: int) -> dict[str, Tensor]:
    return {"clip": torch.from_numpy(np.ascontiguousarray(frames)), "label": torch.tensor(label)}


def mirrored_labels(labels: Sequence[str], params: FinetuneParams) -> list[int]:
    """For each label the index of the label of its mirror image.

    Raises:
        ValueError: ``flip_pairs`` names an unknown label, or one twice.
    """
    mirrored = list(range(len(labels)))
    if not params.horizontal_flip:
        return mirrored
    named = [label for pair in params.flip_pairs for label in pair]
    faults = sorted({label for label in named if label not in labels or named.count(label) > 1})
    if faults:
        raise ValueError(f"finetune.flip_pairs: {faults} are unknown or named twice; labels: {', '.join(labels)}")
    for first, second in params.flip_pairs:
        a, b = labels.index(first), labels.index(second)
        mirrored[a], mirrored[b] = b, a
    return mirrored
