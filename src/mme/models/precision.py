"""Computing in bf16 on CPUs: which are made for it, and the attention that suits them."""

from __future__ import annotations

import torch
from timm.layers import Attention, AttentionPoolLatent  # type: ignore[attr-defined]
from torch import nn


def has_bf16() -> bool:
    """Return whether this processor has instructions for bf16; without them it takes several times as long."""
    processor = torch.cpu.get_capabilities()
    return bool(processor.get("avx512_bf16") or processor.get("bf16"))  # of x86, of ARM


def unfuse_attention(model: nn.Module) -> None:
    """Let blocks and attentive pooling compute attention by two matrix products and a softmax.

    On a CPU the backward pass of PyTorch's fused attention in bf16 takes two to six times as long as these; they keep
    N x N weights per head, where N are the tokens.
    """
    for module in model.modules():
        if isinstance(module, Attention | AttentionPoolLatent):
            module.fused_attn = False  # type: ignore[misc]  # final for TorchScript alone
