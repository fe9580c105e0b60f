"""Pretraining and finetuning as a whole, in miniature: resumed equals uninterrupted, order, statistics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from mme.config import Params
from mme.data.datasets import LabelledDataset, PretrainDataset, mirrored_labels
from mme.data.manifest import Manifest
from mme.data.sampler import EpochSampler
from mme.models.checkpoints import save_weights
from mme.models.classifier import MotionClassifier
from mme.targets.store import TrackStore
from mme.training.finetune import FinetuneModule, load_encoder
from mme.training.loop import Curves, build_trainer, fit, loader
from mme.training.pictures import draw_predictions
from mme.training.pretrain import PretrainModule, target_statistics
from tests.small_data import make_small_data, small_params


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_small_data(tmp_path_factory.mktemp("data"), small_params())


def dataset(manifest: Manifest, params: Params, split: str = "pretrain") -> PretrainDataset:
    return PretrainDataset(params, manifest, TrackStore(manifest.folder / "trajectories"), [split])


class Stop(Callback):
    """Ends the process's training in the middle of an epoch, as a killed machine would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def train_pretrain(manifest: Manifest, work: Path, params: Params, callbacks: list[Callback]) -> PretrainModule:
    training, held_out = dataset(manifest, params), dataset(manifest, params, "val")
    batches = loader(training, params.pretrain.batch_size, 0, True, params.pretrain.num_loader_workers)
    torch.manual_seed(0)
    module = PretrainModule(params, target_statistics(training), len(batches))
    run(module, work, batches, loader(held_out, 4, 0, False, 0), params.pretrain.epochs, callbacks)
    return module


def run(
    module: LightningModule, work: Path, batches: Any, validation: Any, epochs: int, callbacks: list[Callback]
) -> None:
    logged: list[Mapping[str, float]] = []
    curves = Curves(work / "curves.csv", lambda metrics, _: logged.append(metrics))
    trainer = build_trainer(
        work, epochs=epochs, precision="32", clip_grad=1.0, device="cpu", callbacks=[curves, *callbacks]
    )
    fit(trainer, module, batches, validation, work)
    assert len(curves.rows) == epochs
    assert logged[-1]["train/loss"] > 0


def assert_equal_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_a_resumed_pretraining_ends_with_the_weights_of_an_uninterrupted_one(data: Manifest, tmp_path: Path) -> None:
    params = small_params()
    whole = train_pretrain(data, tmp_path / "whole", params, [])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_pretrain(data, tmp_path / "parts", params, [Stop(step=5)])  # in the second of three epochs
    resumed = train_pretrain(data, tmp_path / "parts", params, [])
    assert_equal_weights(whole.model, resumed.model)
    assert (tmp_path / "whole/curves.csv").read_text() == (tmp_path / "parts/curves.csv").read_text()


def test_the_number_of_loader_workers_changes_nothing(data: Manifest, tmp_path: Path) -> None:
    params = small_params(pretrain={"epochs": 2, "warmup_epochs": 0})
    with_workers = small_params(pretrain={"epochs": 2, "warmup_epochs": 0, "num_loader_workers": 2})
    first = train_pretrain(data, tmp_path / "0", params, [])
    second = train_pretrain(data, tmp_path / "2", with_workers, [])
    assert_equal_weights(first.model, second.model)


def test_a_resumed_finetuning_ends_with_the_same_best_weights(data: Manifest, tmp_path: Path) -> None:
    params = small_params(finetune={"mixup": 0.8, "drop_path": 0.2})

    def train(work: Path, callbacks: list[Callback]) -> FinetuneModule:
        batches = loader(LabelledDataset(params, data, "train", training=True), 4, 0, True, 0)
        validation = loader(LabelledDataset(params, data, "val", training=False), 4, 0, False, 0)
        torch.manual_seed(0)
        module = FinetuneModule(params, len(data.labels), len(batches))
        run(module, work, batches, validation, params.finetune.epochs, callbacks)
        return module

    whole = train(tmp_path / "whole", [])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path / "parts", [Stop(step=3)])
    resumed = train(tmp_path / "parts", [])
    assert_equal_weights(whole.model, resumed.model)
    assert whole.best["epoch"] == resumed.best["epoch"]
    for name, value in whole.best["state"].items():
        assert torch.equal(value, resumed.best["state"][name])


