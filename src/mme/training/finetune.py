"""Action recognition on top of the encoder, as a Lightning module."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from timm.data.mixup import Mixup
from torch import Tensor
from torch.nn import functional

from mme.config import Params
from mme.models.classifier import MotionClassifier
from mme.training.loop import model_input, seed_step
from mme.training.optim import encoder_layer, parameter_groups, schedule


class FinetuneModule(lightning.LightningModule):
    """The classifier with mixup, cutmix, label smoothing and layer-wise decay.

    The weights of the best epoch by validation accuracy (the later of equals) are kept in ``best`` and in checkpoints.
    """

    def __init__(self, params: Params, num_classes: int, steps_per_epoch: int) -> None:
        super().__init__()
        self.params, self.steps_per_epoch = params, steps_per_epoch
        finetune = params.finetune
        self.model = MotionClassifier(params.model, params.clip, num_classes, finetune.drop_path)
        self.mixup = None
        if finetune.mixup or finetune.cutmix:
            self.mixup = Mixup(  # type: ignore[no-untyped-call]  # timm
                mixup_alpha=finetune.mixup,
                cutmix_alpha=finetune.cutmix,
                label_smoothing=finetune.label_smoothing,
                num_classes=num_classes,
            )
        self.best: dict[str, Any] = {"top1": -1.0, "epoch": -1, "state": {}}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step."""
        seed_step(self.params.run.seed, self.global_step)
        clip, label = model_input(batch["clip"], self.params.clip), batch["label"]
        smoothing = self.params.finetune.label_smoothing
        target = label
        if self.mixup is not None and len(clip) % 2 == 0:  # timm mixes pairs
            clip, target = self.mixup(clip.flatten(1, 2), label)
            clip = clip.unflatten(1, (3, -1))
            smoothing = 0.0  # timm's targets are smoothed already
        logits = self.model(clip)
        loss = functional.cross_entropy(logits, target, label_smoothing=smoothing)
        hits = (logits.argmax(dim=1) == label).float().mean()
        self.log_dict({"train/loss": loss, "train/top1": hits}, on_step=False, on_epoch=True, batch_size=len(label))
        self.log("loss", loss.detach(), prog_bar=True, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on the centre view."""
        logits = self.model(model_input(batch["clip"], self.params.clip))
        loss = functional.cross_entropy(logits, batch["label"])
        hits = (logits.argmax(dim=1) == batch["label"]).float().mean()
        self.log("val/loss", loss, batch_size=len(logits))
        self.log("val/top1", hits, batch_size=len(logits), prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Keep the best weights."""
        top1 = float(self.trainer.callback_metrics["val/top1"])
        if top1 >= self.best["top1"]:
            state = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self.best = {"top1": top1, "epoch": self.current_epoch, "state": state}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the best weights along."""
        checkpoint["best"] = self.best

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the best weights of an interrupted run."""
        self.best = checkpoint["best"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with layer-wise decay, warm-up and cosine by the step."""
        finetune, depth = self.params.finetune, self.params.model.depth
        groups = parameter_groups(
            self.model.named_parameters(),
            finetune.weight_decay,
            layer_of=lambda name: encoder_layer(name, depth),
            num_layers=depth + 1,
            layer_decay=finetune.layer_decay if finetune.init == "pretrained" else 1.0,
        )
        optimizer = torch.optim.AdamW(groups, lr=finetune.lr, betas=finetune.betas)
        scheduler = schedule(
            optimizer,
            finetune.lr,
            finetune.warmup_epochs * self.steps_per_epoch,
            finetune.epochs * self.steps_per_epoch,
            finetune.min_lr_ratio,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
