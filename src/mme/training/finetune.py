"""Finetuning: action recognition with the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback
from sklearn.utils.class_weight import compute_class_weight
from timm.data.mixup import Mixup
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import Tensor
from torch.nn import functional
from torchmetrics.classification import MulticlassConfusionMatrix

from mme.config import Params
from mme.config.paths import RANDOM
from mme.data.labelled.clips import LabelledDataset
from mme.manifest import Manifest
from mme.models.checkpoints import fill_module, read_state
from mme.models.classifier import MotionClassifier
from mme.models.encoder import model_input
from mme.training.loop.callbacks import Curves, LogMetrics, Throughput
from mme.training.loop.loaders import training_loader, validation_loader
from mme.training.loop.module import Batch, TrainingModule
from mme.training.loop.trainer import build_trainer, fit, rank_of


class FinetuneModule(TrainingModule):
    """Classifier with mixup, cutmix, label smoothing and layer-wise learning rates.

    Attributes:
        best: validation accuracy, number and weights of the best epoch (the later of equals); part of checkpoints.
            The accuracy is the mean over classes if ``finetune.balance`` is on.

    Args:
        params: all parameters.
        num_classes: labels.
        steps_per_epoch: optimiser steps per epoch.
        class_weights: weights ``[K]`` of the classes in the loss; None for equal ones.
    """

    model: MotionClassifier
    class_weights: Tensor | None

    def __init__(
        self, params: Params, num_classes: int, steps_per_epoch: int, class_weights: Tensor | None = None
    ) -> None:
        finetune = params.finetune
        model = MotionClassifier(params.model, params.clip, num_classes, finetune.drop_path, finetune.pool)
        super().__init__(finetune, params.runtime, model, steps_per_epoch, params.seed)
        self.params = params
        self.layer_decay = 1.0 if finetune.init == RANDOM else finetune.layer_decay
        if self.layer_decay == 0:
            model.encoder.requires_grad_(False)  # it would learn at rate 0: spare its gradients
        self.mixup = None
        if finetune.mixup or finetune.cutmix:
            self.mixup = Mixup(  # type: ignore[no-untyped-call]  # timm
                mixup_alpha=finetune.mixup,
                cutmix_alpha=finetune.cutmix,
                label_smoothing=finetune.label_smoothing,
                num_classes=num_classes,
            )
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.confusion = None if finetune.balance == "none" else MulticlassConfusionMatrix(num_classes)
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": -1, "state": {}}

    def prepare(self, batch: Batch) -> Batch:
        """Return normalised, mixed clips, and the ``target`` of the loss besides the ``label``."""
        clip, label = model_input(batch["clip"], self.params.clip), batch["label"]
        target = label
        if self.mixup is not None and len(clip) % 2 == 0:  # timm mixes pairs
            clip, target = self.mixup(clip.flatten(1, 2), label)
            clip = clip.unflatten(1, (3, -1))
        return {"clip": clip, "label": label, "target": target}

    def num_points(self, part: Batch) -> Tensor:
        """Count the clips."""
        return torch.tensor(len(part["clip"]), device=self.device)

    def losses(self, part: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy, weighted by class if there are weights, and the share of correct clips."""
        target = part["target"]
        smoothing = 0.0 if target.is_floating_point() else self.params.finetune.label_smoothing  # timm's are smoothed
        logits = self.model(part["clip"])
        if self.class_weights is None:
            loss = functional.cross_entropy(logits, target, label_smoothing=smoothing)
        else:  # PyTorch's own mean would divide by the weights of this part, so that parts and processes weighed more
            total = functional.cross_entropy(
                logits, target, self.class_weights, label_smoothing=smoothing, reduction="sum"
            )
            loss = total / len(logits)
        return {"loss": loss, "top1": (logits.argmax(dim=1) == part["label"]).float().mean()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Record loss and accuracy on the centre view."""
        logits = self.eval_model(model_input(batch["clip"], self.params.clip))
        loss = functional.cross_entropy(logits, batch["label"])
        hits = (logits.argmax(dim=1) == batch["label"]).float().mean()
        self.record("val", {"loss": loss, "top1": hits}, len(logits))
        if self.confusion is not None:
            self.confusion.update(logits, batch["label"])

    def on_validation_epoch_end(self) -> None:
        """Keep the best weights."""
        if self.confusion is None:
            accuracy = float(self.trainer.callback_metrics["val/top1"])
        else:
            counts = self.confusion.compute().double()  # [K, K] of all processes, rows are the true labels
            self.confusion.reset()
            known = counts.sum(dim=1) > 0
            accuracy = float((counts.diagonal()[known] / counts.sum(dim=1)[known]).mean())
            self.log("val/mean_class_accuracy", accuracy)  # the same in all processes
        if accuracy >= self.best["accuracy"]:
            state = {name: value.detach().cpu().clone() for name, value in self.eval_model.state_dict().items()}
            self.best = {"accuracy": accuracy, "epoch": self.current_epoch, "state": state}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the best weights."""
        checkpoint["best"] = self.best

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the best weights of an interrupted run."""
        self.best = checkpoint["best"]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups for AdamW; a pretrained encoder's learning rates fall towards the input, down to none."""
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            self.model, self.params.finetune.weight_decay, layer_decay=self.layer_decay
        )
        return groups