def test_losses_are_measured_in_units_of_the_targets_variance(data: Manifest) -> None:
    params = small_params()
    training = dataset(data, params)
    module = PretrainModule(params, target_statistics(training), 1)
    samples = [training[0, i] for i in range(len(training))]
    position = torch.cat([module.standardise("position", s["position"])[s["valid"]] for s in samples])
    shape = torch.cat([module.standardise("shape", s["shape"])[s["valid"]] for s in samples])
    assert position.square().mean() == pytest.approx(1, abs=1e-4)
    assert shape.square().mean() == pytest.approx(1, abs=1e-4)
    assert shape.mean(dim=(0, 1)).abs().max() < 1e-4


def test_a_video_without_trajectories_is_an_error_that_names_it(data: Manifest) -> None:
    with pytest.raises(KeyError, match="train-0"):
        dataset(data, small_params(), "train")


def test_samples_depend_on_seed_epoch_and_index_alone(data: Manifest) -> None:
    first, second = dataset(data, small_params()), dataset(data, small_params(pretrain={"frame_cache_mb": 0}))
    for key in [(0, 3), (1, 3), (5, 0)]:
        for name, value in first[key].items():
            assert torch.equal(value, second[key][name])
    assert not torch.equal(first[0, 3]["hidden"], first[1, 3]["hidden"])
    reseeded = dataset(data, small_params(run={"seed": 1}))
    assert not torch.equal(first[0, 3]["hidden"], reseeded[0, 3]["hidden"])


def test_processes_share_an_epoch_without_overlap() -> None:
    parts = [EpochSampler(11, seed=3, shuffle=True, rank=rank, num_replicas=3) for rank in range(3)]
    for part in parts:
        part.set_epoch(4)
    keys = [key for part in parts for key in part]
    assert sorted(keys) == [(4, index) for index in range(11)]
    assert [len(part) for part in parts] == [4, 4, 3]
    assert list(parts[0]) != sorted(parts[0])


def test_flip_pairs_swap_labels_and_name_unknown_ones() -> None:
    labels = ["left", "right", "up"]
    params = small_params(finetune={"horizontal_flip": True, "flip_pairs": (("left", "right"),)}).finetune
    assert mirrored_labels(labels, params) == [1, 0, 2]
    wrong = small_params(finetune={"horizontal_flip": True, "flip_pairs": (("left", "rigth"),)}).finetune
    with pytest.raises(ValueError, match="rigth"):
        mirrored_labels(labels, wrong)


def test_the_classifier_starts_from_the_pretrained_encoder(data: Manifest, tmp_path: Path) -> None:
    params = small_params()
    module = PretrainModule(params, target_statistics(dataset(data, params)), 1)
    save_weights(tmp_path / "model.safetensors", module.model)
    classifier = MotionClassifier(params.model, params.clip, 4)
    load_encoder(tmp_path / "model.safetensors", classifier)
    assert_equal_weights(module.model.encoder, classifier.encoder)
    other = small_params(model={"depth": 3})
    with pytest.raises(ValueError, match=r"encoder\.blocks\.2"):
        load_encoder(tmp_path / "model.safetensors", MotionClassifier(other.model, other.clip, 4))


def test_predictions_are_pictured_where_there_are_positions(data: Manifest, tmp_path: Path) -> None:
    params = small_params()
    training = dataset(data, params)
    figure = draw_predictions(PretrainModule(params, target_statistics(training), 1), training, 4)
    assert figure is not None
    assert sum(len(axis.collections) for axis in figure.axes) == 8  # true and predicted lines of four clips
    pixel = small_params(pretrain={"objective": "pixel"})
    assert draw_predictions(PretrainModule(pixel, {}, 1), dataset(data, pixel), 4) is None
