"""Labelled clips for finetuning: what a video looks like in epoch ``e`` is a function of (seed, e, index) alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mme.config import ClipParams, FinetuneParams
from mme.data.frames import SEED_FINETUNE, FrameCache, SampleKey, draw_crop, sample_rng, video_bytes
from mme.data.labelled.augmentation import Augmentation
from mme.manifest import Manifest
from mme.video.crop import apply_crop
from mme.video.sampling import draw_indices, sample_views


class LabelledDataset(Dataset[dict[str, Tensor]]):
    """Labelled clips: ``clip`` uint8 [T, S, S, 3] and ``label``, an index into ``labels``.

    In training a clip is drawn from anywhere in the video, cropped at random and, where ``horizontal_flip`` is on,
    flipped with probability 1/2; ``flip_pairs`` swaps the labels that a mirror image swaps; ``rand_augment`` and
    ``erasing`` follow. Otherwise it is the centre view that evaluation takes. ``classes`` has the label of each video.

    Args:
        manifest: videos with their labels and splits.
        split: videos to take; those without a label are left out.
        clip: frames and size of a clip.
        finetune: crops, flips and augmentation.
        seed: seed of what is drawn.
        training: draw clips at random.
        cache_mb: memory for decoded videos, MiB.

    Raises:
        ValueError: the split has no labelled videos, or ``flip_pairs`` does not fit the labels.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        clip: ClipParams,
        finetune: FinetuneParams,
        *,
        seed: int,
        training: bool,
        cache_mb: float = 0,
    ) -> None:
        self.manifest = manifest
        self.clip = clip
        self.finetune = finetune
        self.seed = seed
        self.training = training
        self.labels = manifest.labels
        self.videos = [video for video in manifest.videos(split) if video.label is not None]
        if not self.videos:
            raise ValueError(f"{manifest.folder}: no labelled videos in split '{split}'")
        self.classes = [self.labels.index(str(video.label)) for video in self.videos]
        self.cache = FrameCache(cache_mb)
        self.mirrored = mirrored_labels(self.labels, finetune)
        self.augmentation = Augmentation(finetune, clip)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        epoch, index = key
        video, label = self.videos[index], self.classes[index]
        if not self.training:
            frames = sample_views(self.manifest.path_of(video), self.clip, video.fps, segments=1, crops=1).frames[0]
            return _labelled(frames, label)

        # The order of the draws is part of what a seed means.
        rng = sample_rng(SEED_FINETUNE, self.seed, epoch, index)
        indices = draw_indices(rng, video.num_frames, self.clip)
        crop = draw_crop(rng, video.height, video.width, self.finetune.min_scale, self.finetune.horizontal_flip)

        frames = self.cache.read(self.manifest.path_of(video), indices, video_bytes(video))  # (T, H, W, 3)
        view = self.augmentation(apply_crop(frames, crop, self.clip.size), rng)  # (T, S, S, 3)
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
