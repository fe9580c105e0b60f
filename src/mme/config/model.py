"""Sections ``clip`` and ``model``: the encoder and its input."""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

from pydantic import model_validator

from mme.config.base import Positive, PositiveFloat, Section

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""RGB statistics of ImageNet in [0, 1]. All published video transformers that are converted here expect them, and any
other constants would be absorbed by the patch embedding; a `clip.mean` of its own is possible."""

CELLS_PER_PATCH_SIDE = 2
"""A token predicts the motion of 2 x 2 cells (Sun et al. 2023, section 3.3)."""

ModelPrecision: TypeAlias = Literal["32", "bf16"]
"""Numbers that a finished model computes in."""


class ClipParams(Section):
    """The sparse clip that the model sees.

    A classifier's clip has ``snippets`` snippets of ``num_frames`` frames each, spread over the whole video (Wang et
    al. 2016, TSN); pretraining sees one.
    """

    num_frames: Positive
    stride_frames: Positive
    sampling: Literal["stride", "segments"]
    size: Positive
    snippets: Positive = 1  # of model folders that were made before snippets
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]

    @property
    def span_frames(self) -> int:
        """Raw frames from a snippet's first frame to its last, both included."""
        return (self.num_frames - 1) * self.stride_frames + 1

    @property
    def total_frames(self) -> int:
        """Frames of all snippets."""
        return self.snippets * self.num_frames

    @model_validator(mode="after")
    def _snippets_have_a_stride(self) -> Self:
        if self.snippets > 1 and self.sampling == "segments":
            raise ValueError(f"snippets: {self.snippets} snippets need sampling: stride; segments has one frame a part")
        return self


class ModelParams(Section):
    """The encoder: a ViT over tubelets of ``tubelet_frames x patch_size x patch_size``."""

    patch_size: Positive
    tubelet_frames: Positive
    dim: Positive
    depth: Positive
    num_heads: Positive
    mlp_ratio: PositiveFloat
    positions: Literal["axes", "flat"]

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.patch_size % CELLS_PER_PATCH_SIDE:
            raise ValueError(f"patch_size: {self.patch_size} must be even, a token has 2 x 2 cells")
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads: {self.num_heads} must divide dim {self.dim}")
        if self.dim % 8:
            raise ValueError(f"dim: {self.dim} must be a multiple of 8 for sine-cosine positions of three axes")
        return self


def check_clip_fits(clip: ClipParams, model: ModelParams) -> None:
    """Raise `ValueError` if a clip cannot be cut into whole tubelets."""
    if clip.size % model.patch_size:
        raise ValueError(f"model.patch_size: {model.patch_size} must divide clip.size {clip.size}")
    if clip.num_frames % model.tubelet_frames:
        raise ValueError(f"model.tubelet_frames: {model.tubelet_frames} must divide clip.num_frames {clip.num_frames}")


def frames_needed(clip: ClipParams, model: ModelParams, length: int) -> int:
    """Raw frames that a clip and the trajectories of its last tubelet span together."""
    last_start = (clip.num_frames - model.tubelet_frames) * clip.stride_frames
    return max(clip.span_frames, last_start + length + 1)
