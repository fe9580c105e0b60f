"""Pretraining and finetuning as a whole, in miniature: resumed equals uninterrupted, order, statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch.utils.data import default_collate

from mme.config import Params
from mme.data.labelled.clips import LabelledDataset, mirrored_labels
from mme.data.masked.clips import PretrainDataset
from mme.manifest import Manifest
from mme.models.checkpoints import save_weights
from mme.models.classifier import MotionClassifier
from mme.models.masked_motion import MaskedMotionModel
from mme.motion.store import TrackStore
from mme.targets.base import OBJECTIVES
from mme.targets.drawing import PREDICTED_COLOUR, TRUE_COLOUR
from mme.training.finetune import FinetuneModule, class_weights, load_encoder, run_finetuning
from mme.training.pretrain import PretrainModule, load_start, pretrain_dataset, run_pretraining, target_statistics
from mme.viz.predictions import draw_predictions
from tests.small_data import make_small_data, small_params, split_options
from tests.training.noise import Stop


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_small_data(tmp_path_factory.mktemp("data"), small_params())


def dataset(manifest: Manifest, params: Params, split: str = "pretrain") -> PretrainDataset:
    return pretrain_dataset(params, manifest, TrackStore(manifest.folder / "trajectories"), [split])


def train_pretrain(
    manifest: Manifest, work: Path, params: Params, callbacks: Sequence[Callback] = ()
) -> PretrainModule:
    logged: list[Mapping[str, float]] = []
    tracks = TrackStore(manifest.folder / "trajectories")
    module, curves = run_pretraining(params, manifest, tracks, work, lambda row, _: logged.append(row), callbacks)
    per_pass = params.pretrain.draws_per_decode
    assert [row["epoch"] for row in curves.rows] == list(range(per_pass - 1, params.pretrain.epochs, per_pass))
    assert logged[-1]["train/loss"] > 0
    assert -1 <= curves.rows[-1]["val/position_cosine"] <= 1
    assert curves.rows[-1]["val/position_explained_moving"] < 1
    return module


def train_finetune(
    manifest: Manifest, work: Path, params: Params, callbacks: Sequence[Callback] = ()
) -> FinetuneModule:
    module, curves = run_finetuning(params, manifest, None, work, lambda *_: None, callbacks)
    assert len(curves.rows) == params.finetune.epochs
    return module


def assert_equal_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


PRETRAIN_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "ema_decay": 0.8,
        "drop_path": 0.2,
        "accumulate": 2,
        "gradient_checkpointing": True,
        "mask": "motion",
        "num_loader_workers": 1,
    },
    "draws": {"draws_per_decode": 2, "epochs": 6, "min_scale": 0.6, "frame_cache_mb": 0},
}


@pytest.mark.parametrize("options", PRETRAIN_OPTIONS)
def test_resumed_pretraining_is_bitwise_identical(options: str, data: Manifest, tmp_path: Path) -> None:
    runtime, pretrain = split_options(PRETRAIN_OPTIONS[options])
    params = small_params(runtime=runtime, pretrain=pretrain)
    whole = train_pretrain(data, tmp_path / "whole", params)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_pretrain(data, tmp_path / "parts", params, [Stop(step=5 * params.pretrain.draws_per_decode)])  # mid-run
    resumed = train_pretrain(data, tmp_path / "parts", params)
    assert_equal_weights(whole, resumed)
    assert (tmp_path / "whole/curves.csv").read_text() == (tmp_path / "parts/curves.csv").read_text()


def test_number_of_loader_workers_does_not_change_weights(data: Manifest, tmp_path: Path) -> None:
    short = {"epochs": 2, "warmup_epochs": 0}
    first = train_pretrain(data, tmp_path / "0", small_params(pretrain=short))
    second = train_pretrain(data, tmp_path / "2", small_params(pretrain=short, runtime={"num_loader_workers": 2}))
    assert_equal_weights(first, second)
    augmented = {**short, "rand_augment": "rand-m7-n4-mstd0.5-inc1", "erasing": 0.5, "repeats": 2}
    one = train_finetune(data, tmp_path / "3", small_params(finetune=augmented))
    other = train_finetune(data, tmp_path / "4", small_params(finetune=augmented, runtime={"num_loader_workers": 2}))
    assert_equal_weights(one, other)


def test_resumed_finetuning_is_bitwise_identical(data: Manifest, tmp_path: Path) -> None:
    params = small_params(finetune={"mixup": 0.8, "drop_path": 0.2, "ema_decay": 0.5})
    whole = train_finetune(data, tmp_path / "whole", params)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_finetune(data, tmp_path / "parts", params, [Stop(step=3)])
    resumed = train_finetune(data, tmp_path / "parts", params)
    assert_equal_weights(whole, resumed)
    assert whole.best["epoch"] == resumed.best["epoch"]
    for name, value in whole.best["state"].items():
        assert torch.equal(value, resumed.best["state"][name])


def test_losses_are_measured_in_units_of_the_targets_variance(data: Manifest) -> None:
    params = small_params()
    training = dataset(data, params)
    module = PretrainModule(params, target_statistics(training), 1)
    batch = module.prepare(default_collate([training[0, i] for i in range(len(training))]))
    position, hog = (batch[name][batch[f"{name}_valid"]] for name in ("position", "hog"))
    assert position.square().mean() == pytest.approx(1, abs=1e-4)
    assert hog.square().mean() == pytest.approx(1, abs=1e-4)
    assert hog.mean(dim=(0, 1)).abs().max() < 1e-4
    restored = module.unstandardise("hog", hog)
    torch.testing.assert_close(restored.mean(dim=(0, 1)), module.statistics()["hog"][0], atol=1e-5, rtol=0)


def test_a_video_without_trajectories_is_an_error_that_names_it(data: Manifest) -> None:
    with pytest.raises(KeyError, match="train-0"):
        dataset(data, small_params(), "train")


def test_samples_depend_on_seed_epoch_and_index_alone(data: Manifest) -> None:
    first, second = dataset(data, small_params()), dataset(data, small_params(runtime={"frame_cache_mb": 0}))
    for key in [(0, 3), (1, 3), (5, 0)]:
        for name, value in first[key].items():
            assert torch.equal(value, second[key][name])
    assert not torch.equal(first[0, 3]["hidden"], first[1, 3]["hidden"])
    reseeded = dataset(data, small_params(seed=1))
    assert not torch.equal(first[0, 3]["hidden"], reseeded[0, 3]["hidden"])


def test_a_pass_over_several_draws_counts_as_so_many_epochs(data: Manifest, tmp_path: Path) -> None:
    """The same number of steps, and the same schedule of the learning rate."""
    rates: dict[int, list[float]] = {}
    for draws in (1, 2):
        params = small_params(pretrain={"epochs": 6, "warmup_epochs": 2, "draws_per_decode": draws})
        seen = Rates()
        train_pretrain(data, tmp_path / str(draws), params, [seen])
        rates[draws] = seen.rates
    assert rates[1] == pytest.approx(rates[2])
    assert len(rates[1]) == 6 * 3


class Rates(Callback):
    """Learning rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


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


