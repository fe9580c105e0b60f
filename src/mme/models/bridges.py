"""Keys and shapes of other frameworks' encoders: Hugging Face's VideoMAE, and ``.pth`` files of VideoMAE and MME.

All are the same network as `VideoEncoder` with ``positions: flat``. What differs:

- the embedding is a convolution ``[D, 3, t, p, p]`` there and a matrix ``[D, 3*t*p*p]`` here;
- queries, keys and values are one matrix ``[3*D, D]`` here and in ``.pth`` files, three ``[D, D]`` in Hugging Face;
- the keys have no bias there. Here they have one, which shifts all scores of a query alike and so changes nothing: it
  is zero after conversion from there and dropped on conversion to there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mme.models.checkpoints import State, check_keys

_KINDS = ("weight", "bias")

_HF_LAYER = {  # ours -> Hugging Face's
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_PTH_LAYER = tuple(_HF_LAYER)  # the same names as ours
_HF_QKV = ("query", "key", "value")
_PTH_DECODER = ("encoder_to_decoder", "mask_token", "decoder")


def encoder_from_hf(state: Mapping[str, Tensor], depth: int, source: str) -> State:
    """Convert the weights of transformers' ``VideoMAEModel``, without its ``layernorm``, to those of `VideoEncoder`.

    Args:
        state: without the prefix ``videomae.`` and without ``layernorm``.
        depth: number of layers.
        source: for error messages.

    Raises:
        StateError: keys are missing or unexpected. Biases of queries and values may be absent (``qv_bias: false``).
    """
    rest = dict(state)
    missing: list[str] = []
    encoder = _embedding(_take(rest, "embeddings.patch_embeddings.projection", missing))
    for i in range(depth):
        layer = f"encoder.layer.{i}"
        names = [f"{layer}.attention.attention.{name}" for name in _HF_QKV]
        weights = [rest.pop(f"{name}.weight", None) for name in names]  # 3 of [D, D]
        missing += [f"{name}.weight" for name, weight in zip(names, weights, strict=True) if weight is None]
        found = [weight for weight in weights if weight is not None]
        query_bias = rest.pop(f"{names[0]}.bias", None)  # [D]
        value_bias = rest.pop(f"{names[2]}.bias", None)  # [D]
        if len(found) == len(_HF_QKV):
            encoder |= _joined_qkv(f"blocks.{i}", torch.cat(found), query_bias, value_bias)
        for ours, theirs in _HF_LAYER.items():
            encoder |= _renamed(_take(rest, f"{layer}.{theirs}", missing), f"blocks.{i}.{ours}")
    check_keys(source, missing, rest)
    return encoder


def encoder_to_hf(state: Mapping[str, Tensor], depth: int, conv_shape: tuple[int, int, int, int, int]) -> State:
    """Convert the weights of `VideoEncoder` to those of ``VideoMAEModel``.

    Args:
        state: state of the encoder.
        depth: number of blocks.
        conv_shape: ``[D, 3, tubelet_frames, patch_size, patch_size]``.
    """
    converted = {
        "embeddings.patch_embeddings.projection.weight": state["embed.weight"].reshape(conv_shape),
        "embeddings.patch_embeddings.projection.bias": state["embed.bias"],
    }
    for i in range(depth):
        block = f"blocks.{i}"
        layer = f"encoder.layer.{i}"
        weights = state[f"{block}.attn.qkv.weight"].chunk(3)  # 3 of [D, D]
        biases = state[f"{block}.attn.qkv.bias"].chunk(3)  # 3 of [D]
        for name, weight, bias in zip(_HF_QKV, weights, biases, strict=True):
            converted[f"{layer}.attention.attention.{name}.weight"] = weight
            if name != "key":
                converted[f"{layer}.attention.attention.{name}.bias"] = bias
        for ours, theirs in _HF_LAYER.items():
            converted |= {f"{layer}.{theirs}.{kind}": state[f"{block}.{ours}.{kind}"] for kind in _KINDS}
    return {name: value.clone() for name, value in converted.items()}


def model_from_pth(state: Mapping[str, Tensor], source: str) -> tuple[State, bool]:
    """Convert a state dict of VideoMAE or MME.

    A pretraining state has its encoder under ``encoder.`` and a decoder, which is left out. A finetuned one has no
    prefix, and ``fc_norm`` and ``head``.

    Returns:
        Weights ``encoder.*`` and ``norm.*``, of a finetuned state also ``head.*``; and whether it is finetuned.

    Raises:
        StateError: keys are missing or unexpected.
    """
    finetuned = "patch_embed.proj.weight" in state
    prefix = "" if finetuned else "encoder."
    rest = {key: value for key, value in state.items() if finetuned or key.split(".")[0] not in _PTH_DECODER}
    missing: list[str] = []
    encoder = _embedding(_take(rest, f"{prefix}patch_embed.proj", missing))
    for i in range(_depth(state, prefix)):
        block = f"{prefix}blocks.{i}"
        weight = rest.pop(f"{block}.attn.qkv.weight", None)  # [3*D, D]
        query_bias = rest.pop(f"{block}.attn.q_bias", None)  # [D]
        value_bias = rest.pop(f"{block}.attn.v_bias", None)  # [D]
        if weight is None:
            missing.append(f"{block}.attn.qkv.weight")
        else:
            encoder |= _joined_qkv(f"blocks.{i}", weight, query_bias, value_bias)
        for name in _PTH_LAYER:
            encoder |= _renamed(_take(rest, f"{block}.{name}", missing), f"blocks.{i}.{name}")

    model = {f"encoder.{name}": value for name, value in encoder.items()}
    model |= _renamed(_take(rest, "fc_norm" if finetuned else "encoder.norm", missing), "norm")
    if finetuned:
        model |= _renamed(_take(rest, "head", missing), "head")
    check_keys(source, missing, rest)
    return model, finetuned


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    """Blocks up to the highest number, at least one, so that a gap is listed as missing."""
    start = f"{prefix}blocks."
    numbers = {key.removeprefix(start).split(".")[0] for key in state if key.startswith(start)}
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)


def _take(state: State, name: str, missing: list[str]) -> State:
    """Remove weight and bias of ``name`` from a state; add their keys to ``missing`` if they are not there."""
    found = {kind: state.pop(f"{name}.{kind}", None) for kind in _KINDS}
    missing += [f"{name}.{kind}" for kind, value in found.items() if value is None]
    return {kind: value for kind, value in found.items() if value is not None}


def _renamed(values: State, name: str) -> State:
    return {f"{name}.{kind}": value for kind, value in values.items()}


def _embedding(values: State) -> State:
    """Turn a convolution's weight ``[D, 3, t, p, p]`` into the matrix ``[D, 3*t*p*p]`` over (channel, frame, y, x)."""
    return {f"embed.{kind}": value.flatten(1) if kind == "weight" else value for kind, value in values.items()}


def _joined_qkv(block: str, weight: Tensor, query_bias: Tensor | None, value_bias: Tensor | None) -> State:
    """Join queries, keys and values, weight ``[3*D, D]``, to one layer; absent biases are zero."""
    zero = torch.zeros(len(weight) // 3, dtype=weight.dtype)  # [D]
    query = zero if query_bias is None else query_bias
    value = zero if value_bias is None else value_bias
    return {f"{block}.attn.qkv.weight": weight, f"{block}.attn.qkv.bias": torch.cat([query, zero, value])}
