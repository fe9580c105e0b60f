"""AdamW with parameter groups, layer-wise decay, warm-up and cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    layer_of: Callable[[str], int] | None = None,
    num_layers: int = 0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups for AdamW: no weight decay on vectors (biases, norms, the mask token), a smaller rate near the input.

    Args:
        parameters: named parameters; frozen ones are left out.
        weight_decay: for matrices.
        layer_of: layer of a parameter, 0 = nearest to the input; None = one layer.
        num_layers: the index of the last layer, whose rate is the full one.
        layer_decay: factor a layer (Bao et al. 2022, BEiT).

    Returns:
        Groups with ``params``, ``weight_decay`` and ``lr_scale``, in order of their first parameter.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        decay = weight_decay if parameter.ndim > 1 else 0.0
        scale = 1.0 if layer_of is None else layer_decay ** (num_layers - layer_of(name))
        group = groups.setdefault((decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(parameter)
    return list(groups.values())


def encoder_layer(name: str, depth: int) -> int:
    """Layer of a classifier's parameter: the embedding 0, block ``i`` is ``i + 1``, norm and head ``depth + 1``."""
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return 0 if name.startswith("encoder.") else depth + 1


def warmup_cosine(step: int, warmup_steps: float, total_steps: int, min_ratio: float) -> float:
    """Factor of the learning rate: linear from 0 to 1, then half a cosine from 1 down to ``min_ratio``."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def schedule(
    optimizer: torch.optim.Optimizer, lr: float, warmup_steps: float, total_steps: int, min_ratio: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Step-wise warm-up and cosine; each group's rate is ``lr`` times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = lr * group["lr_scale"]
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, warmup_steps, total_steps, min_ratio)
    )