@pytest.mark.parametrize("pool", ["mean", "attentive"])
def test_without_layer_decay_the_encoder_is_frozen(pool: str, data: Manifest, tmp_path: Path) -> None:
    params = small_params(finetune={"layer_decay": 0.0, "init": "pretrain", "pool": pool, "ema_decay": 0.5})
    torch.manual_seed(5)
    start = MaskedMotionModel(params.model, params.clip, params.pretrain)
    save_weights(tmp_path / "model.safetensors", start)
    module, _ = run_finetuning(params, data, tmp_path / "model.safetensors", tmp_path / "work", lambda *_: None)
    assert_equal_weights(start.encoder, module.model.encoder)
    learned = {name for group in module.parameter_groups() for name in names_of(module, group["params"])}
    assert learned == {name for name in module.model.state_dict() if not name.startswith("encoder.")}
    for name, value in start.norm.state_dict().items():
        assert not torch.equal(value, module.model.norm.state_dict()[name])


def names_of(module: FinetuneModule, parameters: Sequence[torch.nn.Parameter]) -> list[str]:
    return [name for name, own in module.model.named_parameters() if any(own is one for one in parameters)]


def test_without_layer_decay_random_weights_learn(data: Manifest, tmp_path: Path) -> None:
    params = small_params(finetune={"layer_decay": 0.0, "init": "pretrain"})
    module = train_finetune(data, tmp_path, params)
    assert all(parameter.requires_grad for parameter in module.model.parameters())


