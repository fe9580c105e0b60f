from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mme.evaluation.probe import (
    Features,
    cross_validated_metrics,
    encode,
    frozen_features,
    knn,
    linear_probe,
    start_encoder,
)
from mme.manifest import Manifest
from mme.models.checkpoints import save_weights
from mme.models.classifier import MotionClassifier
from mme.models.encoder import VideoEncoder, model_input
from mme.models.masked_motion import MaskedMotionModel
from mme.registry.onnx import PixelsToLogits
from mme.video.sampling import sample_views
from tests.small_data import make_small_data, small_params

PARAMS = small_params(runtime={"eval_batch_size": 3}, evaluate={"pool": "mean"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_small_data(tmp_path_factory.mktemp("data"), PARAMS)


def clouds(num_each: int, seed: int, spread: float = 0.3) -> Features:
    """Three labels around three corners, beside a feature of pure noise that is a thousand times larger."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), num_each)
    points = np.eye(3)[labels] + spread * rng.normal(size=(len(labels), 3))
    noise = 1000 * rng.normal(size=(len(labels), 1))
    return np.concatenate([points, noise], axis=1).astype(np.float32), labels


def test_features_are_mean_tokens_of_the_centre_view_of_labelled_videos(data: Manifest) -> None:
    encoder = VideoEncoder(PARAMS.model, PARAMS.clip).train()
    features, labels = frozen_features(encoder, data, "train", PARAMS)
    assert encoder.training
    videos = data.videos("train")
    assert features.shape == (8, PARAMS.model.dim)
    assert (str(features.dtype), str(labels.dtype)) == ("float32", "int64")
    assert [data.labels[label] for label in labels] == [video.label for video in videos]
    with torch.no_grad():
        for row, video in zip(features, videos, strict=True):
            view = torch.from_numpy(sample_views(data.path_of(video), PARAMS.clip, video.fps, 1, 1).frames)
            expected = encoder(model_input(view, PARAMS.clip)).mean(dim=1)[0]
            np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)


def test_probe_and_export_give_the_encoder_the_same_input_as_training() -> None:
    """Equal values in the equal memory layout: one function prepares the input everywhere."""
    model = MotionClassifier(PARAMS.model, PARAMS.clip, 4).eval()
    seen: list[torch.Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), dtype=np.uint8)
    expected = model_input(torch.from_numpy(frames), PARAMS.clip)
    encode(model.encoder, [(frames, np.zeros(2, dtype=np.int64))], PARAMS.clip, "mean")
    PixelsToLogits(model, PARAMS.clip)(torch.from_numpy(frames))
    assert len(seen) == 2
    for given in seen:
        assert torch.equal(given, expected)
        assert given.stride() == expected.stride()


def test_a_split_without_labels_is_an_error(data: Manifest) -> None:
    with pytest.raises(ValueError, match="no labelled videos in split 'pretrain'"):
        frozen_features(VideoEncoder(PARAMS.model, PARAMS.clip), data, "pretrain", PARAMS)


def test_the_probe_is_linear_and_blind_to_the_scale_of_a_feature() -> None:
    assert linear_probe(clouds(30, 0)).score(*clouds(50, 1)) > 0.9
    assert linear_probe(clouds(30, 0)).score(*clouds(50, 1)) == linear_probe(clouds(30, 0)).score(*clouds(50, 1))


def test_more_features_than_videos_are_probed_as_by_plain_logistic_regression() -> None:
    """Against the same search without the rotation, over penalties at which both converge."""
    rng = np.random.default_rng(3)
    mixing, means = rng.normal(size=(20, 900)), 0.2 * rng.normal(size=(4, 900))

    def draw(count: int) -> Features:
        labels = rng.integers(0, 4, count)
        return (rng.normal(size=(count, 20)) @ mixing + means[labels] + rng.normal(size=(count, 900))).astype(
            np.float32
        ), labels

    train, test = draw(120), draw(400)
    plain = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    search = GridSearchCV(plain, {"logisticregression__C": [0.001, 0.01, 0.1, 1.0, 10.0]}, cv=folds)
    expected = search.fit(*train).score(*test)
    assert 0.4 < expected < 0.99
    assert linear_probe(train).score(*test) == pytest.approx(expected, abs=0.01)


def test_the_probe_finds_nothing_where_there_is_nothing() -> None:
    rng = np.random.default_rng(0)
    draws = [(rng.normal(size=(300, 8)).astype(np.float32), rng.integers(0, 3, 300)) for _ in range(2)]
    assert abs(linear_probe(draws[0]).score(*draws[1]) - 1 / 3) < 0.1


def test_a_label_with_one_video_is_probed_along() -> None:
    features, labels = clouds(10, 0)
    assert linear_probe((features[:21], labels[:21])).score(*clouds(50, 1)) > 0.5
    with pytest.raises(ValueError, match=r"two labels.*\[30\]"):
        linear_probe((features, np.zeros_like(labels)))
    with pytest.raises(ValueError, match=r"\[1, 1, 1\]"):
        linear_probe((features[::10], labels[::10]))


def test_every_video_is_tested_once_by_the_fit_to_the_other_folds() -> None:
    """Against a loop over the folds and penalties."""
    features, labels = clouds(30, 2, spread=0.6)
    groups = [str(index) for index in range(len(labels))]
    folds = list(StratifiedGroupKFold(5).split(features, labels, groups))
    right = []
    for penalty in (0.001, 0.01, 0.1, 1.0, 10.0):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=2000))
        right.append([model.fit(features[a], labels[a]).score(features[b], labels[b]) for a, b in folds])
    near = [knn((features[a], labels[a])).score(features[b], labels[b]) for a, b in folds]
    metrics = cross_validated_metrics((features, labels), groups)
    assert metrics == {"probe_top1": pytest.approx(max(np.mean(right, axis=1)), abs=0.012), "knn_top1": np.mean(near)}
    assert 0.5 < metrics["probe_top1"] < 1


def test_groups_are_kept_apart() -> None:
    """Each group of four videos is a corner of its own: known groups tell the label, new ones do not."""
    rng = np.random.default_rng(0)
    labels, groups = np.repeat(np.arange(2).repeat(10), 4), np.repeat([f"group {index}" for index in range(20)], 4)
    features = (10 * np.eye(20)[np.repeat(np.arange(20), 4)] + rng.normal(size=(80, 20))).astype(np.float32)
    alone = [str(index) for index in range(80)]
    assert cross_validated_metrics((features, labels), alone)["probe_top1"] > 0.95
    assert cross_validated_metrics((features, labels), list(groups))["probe_top1"] < 0.7


def test_few_videos_have_fewer_folds() -> None:
    features, labels = clouds(2, 0)
    assert cross_validated_metrics((features, labels), list("abcdef"))["probe_top1"] >= 0
    with pytest.raises(ValueError, match="1 groups of labelled videos"):
        cross_validated_metrics((features, labels), ["a"] * 6)
    with pytest.raises(ValueError, match=r"\[1, 1, 1\]"):
        cross_validated_metrics((features[::2], labels[::2]), list("abc"))


def test_neighbours_vote_by_angle_not_by_distance() -> None:
    features = np.array([[1, 0.1], [2, 0], [0, 1], [0.1, 3], [0, 2]], dtype=np.float32)
    labels = np.array([0, 0, 1, 1, 1])
    far = (np.array([[1000, 1], [1, 1000]], dtype=np.float32), np.array([0, 1]))
    assert knn((features, labels), k=1).score(*far) == 1.0
    assert knn((features, labels), k=20).score(*far) == 0.5  # all five vote: three of them for label 1


def test_time_steps_are_kept_side_by_side(data: Manifest) -> None:
    """Against a loop over the steps; their mean is the mean of all tokens."""
    params = small_params(runtime={"eval_batch_size": 3}, evaluate={"pool": "time"})
    encoder = VideoEncoder(PARAMS.model, PARAMS.clip)
    steps, rows, columns = encoder.grid
    mean, _ = frozen_features(encoder, data, "train", PARAMS)
    kept, _ = frozen_features(encoder, data, "train", params)
    assert kept.shape == (8, steps * PARAMS.model.dim)
    np.testing.assert_allclose(kept.reshape(8, steps, -1).mean(axis=1), mean, rtol=1e-4, atol=1e-5)

    video = data.videos("train")[0]
    view = torch.from_numpy(sample_views(data.path_of(video), PARAMS.clip, video.fps, 1, 1).frames)
    with torch.no_grad():
        tokens = encoder.eval()(model_input(view, PARAMS.clip))[0]
    for step in range(steps):
        expected = tokens[step * rows * columns : (step + 1) * rows * columns].mean(dim=0)
        np.testing.assert_allclose(kept[0].reshape(steps, -1)[step], expected, rtol=1e-4, atol=1e-5)


def test_the_encoder_that_finetuning_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = MaskedMotionModel(PARAMS.model, PARAMS.clip, PARAMS.pretrain)
    save_weights(tmp_path / "models/other/model.safetensors", model)
    encoder = start_encoder(small_params(finetune={"init": "other"}))
    for name, value in model.encoder.state_dict().items():
        torch.testing.assert_close(encoder.state_dict()[name], value, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"models/other/model\.safetensors.*blocks\.2"):
        start_encoder(small_params(finetune={"init": "other"}, model={"depth": 3}))
    with pytest.raises(ValueError, match=r"models/none/model\.safetensors"):
        start_encoder(small_params(finetune={"init": "none"}))

    random = [start_encoder(small_params(finetune={"init": "random"}, seed=seed)).embed.weight for seed in (1, 1, 2)]
    torch.testing.assert_close(random[0], random[1], rtol=0, atol=0)
    assert not torch.equal(random[0], random[2])
