"""Encoders of other frameworks, key by key: Hugging Face's VideoMAE and the ``.pth`` files of VideoMAE and MME.

All three are the same network as `VideoEncoder` with ``positions: flat``. What differs is how weights are called and
cut: the embedding is a convolution or a matrix over the same values, and queries, keys and values are one matrix or
three. Their keys have no bias; one of ours changes nothing, since it shifts all scores of a query alike, so it is zero
on the way in and left out on the way out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

_SHARED = ("weight", "bias")
_HF_LAYER = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_PTH_LAYER = ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_HF_QKV = ("query", "key", "value")
_PTH_DECODER = ("encoder_to_decoder", "mask_token", "decoder")


class KeysError(ValueError):
    """A state that is not the one expected; the message lists every key that is missing or unexpected."""

    def __init__(self, source: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
        faults = [*(f"missing {key}" for key in sorted(missing)), *(f"unexpected {key}" for key in sorted(unexpected))]
        super().__init__(f"{source}: " + "; ".join(faults))


def encoder_from_hf(state: Mapping[str, Tensor], depth: int, source: str) -> State:
    """Weights of `VideoEncoder` from those of transformers' ``VideoMAEModel``, its ``layernorm`` apart.

    Args:
        state: without the prefix ``videomae.`` and without ``layernorm``.
        depth: number of layers.
        source: for error messages.

    Raises:
        KeysError: keys are missing or unexpected; biases of queries and values may be absent (``qv_bias: false``).
    """
    left = dict(state)
    missing: list[str] = []
    encoder = _embedding(_take(left, "embeddings.patch_embeddings.projection", missing))
    for i in range(depth):
        theirs, ours = f"encoder.layer.{i}", f"blocks.{i}"
        parts = [left.pop(f"{theirs}.attention.attention.{name}.weight", None) for name in _HF_QKV]
        biases = [left.pop(f"{theirs}.attention.attention.{name}.bias", None) for name in ("query", "value")]
        missing += [
            f"{theirs}.attention.attention.{name}.weight"
            for name, part in zip(_HF_QKV, parts, strict=True)
            if part is None
        ]
        weights = [part for part in parts if part is not None]
        if len(weights) == len(_HF_QKV):
            encoder |= _joined(ours, torch.cat(weights), *biases)
        for name, other in _HF_LAYER.items():
            encoder |= _renamed(_take(left, f"{theirs}.{other}", missing), f"{ours}.{name}")
    if missing or left:
        raise KeysError(source, missing, left)
    return encoder


def encoder_to_hf(state: Mapping[str, Tensor], depth: int, conv_shape: tuple[int, int, int, int, int]) -> State:
    """Weights of ``VideoMAEModel`` from those of `VideoEncoder`.

    Args:
        state: of the encoder.
        depth: number of blocks.
        conv_shape: [D, 3, tubelet_frames, patch_size, patch_size].
    """
    theirs = {
        "embeddings.patch_embeddings.projection.weight": state["embed.weight"].reshape(conv_shape),
        "embeddings.patch_embeddings.projection.bias": state["embed.bias"],
    }
    for i in range(depth):
        block, layer = f"blocks.{i}", f"encoder.layer.{i}"
        weights, biases = state[f"{block}.attn.qkv.weight"].chunk(3), state[f"{block}.attn.qkv.bias"].chunk(3)
        for name, weight, bias in zip(_HF_QKV, weights, biases, strict=True):
            theirs[f"{layer}.attention.attention.{name}.weight"] = weight
            if name != "key":
                theirs[f"{layer}.attention.attention.{name}.bias"] = bias
        for name, other in _HF_LAYER.items():
            theirs |= {f"{layer}.{other}.{kind}": state[f"{block}.{name}.{kind}"] for kind in _SHARED}
    return {name: value.clone() for name, value in theirs.items()}


def model_from_pth(state: Mapping[str, Tensor], source: str) -> tuple[State, bool]:
    """Weights of ours from a state dict of VideoMAE or MME.

    A pretraining state has its encoder under ``encoder.`` and a decoder, which is left out. A finetuned one has no
    prefix, and ``fc_norm`` and ``head``.

    Returns:
        Weights ``encoder.*`` and ``norm.*``, of a finetuned state also ``head.*``; and whether it is finetuned.

    Raises:
        KeysError: keys are missing or unexpected.
    """
    finetuned = "patch_embed.proj.weight" in state
    prefix = "" if finetuned else "encoder."
    left = {key: value for key, value in state.items() if finetuned or not _is_decoder(key)}
    missing: list[str] = []
    encoder = _embedding(_take(left, f"{prefix}patch_embed.proj", missing))
    for i in range(_depth(state, prefix)):
        theirs, ours = f"{prefix}blocks.{i}", f"blocks.{i}"
        parts = [left.pop(f"{theirs}.attn.{name}", None) for name in ("qkv.weight", "q_bias", "v_bias")]
        if parts[0] is None:
            missing.append(f"{theirs}.attn.qkv.weight")
        else:
            encoder |= _joined(ours, parts[0], parts[1], parts[2])
        for name in _PTH_LAYER:
            encoder |= _renamed(_take(left, f"{theirs}.{name}", missing), f"{ours}.{name}")
    model = {f"encoder.{name}": value for name, value in encoder.items()}
    model |= _renamed(_take(left, "fc_norm" if finetuned else "encoder.norm", missing), "norm")
    if finetuned:
        model |= _renamed(_take(left, "head", missing), "head")
    if missing or left:
        raise KeysError(source, missing, left)
    return model, finetuned


def _is_decoder(key: str) -> bool:
    return key.split(".", maxsplit=1)[0] in _PTH_DECODER


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    """Blocks up to the highest number, at least one, so that a gap is listed as missing."""
    start = f"{prefix}blocks."
    numbers = {key.removeprefix(start).split(".")[0] for key in state if key.startswith(start)}
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)


def _take(state: State, name: str, missing: list[str]) -> State:
    """Remove weight and bias of ``name`` from a state; what is not there is noted."""
    found = {kind: state.pop(f"{name}.{kind}", None) for kind in _SHARED}
    missing += [f"{name}.{kind}" for kind, value in found.items() if value is None]
    return {kind: value for kind, value in found.items() if value is not None}


def _renamed(values: State, name: str) -> State:
    return {f"{name}.{kind}": value for kind, value in values.items()}


def _embedding(values: State) -> State:
    """A convolution's weight [D, 3, t, p, p] as the matrix over (channel, frame, y, x)."""
    return {f"embed.{kind}": value.flatten(1) if kind == "weight" else value for kind, value in values.items()}


def _joined(block: str, weight: Tensor, query_bias: Tensor | None, value_bias: Tensor | None) -> State:
    """Queries, keys and values as one layer; absent biases are zero."""
    zero = torch.zeros(len(weight) // 3, dtype=weight.dtype)
    parts = [zero if query_bias is None else query_bias, zero, zero if value_bias is None else value_bias]
    return {f"{block}.attn.qkv.weight": weight, f"{block}.attn.qkv.bias": torch.cat(parts)}
