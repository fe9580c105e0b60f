"""Pooling of tokens, and clips of several snippets."""

from __future__ import annotations

from typing import cast, get_args

import pytest
import torch
from torch import Tensor

from mme.config import Pooling
from mme.models.classifier import MotionClassifier, encode_snippets
from tests.tiny import tiny_config

CONFIG = tiny_config()
CLIP = CONFIG.clip.model_copy(update={"snippets": 3})


def classifier(pool: Pooling) -> MotionClassifier:
    torch.manual_seed(0)
    return MotionClassifier(CONFIG.model, CLIP, num_classes=4, pool=pool).eval()


def clips() -> Tensor:
    """Two clips of three snippets."""
    torch.manual_seed(1)
    return torch.randn(2, 3, CLIP.total_frames, CLIP.size, CLIP.size)


def swapped(clip: Tensor) -> Tensor:
    """The first two snippets in the other order."""
    first, second, third = clip.split(CLIP.num_frames, dim=2)
    return torch.cat([second, first, third], dim=2)


@torch.no_grad()
def test_each_snippet_is_encoded_by_itself() -> None:
    encoder = classifier("mean").encoder
    tokens = encode_snippets(encoder, clips())
    for number, snippet in enumerate(clips().split(CLIP.num_frames, dim=2)):
        torch.testing.assert_close(tokens[:, number], encoder(snippet))


@torch.no_grad()
def test_time_keeps_the_steps_of_all_snippets_in_order() -> None:
    model = classifier("time")
    steps, rows, columns = model.encoder.grid
    features = model.features(clips()).view(2, 3, steps, -1)
    assert features.shape[-1] == CONFIG.model.dim
    for number, snippet in enumerate(clips().split(CLIP.num_frames, dim=2)):
        tokens = model.encoder(snippet).view(2, steps, rows * columns, -1)
        torch.testing.assert_close(features[:, number], model.norm(tokens.mean(dim=2)))


@torch.no_grad()
@pytest.mark.parametrize("pool", get_args(Pooling))
def test_whether_the_order_of_snippets_is_seen(pool: str) -> None:
    model = classifier(cast(Pooling, pool))
    change = (model(clips()) - model(swapped(clips()))).abs().max()
    assert change < 1e-5 if pool == "mean" else change > 1e-3
