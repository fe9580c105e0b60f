"""Protocol of a prediction target, and the table of objectives.

A target is one thing in one place: the shape of what a hidden token predicts, how it is computed, what is centred
before the loss, how much it weighs and how it is drawn. Heads, data set, statistics, losses, reports and pictures ask
the table below. A new target is one file and two lines here: its import and its objective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mme.targets.drawing import TokenCanvas
from mme.targets.grid import HiddenTokens, TargetSpec
from mme.targets.hog import HOG
from mme.targets.pixel import PIXEL
from mme.targets.position import POSITION


@runtime_checkable
class Target(Protocol):
    """Quantity that the model predicts for a hidden token.

    Attributes:
        name: key of its head, its metrics and its weight.
        label: plural noun for model cards and reports.
        default_weight: factor of its loss where ``pretrain.weights`` does not name it.
        inputs: data that a loader reads for it besides what the model sees: ``tracks`` (stored tracks), ``luma``
            (brightness of the frames between, `mme.targets.grid.TargetSpec.dense_frames`).
        centre: ``zero`` subtracts nothing before the loss, ``mean`` the mean of each component (last axis) over the
            valid points; both then divide by one deviation. None: the target standardises each token itself, as one
            that reads pixels (`HiddenTokens.tubelets`) must.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def label(self) -> str: ...  # noqa: D102

    @property
    def default_weight(self) -> float: ...  # noqa: D102

    @property
    def inputs(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def centre(self) -> Literal["zero", "mean"] | None: ...  # noqa: D102

    def shape(self, spec: TargetSpec) -> tuple[int, ...]:
        """Shape of one token's target: the head's and the data's."""

    def compute(self, tokens: HiddenTokens) -> tuple[Float[Tensor, "B M *S"], Bool[Tensor, "B M *V"]]:
        """Return the targets of the hidden tokens, and one valid flag per token ``[B, M]`` or cell ``[B, M, C]``."""

    def draw(
        self, canvas: TokenCanvas, true: Float[np.ndarray, "*S"], predicted: Float[np.ndarray, "*S"] | None
    ) -> None:
        """Draw the targets of a tubelet's hidden tokens, and the predictions beside them if there are any."""


OBJECTIVES: dict[str, tuple[Target, ...]] = {
    "pixel": (PIXEL,),
    "trajectory": (POSITION,),
    "hog": (HOG,),
    "mme": (POSITION, HOG),
}
"""Targets of each value of ``pretrain.objective``; the order is that of colours in reports.

Targets of one objective share their valid points, by which parts of a batch are weighted. The picture of predictions
shows the first one.
"""

TARGETS: dict[str, Target] = {target.name: target for targets in OBJECTIVES.values() for target in targets}


def objective_targets(objective: str) -> tuple[Target, ...]:
    """Targets of ``pretrain.objective``.

    Raises:
        ValueError: there is no such objective.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"pretrain.objective: {objective!r} is none of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[objective]


def target_weights(targets: Sequence[Target], weights: Mapping[str, float]) -> dict[str, float]:
    """Factor of each target's loss, from ``pretrain.weights`` or its default.

    Raises:
        ValueError: a weight is of no target.
    """
    unknown = sorted(weights.keys() - TARGETS.keys())
    if unknown:
        raise ValueError(f"pretrain.weights: {', '.join(unknown)} is none of {', '.join(TARGETS)}")
    return {target.name: weights.get(target.name, target.default_weight) for target in targets}


def luma_frames(targets: Sequence[Target], spec: TargetSpec) -> list[int]:
    """Raw frames, counted from the clip's first, whose brightness a loader reads."""
    return spec.dense_frames if any("luma" in target.inputs for target in targets) else spec.seen_frames


@torch.no_grad()
def compute_targets(targets: Sequence[Target], tokens: HiddenTokens) -> dict[str, tuple[Tensor, Tensor]]:
    """Values ``[B, M, *shape]`` and validity of each target by name; zero where not valid."""
    computed = {}
    for target in targets:
        values, valid = target.compute(tokens)
        expanded = valid.reshape(valid.shape + (1,) * (values.ndim - valid.ndim))
        computed[target.name] = values.masked_fill(~expanded, 0.0), valid
    return computed