def class_weights(training: LabelledDataset) -> Tensor:
    """Return scikit-learn's balanced weights ``[K]``: inverse to a class's share, their mean over the videos is 1.

    A video counts half for its label and half for that of its mirror image; the weight of a label without videos is 0.
    """
    seen = np.array([label for own in training.classes for label in (own, training.mirrored[own])])
    weights = np.zeros(len(training.labels))
    present = np.unique(seen)
    weights[present] = compute_class_weight("balanced", classes=present, y=seen)
    return torch.from_numpy(weights).float()


def load_encoder(path: Path, classifier: MotionClassifier) -> None:
    """Load encoder and norm of a pretrained model.

    Raises:
        ValueError: they are missing or have other shapes; the message names the file and the keys.
    """
    state = read_state(path)
    fill_module(classifier.encoder, state, path, prefix="encoder.")
    fill_module(classifier.norm, state, path, prefix="norm.")


def run_finetuning(
    params: Params,
    manifest: Manifest,
    start: Path | None,
    work: Path,
    log_metrics: LogMetrics,
    callbacks: Sequence[Callback] = (),
) -> tuple[FinetuneModule, Curves]:
    """Finetune on ``train``; resume from ``last.ckpt`` in ``work`` if an interrupted run left one.

    Args:
        params: all parameters.
        manifest: videos; the best epoch is chosen on those of ``val``.
        start: weights of a pretrained model, or of any with this encoder; None for random ones, as ``finetune.init``
            says.
        work: folder for checkpoints and ``curves.csv``; only runs with equal parameters and data may share one.
        log_metrics: receives the metrics of each epoch.
        callbacks: additional callbacks of the trainer.

    Returns:
        The module, whose model has the weights of the best epoch (``module.best["epoch"]``), and the metrics of each
        epoch.

    Raises:
        ValueError: a split has no labelled videos, or ``start`` does not fit ``params.model``.
    """
    if start is None:  # layers of random weights learn alike
        params = params.model_copy(update={"finetune": params.finetune.model_copy(update={"init": RANDOM})})
    finetune, seed = params.finetune, params.seed
    curves = Curves(work / "curves.csv", log_metrics)
    trainer = build_trainer(work, params.runtime, finetune, [Throughput(log_metrics), curves, *callbacks])
    cache_mb = params.runtime.frame_cache_mb
    training = LabelledDataset(manifest, "train", params.clip, finetune, seed=seed, training=True, cache_mb=cache_mb)
    validation = LabelledDataset(manifest, "val", params.clip, finetune, seed=seed, training=False)
    classes = training.classes if finetune.balance == "sampling" else None
    batches = training_loader(training, finetune, params.runtime, seed, rank_of(trainer), finetune.repeats, classes)
    weights = class_weights(training) if finetune.balance == "loss" else None
    torch.manual_seed(seed)
    module = FinetuneModule(params, len(manifest.labels), len(batches), weights)
    if start is not None:
        load_encoder(start, module.model)
        module.eval_model.load_state_dict(module.model.state_dict())
    fit(trainer, module, batches, validation_loader(validation, finetune.batch_size, rank_of(trainer)), work)
    module.model.load_state_dict(module.best["state"])
    return module, curves
