from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mme.data.labelled.augmentation import Augmentation
from tests.small_data import small_params
from tests.tiny import moving_frames

FRAMES = np.repeat(moving_frames(1, 32, 32), 6, axis=0)  # a still clip: every frame must come out alike


def augmentation(**finetune: Any) -> Augmentation:
    params = small_params(finetune=finetune)
    return Augmentation(params.finetune, params.clip)


def test_rand_augment_treats_all_frames_alike_and_follows_from_the_generator() -> None:
    augment = augmentation(rand_augment="rand-m7-n4-mstd0.5-inc1")
    results = [augment(FRAMES, np.random.default_rng(seed)) for seed in range(8)]
    for frames in results:
        assert frames.shape == FRAMES.shape
        assert frames.dtype == np.uint8
        assert (frames == frames[:1]).all()
    assert (augment(FRAMES, np.random.default_rng(3)) == results[3]).all()
    assert sum((frames != FRAMES).any() for frames in results) >= 6
    assert len({frames.tobytes() for frames in results}) >= 6


def test_rand_augment_leaves_the_global_generators_alone() -> None:
    before = random.getstate(), repr(np.random.get_state())  # noqa: NPY002
    augmentation(rand_augment="rand-m7-n4-mstd0.5-inc1")(FRAMES, np.random.default_rng(0))
    assert (random.getstate(), repr(np.random.get_state())) == before  # noqa: NPY002


def test_erasing_puts_noise_on_the_same_rectangle_of_all_frames() -> None:
    augment = augmentation(erasing=1.0)
    for seed in range(20):
        frames = augment(FRAMES, np.random.default_rng(seed))
        changed = (frames != FRAMES).any(axis=-1)  # (T, S, S)
        somewhere = changed.any(axis=0)
        rows, columns = np.flatnonzero(somewhere.any(axis=1)), np.flatnonzero(somewhere.any(axis=0))
        area = len(range(rows[0], rows[-1] + 1)) * len(range(columns[0], columns[-1] + 1))
        assert changed.sum() >= 0.9 * len(FRAMES) * area  # noise may hit the old value
        assert area <= 32 * 32 * 0.4
        assert len({frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].tobytes() for frame in frames}) == 6


def test_erasing_happens_as_often_as_it_should() -> None:
    augment = augmentation(erasing=0.25)
    hits = sum((augment(FRAMES, np.random.default_rng(seed)) != FRAMES).any() for seed in range(400))
    assert 70 <= hits <= 130


def test_nothing_that_is_off_draws_anything() -> None:
    rng = np.random.default_rng(0)
    assert augmentation()(FRAMES, rng) is FRAMES
    assert rng.random() == np.random.default_rng(0).random()


def test_another_notation_is_refused() -> None:
    with pytest.raises(ValidationError, match="rand_augment"):
        augmentation(rand_augment="augmix-m5")
    with pytest.raises(ValueError, match=r"finetune\.rand_augment: 'rand-q7'"):
        augmentation(rand_augment="rand-q7")
