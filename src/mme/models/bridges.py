"""Keys and shapes of other frameworks' encoders: Hugging Face's VideoMAE, and ``.pth`` files of VideoMAE and MME.

All are the same network as `VideoEncoder` with ``positions: flat``. What differs:

- the embedding is a convolution ``[D, 3, t, p, p]`` there and a matrix ``[D, 3*t*p*p]`` here;
- queries, keys and values are one matrix ``[3*D, D]`` here and in ``.pth`` files, three ``[D, D]`` in Hugging Face;
- the keys have no bias there. Here they have one, which shifts all scores of a query alike and so changes nothing: it
  is zero after conversion from there and dropped on conversion to there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mme.models.checkpoints import State, check_keys

_KINDS = ("weight", "bias")

# Layers of a block by their names here; in `.pth` files they have the same names.
_HF_LAYERS = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_PTH_LAYERS = {name: name for name in _HF_LAYERS}
_PTH_DECODER = ("encoder_to_decoder", "mask_token", "decoder")


@dataclass(frozen=True)
class _Attention:
    """Keys of a block's queries, keys and values in another framework; its biases may be absent."""

    weights: Sequence[str]
    query_bias: str
    value_bias: str


def encoder_from_hf(state: Mapping[str, Tensor], depth: int, source: str) -> State:
    """Convert the weights of transformers' ``VideoMAEModel``, without its ``layernorm``, to those of `VideoEncoder`.

    Args:
        state: without the prefix ``videomae.`` and without ``layernorm``.
        depth: number of layers.
        source: for error messages.

    Raises:
        StateError: keys are missing or unexpected. Biases of queries and values may be absent (``qv_bias: false``).
    """
    # The key's bias is never read: it changes nothing (see above).
    attentions = []
    for query, key, value in map(_hf_qkv, range(depth)):
        weights = [f"{name}.weight" for name in (query, key, value)]
        attentions.append(_Attention(weights, f"{query}.bias", f"{value}.bias"))
    return _converted(state, _hf_keys(depth), attentions, source)


def encoder_to_hf(state: Mapping[str, Tensor], depth: int, conv_shape: tuple[int, int, int, int, int]) -> State:
    """Convert the weights of `VideoEncoder` to those of ``VideoMAEModel``.

    Args:
        state: state of the encoder.
        depth: number of blocks.
        conv_shape: ``[D, 3, tubelet_frames, patch_size, patch_size]``.
    """
    keys = _hf_keys(depth)
    converted = {theirs: state[ours] for ours, theirs in keys.items()}
    converted[keys["embed.weight"]] = state["embed.weight"].reshape(conv_shape)  # [D, 3*t*p*p] -> [D, 3, t, p, p]

    # Split queries, keys and values, and drop the bias of the keys.
    for i in range(depth):
        for kind in _KINDS:
            parts = state[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)  # 3 of [D, D], or of [D]
            converted |= {f"{name}.{kind}": part for name, part in zip(_hf_qkv(i), parts, strict=True)}
        del converted[f"{_hf_qkv(i)[1]}.bias"]
    # Clones: views of one matrix share memory, which safetensors refuses to save.
    return {name: value.clone() for name, value in converted.items()}


def model_from_pth(state: Mapping[str, Tensor], source: str) -> tuple[State, bool]:
    """Convert a state dict of VideoMAE or MME.

    A pretraining state has its encoder under ``encoder.`` and a decoder, which is left out. A finetuned one has no
    prefix, and ``fc_norm`` and ``head``.

    Returns:
        Weights ``encoder.*`` and ``norm.*``, of a finetuned state also ``head.*``; and True if it is finetuned.

    Raises:
        StateError: keys are missing or unexpected.
    """
    # Only a finetuned state has the encoder at its top.
    finetuned = "patch_embed.proj.weight" in state
    if finetuned:
        heads = {"norm": "fc_norm", "head": "head"}
        blocks = _block_names(state, "blocks.")
        embedding = "patch_embed.proj"
    else:
        state = {key: value for key, value in state.items() if key.split(".")[0] not in _PTH_DECODER}
        heads = {"norm": "encoder.norm"}
        blocks = _block_names(state, "encoder.blocks.")
        embedding = "encoder.patch_embed.proj"

    keys = _keys(embedding, blocks, _PTH_LAYERS, "encoder.")
    keys |= {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in heads.items() for kind in _KINDS}
    attentions = [
        _Attention([f"{block}.attn.qkv.weight"], f"{block}.attn.q_bias", f"{block}.attn.v_bias") for block in blocks
    ]
    return _converted(state, keys, attentions, source, "encoder."), finetuned


def renamed(state: Mapping[str, Tensor], modules: Mapping[str, str]) -> State:
    """Return weight and bias of some modules under other names (old: new)."""
    return {f"{new}.{kind}": state[f"{old}.{kind}"] for old, new in modules.items() for kind in _KINDS}


def _converted(
    state: Mapping[str, Tensor],
    keys: Mapping[str, str],
    attentions: Sequence[_Attention],
    source: str,
    prefix: str = "",
) -> State:
    """Rename the ``keys`` (ours: theirs), flatten the embedding, and join queries, keys and values of each block."""
    # Report all keys at fault at once, before anything is converted.
    required = {*keys.values(), *(name for attention in attentions for name in attention.weights)}
    optional = {name for attention in attentions for name in (attention.query_bias, attention.value_bias)}
    check_keys(source, required - state.keys(), state.keys() - required - optional)

    converted = {ours: state[theirs] for ours, theirs in keys.items()}
    converted[f"{prefix}embed.weight"] = converted[f"{prefix}embed.weight"].flatten(1)  # over (channel, frame, y, x)

    # One matrix of queries, keys and values; absent biases are zero.
    for i, attention in enumerate(attentions):
        weight = torch.cat([state[name] for name in attention.weights])  # [3*D, D]
        zero = torch.zeros(len(weight) // 3, dtype=weight.dtype)  # [D]
        biases = [state.get(attention.query_bias, zero), zero, state.get(attention.value_bias, zero)]
        converted[f"{prefix}blocks.{i}.attn.qkv.weight"] = weight
        converted[f"{prefix}blocks.{i}.attn.qkv.bias"] = torch.cat(biases)
    return converted


def _keys(embedding: str, blocks: Sequence[str], layers: Mapping[str, str], prefix: str = "") -> dict[str, str]:
    """Return the keys of another framework by those of `VideoEncoder`, without queries, keys and values."""
    modules = {"embed": embedding}
    for i, block in enumerate(blocks):
        modules |= {f"blocks.{i}.{ours}": f"{block}.{theirs}" for ours, theirs in layers.items()}
    return {f"{prefix}{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in modules.items() for kind in _KINDS}


def _hf_keys(depth: int) -> dict[str, str]:
    layers = [f"encoder.layer.{i}" for i in range(depth)]
    return _keys("embeddings.patch_embeddings.projection", layers, _HF_LAYERS)


def _hf_qkv(i: int) -> list[str]:
    return [f"encoder.layer.{i}.attention.attention.{name}" for name in ("query", "key", "value")]


def _block_names(state: Mapping[str, Tensor], start: str) -> list[str]:
    """Name the blocks up to the highest number, at least one, so that a gap is listed as missing."""
    numbers = {key.removeprefix(start).split(".")[0] for key in state if key.startswith(start)}
    last = max((int(number) for number in numbers if number.isdecimal()), default=0)
    return [f"{start}{i}" for i in range(last + 1)]
