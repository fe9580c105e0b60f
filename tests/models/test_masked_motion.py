from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mme.config import ClipParams, ModelParams, Pooling, PretrainParams, load_params
from mme.models.classifier import MotionClassifier
from mme.models.encoder import VideoEncoder, gather_tokens, model_input, position_table, rgb_of, token_input
from mme.models.masked_motion import MaskedMotionModel, masked_mse

CLIP = ClipParams(num_frames=4, stride_frames=2, sampling="stride", size=24, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
MODEL = ModelParams(
    patch_size=8, tubelet_frames=2, dim=32, depth=2, num_heads=2, mlp_ratio=2.0, positions="axes"
)  # 2 x 3 x 3 tokens
DEFAULTS = load_params(Path(__file__).parents[2] / "params.yaml").pretrain


def pretrain(**changes: object) -> PretrainParams:
    small: dict[str, object] = {
        "hog_steps": "all",
        "decoder_dim": 16,
        "decoder_depth": 1,
        "decoder_heads": 2,
        "length": 3,
    }
    return DEFAULTS.model_copy(update=small | changes)


def clip_and_mask(batch: int = 2, seed: int = 0) -> tuple[Float[Tensor, "B 3 T H W"], Bool[Tensor, "B N"]]:
    generator = torch.Generator().manual_seed(seed)
    clip = torch.randn(batch, 3, 4, 24, 24, generator=generator)
    order = torch.rand(batch, 18, generator=generator).argsort(dim=1)
    return clip, order < 12


def visible(
    model: MaskedMotionModel, clip: Float[Tensor, "B 3 T H W"], hidden: Bool[Tensor, "B N"]
) -> Float[Tensor, "B V P"]:
    return gather_tokens(model.encoder.patchify(clip), ~hidden, int((~hidden[0]).sum()))


@pytest.mark.parametrize(
    ("objective", "shapes"),
    [
        ("mme", {"position": (4, 3, 2), "hog": (4, 3, 9)}),
        ("trajectory", {"position": (4, 3, 2)}),
        ("hog", {"hog": (4, 3, 9)}),
        ("pixel", {"pixel": (3 * 2 * 8 * 8,)}),
    ],
)
def test_every_objective_predicts_its_target_for_hidden_tokens(
    objective: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    clip, hidden = clip_and_mask()
    model = MaskedMotionModel(MODEL, CLIP, pretrain(objective=objective))
    predictions = model(visible(model, clip, hidden), hidden)
    assert {name: tuple(value.shape) for name, value in predictions.items()} == {
        name: (2, 12, *shape) for name, shape in shapes.items()
    }


def test_hidden_pixels_are_not_encoded_and_get_no_gradient() -> None:
    clip, hidden = clip_and_mask()
    encoder = VideoEncoder(MODEL, CLIP)
    clip.requires_grad_()
    encoder(clip, hidden).square().sum().backward()
    assert clip.grad is not None
    gradient = encoder.patchify(clip.grad)  # (B, N, P)
    assert gradient[hidden].abs().max() == 0
    assert (gradient[~hidden].abs().amax(dim=1) > 0).all()


def test_the_loss_is_blind_to_visible_tokens() -> None:
    """Targets stand for hidden tokens only, in their order: changing another clip's mask changes nothing here."""
    clip, hidden = clip_and_mask()
    model = MaskedMotionModel(MODEL, CLIP, pretrain(objective="trajectory")).eval()
    tubelets = visible(model, clip, hidden)
    both = model(tubelets, hidden)["position"]
    alone = model(tubelets[:1], hidden[:1])["position"]
    torch.testing.assert_close(both[:1], alone)
    assert both.shape[1] == hidden[0].sum()


def test_predictions_follow_their_token() -> None:
    """A decoder without mixing gives each hidden token a function of its own position, in token order."""
    clip, hidden = clip_and_mask(batch=1)
    model = MaskedMotionModel(MODEL, CLIP, pretrain(objective="trajectory")).eval()
    model.decoder_blocks = torch.nn.ModuleList()
    out = model(visible(model, clip, hidden), hidden)["position"]
    tokens = model.decoder_norm(model.mask_token + model.positions)[hidden[0]]
    torch.testing.assert_close(out[0], model.heads["position"](tokens).unflatten(-1, (4, 3, 2)))


def test_tubelets_hold_the_pixels_of_their_place() -> None:
    encoder = VideoEncoder(MODEL, CLIP)
    clip = torch.arange(3 * 4 * 24 * 24, dtype=torch.float32).view(1, 3, 4, 24, 24)
    tubelets = encoder.patchify(clip)
    assert tubelets.shape == (1, 18, 384)
    t, y, x = 1, 2, 0
    expected = clip[0, :, 2:4, 16:24, 0:8]
    torch.testing.assert_close(tubelets[0, t * 9 + y * 3 + x], expected.flatten())


@pytest.mark.parametrize("kept", [6, 18])
def test_tokens_of_planes_are_patches_of_the_normalised_rgb_clip(kept: int) -> None:
    generator = torch.Generator().manual_seed(1)
    luma = torch.randint(16, 236, (2, 4, 24, 24), generator=generator, dtype=torch.uint8)
    chroma = torch.randint(100, 156, (2, 4, 2, 12, 12), generator=generator, dtype=torch.uint8)
    chosen = torch.rand(2, 18, generator=generator).argsort(dim=1) < kept
    frames = rgb_of(luma, chroma)
    assert ((frames == 0) | (frames == 255)).any()  # colours out of range are clipped
    params = CLIP.model_copy(update={"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)})
    expected = gather_tokens(VideoEncoder(MODEL, CLIP).patchify(model_input(frames, params)), chosen, kept)
    half_a_level = 0.5 / (255 * 0.2)
    torch.testing.assert_close(
        token_input(luma, chroma, chosen, kept, params, MODEL), expected, atol=1.01 * half_a_level, rtol=0
    )


def test_encoding_a_subset_is_attention_among_the_subset() -> None:
    """Dropping tokens equals encoding them with attention masked out, the slow way."""
    clip, hidden = clip_and_mask(batch=1)
    encoder = VideoEncoder(MODEL, CLIP).eval()
    tokens = encoder.embed(encoder.patchify(clip)) + encoder.positions
    tokens = tokens[:, ~hidden[0]]
    for block in encoder.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(encoder(clip, hidden), tokens)


def test_a_clip_of_another_size_is_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match=r"\(4, 16, 24\).*\(4, 24, 24\)"):
        VideoEncoder(MODEL, CLIP)(torch.zeros(1, 3, 4, 16, 24))


@pytest.mark.parametrize("kind", ["axes", "flat"])
def test_positions_are_distinct_and_bounded(kind: str) -> None:
    table = position_table((4, 5, 6), 48, kind)
    assert table.shape == (120, 48)
    assert table.abs().max() <= 1
    distances = torch.cdist(table, table) + torch.eye(120) * 10
    assert distances.min() > 0.1


def test_positions_on_axes_make_neighbours_alike_in_every_direction() -> None:
    table = position_table((4, 6, 6), 64, "axes").view(4, 6, 6, 64)
    centre = table[1, 2, 2]
    for neighbour, far in [(table[1, 2, 3], table[1, 2, 5]), (table[1, 3, 2], table[1, 5, 2])]:
        assert centre @ neighbour > centre @ far


def test_a_batch_can_be_over_fitted() -> None:
    torch.manual_seed(0)
    clip, hidden = clip_and_mask(batch=2)
    model = MaskedMotionModel(MODEL, CLIP, pretrain(objective="trajectory"))
    tubelets = visible(model, clip, hidden)
    target, valid = torch.randn(2, 12, 4, 3, 2), torch.rand(2, 12, 4) < 0.8
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(250):
        loss = masked_mse(model(tubelets, hidden)["position"], target, valid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02


def test_the_classifier_pools_over_all_tokens() -> None:
    torch.manual_seed(0)
    model = MotionClassifier(MODEL, CLIP, num_classes=5).eval()
    clip, _ = clip_and_mask()
    features = model.features(clip)
    torch.testing.assert_close(features, model.norm(model.encoder(clip).mean(dim=1)))
    torch.testing.assert_close(model(clip), features @ model.head.weight.T + model.head.bias)
    with pytest.raises(ValueError, match="num_classes"):
        MotionClassifier(MODEL, CLIP, num_classes=1)


@pytest.mark.parametrize("pool", get_args(Pooling))
def test_pooling_says_what_happens_to_the_order_of_time(pool: Pooling) -> None:
    """Reversed time steps reverse the features of `time`; mean and attention are sets of tokens."""
    torch.manual_seed(0)
    model = MotionClassifier(MODEL, CLIP, num_classes=5, pool=pool).eval()
    steps = model.encoder.grid[0]
    clip, _ = clip_and_mask()
    tokens = model.encoder(clip)  # (B, N, D), of the only snippet
    features = model.pool_tokens(tokens[:, None])
    torch.testing.assert_close(model.features(clip), features)
    torch.testing.assert_close(model(clip), features @ model.head.weight.T + model.head.bias)
    if pool == "time":
        of_step = tokens.shape[1] // steps
        expected = [model.norm(tokens[:, t * of_step : (t + 1) * of_step].mean(dim=1)) for t in range(steps)]
        torch.testing.assert_close(features, torch.cat(expected, dim=1))

    reversed_in_time = model.pool_tokens(tokens.unflatten(1, (steps, -1)).flip(1).flatten(1, 2)[:, None])
    if pool == "time":
        torch.testing.assert_close(reversed_in_time, features.unflatten(1, (steps, -1)).flip(1).flatten(1))
        assert not torch.allclose(reversed_in_time, features, atol=1e-3)
    else:  # order reaches them through the encoder's positions alone, which the tokens carry along
        torch.testing.assert_close(reversed_in_time, features)
