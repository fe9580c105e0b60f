"""Head, target and loss of every objective agree in shape; every value of a parameter makes a difference."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import jaxtyping
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.data import default_collate

from mme.config import PretrainParams
from mme.data.masked.clips import PretrainDataset
from mme.manifest import Manifest
from mme.models.masked_motion import MaskedMotionModel, masked_mse
from mme.motion.store import TrackStore
from mme.targets.base import OBJECTIVES, TARGETS, target_weights
from mme.training.pretrain import PretrainModule, pretrain_dataset, target_statistics
from tests.small_data import make_small_data, small_params


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_small_data(tmp_path_factory.mktemp("data"), small_params())


def module_and_data(manifest: Manifest, **pretrain: Any) -> tuple[PretrainModule, PretrainDataset]:
    params = small_params(pretrain=pretrain)
    dataset = pretrain_dataset(params, manifest, TrackStore(manifest.folder / "trajectories"), ["pretrain"])
    return PretrainModule(params, target_statistics(dataset), 1), dataset


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
@pytest.mark.parametrize("hog_steps", ["all", "first"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_head_target_and_loss_agree(objective: str, hog_steps: str, precision: str, data: Manifest) -> None:
    module, dataset = module_and_data(data, objective=objective, hog_steps=hog_steps, precision=precision)
    clips = dataset.__getitems__([(0, index) for index in range(4)])
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        batch = module.prepare(clips)
        predictions = module.model(batch["tubelets"], batch["hidden"])
        losses = module.losses(batch)
    assert list(predictions) == [target.name for target in OBJECTIVES[objective]]
    total = torch.tensor(0.0)
    for name, predicted in predictions.items():
        target, valid = batch[name], batch[f"{name}_valid"]
        assert predicted.shape == target.shape == (4, int(batch["hidden"][0].sum()), *TARGETS[name].shape(dataset.spec))
        assert target.dtype == torch.float32
        assert valid.shape == target.shape[: valid.ndim]
        expected = (predicted.float() - target)[valid].square().mean()
        torch.testing.assert_close(losses[f"{name}_loss"], expected)
        total = total + module.model.weights[name] * expected
    torch.testing.assert_close(losses["loss"], total)


def test_every_position_norm_gives_another_target(data: Manifest) -> None:
    kinds = get_args(PretrainParams.model_fields["position_norm"].annotation)
    standardised = {}
    for kind in kinds:
        module, dataset = module_and_data(data, objective="trajectory", position_norm=kind, patch_std_floor_px=0.3)
        standardised[kind] = module.prepare(default_collate([dataset[0, 0]]))["position"]
    for first, second in itertools.combinations(kinds, 2):
        assert not torch.allclose(standardised[first], standardised[second], atol=1e-3), (first, second)


def test_loss_refuses_shapes_that_would_broadcast() -> None:
    predicted, target = torch.zeros(2, 3, 4, 1, 9), torch.zeros(2, 3, 4, 5, 9)
    with pytest.raises(jaxtyping.TypeCheckError):
        masked_mse(predicted, target, torch.ones(2, 3, 4, dtype=torch.bool))


def test_unknown_objective_and_weight_are_named() -> None:
    params = small_params(pretrain={"objective": "hogg"})
    with pytest.raises(ValueError, match=r"^pretrain\.objective: 'hogg' is none of pixel, trajectory, hog, mme$"):
        MaskedMotionModel(params.model, params.clip, params.pretrain)
    with pytest.raises(ValueError, match=r"^pretrain\.weights: shape is none of pixel, position, hog$"):
        target_weights(OBJECTIVES["mme"], {"position": 1.0, "shape": 0.3})
    assert target_weights(OBJECTIVES["mme"], {"hog": 0.3}) == {"position": 1.0, "hog": 0.3}


@pytest.mark.parametrize("objective", ["trajectory", "pixel"])
def test_a_step_reads_nothing_back_from_its_device(objective: str, data: Manifest) -> None:
    """Fake tensors have no values: an operation that needs one, and would make the host wait for a GPU, raises."""
    module, dataset = module_and_data(data, objective=objective)
    batch = dataset.__getitems__([(0, index) for index in range(4)])
    module.losses(module.prepare(batch))  # fills the caches of constants
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        prepared = module.prepare({name: mode.from_tensor(value) for name, value in batch.items()})
        module.losses(prepared)["loss"].backward()
        with pytest.raises(DataDependentOutputException):
            float(prepared["tubelets"].sum())
