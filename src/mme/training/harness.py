"""The two training runs of this project, for whoever wants to train: the stages, the sweep, the ablation."""

from mme.training.finetune import run_finetuning
from mme.training.pretrain import run_pretraining

__all__ = ["run_finetuning", "run_pretraining"]
