"""Head, target and loss of an objective agree in shape; every value of a parameter makes a difference."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import get_args

import jaxtyping
import pytest
import torch

from mme.config import PretrainParams
from mme.data.masked.clips import PretrainDataset
from mme.manifest import Manifest
from mme.models.losses import masked_mse
from mme.motion.store import TrackStore
from mme.training.pretrain import PretrainModule, target_statistics
from tests.small_data import make_small_data, small_params


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_small_data(tmp_path_factory.mktemp("data"), small_params())


def dataset(manifest: Manifest, folder: Path, **pretrain: object) -> PretrainDataset:
    params = small_params(pretrain=dict(pretrain))
    return PretrainDataset(params, manifest, TrackStore(folder / "trajectories"), ["pretrain"])


def test_head_of_hog_has_the_shape_of_its_target(data: Manifest) -> None:
    training = dataset(data, data.folder, objective="hog", hog_steps="all")
    module = PretrainModule(training.params, target_statistics(training), 1)
    target = training[0, 0]["shape"]  # (M, C, L, 9)
    assert target.shape[1:] == module.model.target_shapes["shape"]


def test_every_position_norm_gives_another_target(data: Manifest) -> None:
    kinds = get_args(PretrainParams.model_fields["position_norm"].annotation)
    standardised = {}
    for kind in kinds:
        training = dataset(data, data.folder, objective="trajectory", position_norm=kind, patch_std_floor_px=0.3)
        module = PretrainModule(training.params, target_statistics(training), 1)
        standardised[kind] = module.standardise("position", training[0, 0]["position"])
    for first, second in itertools.combinations(kinds, 2):
        assert not torch.allclose(standardised[first], standardised[second], atol=1e-3), (first, second)


def test_loss_refuses_shapes_that_would_broadcast() -> None:
    predicted, target = torch.zeros(2, 3, 4, 1, 9), torch.zeros(2, 3, 4, 5, 9)
    with pytest.raises(jaxtyping.TypeCheckError):
        masked_mse(predicted, target, torch.ones(2, 3, 4, dtype=torch.bool))