def test_pretraining_starts_from_other_weights(data: Manifest, tmp_path: Path) -> None:
    """From a model of smaller clips: the encoder and every part that fits is taken, the others are named."""
    before = small_params(clip={"size": 16})
    start = MaskedMotionModel(before.model, before.clip, before.pretrain)
    save_weights(tmp_path / "model.safetensors", start)

    params = small_params()
    model = MaskedMotionModel(params.model, params.clip, params.pretrain)
    assert load_start(tmp_path / "model.safetensors", model) == []
    assert_equal_weights(start, model)

    params = small_params(pretrain={"objective": "pixel", "decoder_dim": 2 * before.pretrain.decoder_dim})
    model = MaskedMotionModel(params.model, params.clip, params.pretrain)
    anew = load_start(tmp_path / "model.safetensors", model)
    assert anew == ["decoder_blocks", "decoder_embed", "decoder_norm", "mask_token", "pixel"]
    assert_equal_weights(start.encoder, model.encoder)
    assert_equal_weights(start.norm, model.norm)

    deeper = small_params(model={"depth": 3})
    with pytest.raises(ValueError, match=r"model\.safetensors: .*missing encoder\.blocks\.2"):
        load_start(tmp_path / "model.safetensors", MaskedMotionModel(deeper.model, deeper.clip, deeper.pretrain))


