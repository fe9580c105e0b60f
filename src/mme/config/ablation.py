"""The section ``ablation`` of ``params.yaml``: objectives against each other under one budget."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from mme.config.base import Positive, PositiveFloat, Section
from mme.config.paths import RANDOM

SCRATCH = "scratch"
"""Contestant without pretraining beyond its start."""

AblationObjective = Annotated[str, Field(min_length=1)]
"""An objective of pretraining, or ``scratch`` for none."""


QUICK_PART = 3
"""A first look takes this part of the epochs."""


class Budget(Section):
    """Budget of each objective; all other values are those of the other sections.

    ``lrs`` and ``mask_ratios`` span the grid in which each objective finds its own by pretraining for
    ``search_epochs``; the grid of ``scratch`` are rates of finetuning, ``finetune_lrs``, None = ``lrs``.
    ``labels_per_class`` limits the labels that are finetuned on; None = all.

    Every objective starts from each of ``inits``; ``scratch`` is then those weights as they are, and so is each of
    ``only``. With ``folds`` the labelled videos are tested in so many parts, groups apart; None = the manifest's
    splits. Without ``finetune_epochs`` the encoders are measured frozen; ``finetuned`` names the contestants that are
    finetuned, with the first ``finetune_seeds`` seeds; None = all.
    """

    objectives: Annotated[tuple[AblationObjective, ...], Field(min_length=1)]
    inits: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    only: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    folds: Annotated[int, Field(ge=2)] | None
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    lrs: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    finetune_lrs: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] | None = None
    mask_ratios: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)]
    search_epochs: Positive
    epochs: Positive
    probe_every_epochs: Positive
    finetune_epochs: Positive | None
    finetuned: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    finetune_seeds: Positive | None = None
    labels_per_class: Positive | None

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name in ("objectives", "inits", "only", "seeds", "lrs", "finetune_lrs", "mask_ratios"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: {list(values)} name one twice")
        again = {RANDOM, *(self.inits if SCRATCH in self.objectives else ())} & set(self.only)
        if again:
            raise ValueError(
                f"only: {sorted(again)} are measured as they are anyway, by inits and the objective scratch"
            )
        return self

    def quick(self, lr: float, mask_ratio: float) -> Budget:
        """Return a budget for a first look: one seed, a third of the epochs, no search.

        Args:
            lr: learning rate of every objective.
            mask_ratio: mask ratio of every objective.
        """
        small = {
            "seeds": self.seeds[:1],
            "lrs": (lr,),
            "finetune_lrs": self.finetune_lrs and self.finetune_lrs[:1],
            "mask_ratios": (mask_ratio,),
            "epochs": max(1, self.epochs // QUICK_PART),
            "finetune_epochs": self.finetune_epochs and max(1, self.finetune_epochs // QUICK_PART),
        }
        return self.model_copy(update=small)
