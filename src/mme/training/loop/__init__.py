"""The training loop that pretraining and finetuning share: module, trainer, sampler, optimiser."""