def test_a_warm_start_reaches_training(data: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a learning rate of next to nothing the weights at the end are those at the start."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    params = small_params(pretrain={"init": "other", "lr": 1e-12})
    start = MaskedMotionModel(params.model, params.clip, params.pretrain)
    save_weights(tmp_path / "models/other/model.safetensors", start)
    tracks = TrackStore(data.folder / "trajectories")
    module, _ = run_pretraining(params, data, tracks, tmp_path, lambda *_: None)
    for key, value in module.model.state_dict().items():
        torch.testing.assert_close(value, start.state_dict()[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_predictions_are_drawn_beside_their_targets(objective: str, data: Manifest) -> None:
    params = small_params(pretrain={"objective": objective})
    training = dataset(data, params)
    module = PretrainModule(params, target_statistics(training), 1)
    for parameter in module.model.heads.parameters():
        torch.nn.init.normal_(parameter, std=1.0)  # predictions that are seen
    picture = draw_predictions(module, training, 4)
    assert picture.shape[1] >= 2 * 256
    plain = draw_predictions(PretrainModule(params, target_statistics(training), 1), training, 4)
    assert (picture != plain).any()
    if objective != "pixel":
        panels = picture[40:].astype(int)  # below the key to the colours
        for colour in (TRUE_COLOUR, PREDICTED_COLOUR):
            assert (np.abs(panels - colour).max(axis=-1) < 80).sum() > 20


UNEQUAL = ("train-1", "train-5", "train-2", "train-6", "train-7")
"""Videos left out: two of the first class remain, none of the second and third, one of the fourth."""


@pytest.mark.parametrize("balance", ["sampling", "loss"])
def test_balanced_finetuning_resumes_bit_for_bit(balance: str, data: Manifest, tmp_path: Path) -> None:
    params = small_params(finetune={"balance": balance, "mixup": 0.8, "batch_size": 2})
    manifest = data.without(UNEQUAL)
    whole = train_finetune(manifest, tmp_path / "whole", params)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_finetune(manifest, tmp_path / "parts", params, [Stop(step=2)])
    resumed = train_finetune(manifest, tmp_path / "parts", params)
    assert_equal_weights(whole, resumed)
    assert whole.best["epoch"] == resumed.best["epoch"]
    plain = train_finetune(manifest, tmp_path / "none", small_params(finetune={"mixup": 0.8, "batch_size": 2}))
    assert not torch.equal(plain.model.head.weight, whole.model.head.weight)


class Seen(Callback):
    """Labels of the clips of a training."""

    def __init__(self) -> None:
        self.labels: list[int] = []

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.labels += arguments[2]["label"].tolist()


@pytest.mark.parametrize(
    ("balance", "counts"), [("none", {0: 6, 3: 3}), ("loss", {0: 6, 3: 3}), ("sampling", {0: 4, 3: 5})]
)
def test_only_sampling_changes_what_is_drawn(
    balance: str, counts: dict[int, int], data: Manifest, tmp_path: Path
) -> None:
    seen = Seen()
    params = small_params(finetune={"balance": balance, "batch_size": 3})
    train_finetune(data.without(UNEQUAL), tmp_path, params, [seen])
    labels = [data.labels.index(name) for name in ("left", "right", "up", "down")]
    assert {label: seen.labels.count(label) for label in set(seen.labels)} == {
        labels[0]: counts[0],
        labels[3]: counts[3],
    }


def test_class_weights_are_inverse_to_the_shares_of_the_classes(data: Manifest) -> None:
    def weights(**options: Any) -> list[float]:
        finetune = small_params(finetune=options).finetune
        manifest = data.without(["train-5", "train-6", "train-2"])
        training = LabelledDataset(manifest, "train", small_params().clip, finetune, seed=0, training=True)
        found = class_weights(training)
        counts = np.bincount(training.classes, minlength=4)
        assert {name: int(n) for name, n in zip(manifest.labels, counts, strict=True)} == {
            "left": 2,
            "right": 1,
            "up": 0,
            "down": 2,
        }
        return [float(found[manifest.labels.index(name)]) for name in ("left", "right", "up", "down")]

    assert weights() == pytest.approx([5 / 6, 5 / 3, 0, 5 / 6])
    mirrored = weights(horizontal_flip=True, flip_pairs=(("left", "right"),))
    assert mirrored == pytest.approx([10 / 9, 10 / 9, 0, 5 / 6])


def test_the_weighted_loss_is_a_mean_over_clips() -> None:
    """Not over weights: then parts of a batch would add up to something else than the batch."""
    params = small_params(finetune={"balance": "loss", "label_smoothing": 0.0})
    module = FinetuneModule(params, 3, 1, torch.tensor([0.5, 1.0, 2.0]))
    clip = torch.randn(4, 3, params.clip.num_frames, 32, 32)
    label = torch.tensor([0, 0, 1, 2])
    module.eval()
    nll = -module.model(clip).log_softmax(dim=1)[torch.arange(4), label]
    expected = (nll * torch.tensor([0.5, 0.5, 1.0, 2.0])).sum() / 4
    batch = {"clip": clip, "label": label, "target": label}
    assert float(module.losses(batch)["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    soft = batch | {"target": torch.nn.functional.one_hot(label, 3).float()}
    assert float(module.losses(soft)["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_balanced_training_keeps_the_epoch_that_is_best_by_classes(data: Manifest, tmp_path: Path) -> None:
    params = small_params(finetune={"balance": "sampling"})
    manifest = data.without(["val-1"])
    module, curves = run_finetuning(params, manifest, None, tmp_path, lambda *_: None)
    kept = curves.rows[module.best["epoch"]]
    assert kept["val/mean_class_accuracy"] == max(row["val/mean_class_accuracy"] for row in curves.rows)
    plain, plain_curves = run_finetuning(small_params(), manifest, None, tmp_path / "none", lambda *_: None)
    assert "val/mean_class_accuracy" not in plain_curves.rows[0]
    assert module.model.state_dict().keys() == plain.model.state_dict().keys()
