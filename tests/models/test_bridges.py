from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mme.models.bridges import encoder_from_hf, encoder_to_hf, model_from_pth
from mme.models.checkpoints import State, StateError

DIM, DEPTH, PATCH, TUBELET = 16, 2, 4, 2
CONV = (DIM, 3, TUBELET, PATCH, PATCH)


def pth_state(finetuned: bool, in_lists: bool = False) -> State:
    """A state dict with the published names; MME keeps what follows the encoder in lists."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def linear(name: str, rows: int, columns: int) -> State:
        return {f"{name}.weight": draw(rows, columns), f"{name}.bias": draw(rows)}

    def vector(name: str) -> State:
        return {f"{name}.weight": draw(DIM), f"{name}.bias": draw(DIM)}

    prefix = "" if finetuned else "encoder."
    state = {f"{prefix}patch_embed.proj.weight": draw(*CONV), f"{prefix}patch_embed.proj.bias": draw(DIM)}
    for i in range(DEPTH):
        block = f"{prefix}blocks.{i}"
        state |= {f"{block}.attn.q_bias": draw(DIM), f"{block}.attn.v_bias": draw(DIM)}
        state |= {f"{block}.attn.qkv.weight": draw(3 * DIM, DIM)}
        state |= vector(f"{block}.norm1") | vector(f"{block}.norm2") | linear(f"{block}.attn.proj", DIM, DIM)
        state |= linear(f"{block}.mlp.fc1", 4 * DIM, DIM) | linear(f"{block}.mlp.fc2", DIM, 4 * DIM)
    if finetuned:
        return state | vector("fc_norm") | linear("head", 5, DIM)
    state |= vector("encoder.norm") | {"mask_token": draw(1, 1, 8)}
    if in_lists:
        heads = linear("decoder.0.head.0.0", 8, 8) | linear("decoder.0.head.0.2", 4, 8)
        return state | {"encoder_to_decoder.0.weight": draw(8, DIM), "decoder.0.blocks.0.norm1.weight": draw(8)} | heads
    return state | {"encoder_to_decoder.weight": draw(8, DIM), "decoder.blocks.0.norm1.weight": draw(8)}


@pytest.mark.parametrize("in_lists", [False, True])
def test_a_pretraining_state_gives_encoder_and_norm(in_lists: bool) -> None:
    foreign = pth_state(finetuned=False, in_lists=in_lists)
    state, finetuned = model_from_pth(foreign, "x.pth")
    assert not finetuned
    assert {key.split(".")[0] for key in state} == {"encoder", "norm"}
    bias = state["encoder.blocks.1.attn.qkv.bias"]
    torch.testing.assert_close(bias[:DIM], foreign["encoder.blocks.1.attn.q_bias"])
    assert not bias[DIM : 2 * DIM].any()
    torch.testing.assert_close(bias[2 * DIM :], foreign["encoder.blocks.1.attn.v_bias"])
    torch.testing.assert_close(state["norm.weight"], foreign["encoder.norm.weight"])


def test_a_finetuned_state_gives_a_classifier() -> None:
    foreign = pth_state(finetuned=True)
    state, finetuned = model_from_pth(foreign, "x.pth")
    assert finetuned
    torch.testing.assert_close(state["norm.bias"], foreign["fc_norm.bias"])
    torch.testing.assert_close(state["head.weight"], foreign["head.weight"])


@pytest.mark.parametrize("finetuned", [False, True])
def test_missing_and_unexpected_keys_are_all_listed(finetuned: bool) -> None:
    prefix = "" if finetuned else "encoder."
    foreign = pth_state(finetuned)
    gone = [f"{prefix}blocks.0.attn.qkv.weight", f"{prefix}blocks.1.mlp.fc2.bias"]
    for key in gone:
        del foreign[key]
    foreign |= {f"{prefix}pos_embed": torch.zeros(1), f"{prefix}blocks.0.gamma_1": torch.zeros(1)}
    with pytest.raises(StateError) as caught:
        model_from_pth(foreign, "x.pth")
    assert str(caught.value) == "x.pth: weights do not fit the model: " + "; ".join(
        [*(f"missing {key}" for key in gone), f"unexpected {prefix}blocks.0.gamma_1", f"unexpected {prefix}pos_embed"]
    )


def test_a_gap_in_the_blocks_is_listed() -> None:
    foreign = {key.replace("blocks.1.", "blocks.2."): value for key, value in pth_state(finetuned=True).items()}
    with pytest.raises(StateError, match=r"missing blocks\.1\.attn\.proj\.bias"):
        model_from_pth(foreign, "x.pth")


def test_there_and_back_changes_nothing_but_the_bias_of_keys() -> None:
    state = {
        key.removeprefix("encoder."): value
        for key, value in model_from_pth(pth_state(finetuned=True), "")[0].items()
        if key.startswith("encoder.")
    }
    theirs = encoder_to_hf(state, DEPTH, CONV)
    assert not [key for key in theirs if key.endswith("key.bias")]
    again = encoder_from_hf(theirs, DEPTH, "folder")
    assert again.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(again[key], value, rtol=0, atol=0)
    del theirs["encoder.layer.1.attention.attention.value.weight"]
    theirs["cls_token"] = torch.zeros(1)
    with pytest.raises(StateError, match=r"folder: .*missing encoder\.layer\.1\..*value\.weight; unexpected cls_token"):
        encoder_from_hf(theirs, DEPTH, "folder")
