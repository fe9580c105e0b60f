"""Sections ``pretrain`` and ``finetune``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mme.config.base import NonNegative, Positive, PositiveFloat, Ratio, Section
from mme.config.data import DataFolder, Split

PositionNorm = Literal["none", "patch_std", "log"]
MaskKind = Literal["tube", "random", "motion"]
Balance = Literal["none", "sampling", "loss"]
Pooling = Literal["mean", "time", "attentive"]
Precision = Annotated[
    Literal["32", "bf16-mixed", "16-mixed"],
    BeforeValidator(lambda value: "32" if value == 32 else value),  # DVC's `-S optimiser.precision=32` is a number
]


def _check_init(value: str) -> str:
    """Refuse the words of earlier versions, and paths that are not below ``models``."""
    renamed = {"pretrained": "pretrain", "scratch": "random"}
    if value in renamed:
        raise ValueError(f"{value!r} is now called {renamed[value]!r}")
    if value.startswith("/") or ".." in value.split("/"):
        raise ValueError(f"{value!r} must be a folder below models: copy or link it there")
    return value.removesuffix("/")


Init = Annotated[str, Field(min_length=1), AfterValidator(_check_init)]
"""Weights that a training starts from: a folder below ``models``, or ``random``."""


class OptimiserParams(Section):
    """Section ``optimiser``: values of pretraining and finetuning alike.

    Each holds for a phase unless the section of the phase has its own value.
    """

    lr_batch_size: Positive | None
    min_lr_ratio: Ratio
    weight_decay: NonNegative
    clip_grad: PositiveFloat
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    precision: Precision


class OptimisedParams(OptimiserParams):
    """Schedule, optimiser, precision and crop: the values that pretraining and finetuning both have."""

    data: DataFolder
    init: Init
    epochs: Positive
    warmup_epochs: NonNegative
    batch_size: Positive
    lr: PositiveFloat
    betas: tuple[Ratio, Ratio]
    drop_path: Annotated[float, Field(ge=0, lt=1)]
    min_scale: Annotated[float, Field(gt=0, le=1)]

    @property
    def epochs_per_pass(self) -> int:
        """Epochs that one pass over the videos counts as: the draws of each video."""
        return 1

    @property
    def scaled_lr(self) -> float:
        """Learning rate of this batch size (Goyal et al. 2017): proportional to it, or as it stands."""
        return self.lr if self.lr_batch_size is None else self.lr * self.batch_size / self.lr_batch_size

    @model_validator(mode="after")
    def _warmup_is_shorter(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs: {self.warmup_epochs} must be below epochs {self.epochs}")
        return self


class PretrainParams(OptimisedParams):
    """Masked motion encoding."""

    splits: Annotated[tuple[Split, ...], Field(min_length=1)]
    objective: Annotated[str, Field(min_length=1)]
    mask: MaskKind
    mask_ratio: Annotated[float, Field(gt=0, lt=1)]
    length: Annotated[int, Field(ge=1, le=255)]
    position_norm: PositionNorm
    patch_std_floor_px: PositiveFloat
    log_scale_px: PositiveFloat
    hog_steps: Literal["all", "first"]
    hog_window_px: Annotated[int, Field(ge=2)]
    hog_norm_floor: PositiveFloat
    weights: dict[str, NonNegative]
    decoder_dim: Positive
    decoder_depth: Positive
    decoder_heads: Positive
    horizontal_flip: bool
    draws_per_decode: Positive

    @property
    def epochs_per_pass(self) -> int:
        """Draws of a video from one decoding; each counts as an epoch."""
        return self.draws_per_decode

    @model_validator(mode="after")
    def _whole_passes(self) -> Self:
        if self.epochs % self.draws_per_decode:
            raise ValueError(f"epochs: {self.epochs} must be a multiple of draws_per_decode {self.draws_per_decode}")
        return self

    @model_validator(mode="after")
    def _decoder(self) -> Self:
        if self.decoder_dim % self.decoder_heads or self.decoder_dim % 8:
            raise ValueError(
                f"decoder_dim: {self.decoder_dim} must be divisible by 8 and by {self.decoder_heads} heads"
            )
        return self


class FinetuneParams(OptimisedParams):
    """Action recognition on labelled videos."""

    more_data: DataFolder
    pool: Pooling
    layer_decay: Ratio
    rand_augment: Annotated[str, Field(pattern=r"^rand(-[a-z]+[0-9.]+)+$")] | None
    erasing: Ratio
    repeats: Positive
    balance: Balance
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    mixup: NonNegative
    cutmix: NonNegative
    horizontal_flip: bool
    flip_pairs: tuple[tuple[str, str], ...]
