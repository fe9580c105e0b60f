from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mme.config import EvaluateParams, RuntimeParams
from mme.evaluation.classifier import Classifier
from mme.evaluation.multiview import (
    CALIBRATION_BINS,
    Evaluation,
    calibration,
    confusion_pairs,
    evaluate,
    metrics,
    per_class,
    predictions,
)
from mme.manifest import Manifest, Video
from mme.video.codec import write_video
from mme.viz.plots import calibration_figure, confusion_figure, save_figure
from tests.factories import row
from tests.tiny import LABELS, moving_frames, save_tiny_folder

PARAMS = EvaluateParams(split="test", segments=2, crops=1, pool="mean", protocols=("finetuned",))
ONE, TWO = (RuntimeParams(num_workers=count, eval_batch_size=3) for count in (1, 2))


QUARANTINED: dict[str, Any] = {"path": "", "label": None, "num_frames": 0, "status": "quarantined"}


def manifest_of(folder: Path, rows: list[Video]) -> Manifest:
    """A manifest with a file for each usable row; the file's content follows from the id."""
    for video in rows:
        if video.status == "ok":
            frames = moving_frames(seed=sum(video.id.encode()))
            write_video(folder / "videos" / video.path, frames, fps=10, crf=10, gop_frames=4)
    return Manifest(rows, folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier.load(save_tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    rows = [row(f"v{i}", "test", label=LABELS[i % 4]) for i in range(8)]
    rows += [row("other", "val"), row("bad", "test", reason="truncated", **QUARANTINED)]
    rows += [row("bad-val", "val", reason="empty", **QUARANTINED)]
    return manifest_of(tmp_path, rows)


def random_evaluation(num_videos: int = 200, num_labels: int = 7, seed: int = 0) -> Evaluation:
    """Later labels have more videos and are recognised better; the last one has no videos."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, num_labels)
    targets = rng.choice(num_labels - 1, num_videos, p=weights / weights.sum())
    logits = rng.normal(size=(num_videos, num_labels)).astype(np.float32) * 2
    logits[np.arange(num_videos), targets] += targets * 0.7
    return Evaluation(
        labels=tuple(f"label-{i}" for i in range(num_labels)),
        ids=tuple(f"v{i:03}" for i in range(num_videos)),
        targets=targets.astype(np.int64),
        logits=logits,
        unreadable=(),
        num_quarantined=0,
    )


def test_every_video_of_the_split_gets_the_classifiers_logits(classifier: Classifier, manifest: Manifest) -> None:
    result = evaluate(classifier, manifest, PARAMS, TWO, progress=False)
    assert result.ids == tuple(f"v{i}" for i in range(8))
    assert result.targets.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    for video_id, logits in zip(result.ids, result.logits, strict=True):
        path = manifest.path_of(manifest[video_id])
        assert logits == pytest.approx(classifier.classify(path, segments=2, crops=1).logits, abs=1e-5)
    assert result.unreadable == ()
    assert result.num_quarantined == 1


def test_views_follow_the_parameters(classifier: Classifier, manifest: Manifest) -> None:
    params = EvaluateParams(split="val", segments=3, crops=3, pool="mean", protocols=("finetuned",))
    result = evaluate(classifier, manifest, params, RuntimeParams(num_workers=1, eval_batch_size=4), progress=False)
    path = manifest.path_of(manifest["other"])
    assert result.ids == ("other",)
    assert result.logits[0] == pytest.approx(classifier.classify(path, segments=3, crops=3).logits, abs=1e-5)


def test_batch_size_and_threads_do_not_change_the_answer(classifier: Classifier, manifest: Manifest) -> None:
    result = evaluate(classifier, manifest, PARAMS, ONE, progress=False)
    for batch_size, num_workers in ((1, 2), (100, 3)):
        runtime = RuntimeParams(num_workers=num_workers, eval_batch_size=batch_size)
        other = evaluate(classifier, manifest, PARAMS, runtime, progress=False)
        assert other.ids == result.ids
        assert other.logits == pytest.approx(result.logits, abs=1e-5)


def test_videos_are_told_apart_by_id_not_by_file_name(classifier: Classifier, tmp_path: Path) -> None:
    rows = [row("a/video", "test", label="left"), row("b/video", "test", label="right")]
    result = evaluate(classifier, manifest_of(tmp_path, rows), PARAMS, ONE, progress=False)
    assert result.ids == ("a/video", "b/video")
    assert not np.allclose(result.logits[0], result.logits[1], atol=1e-3)


def test_unreadable_videos_are_reported_and_counted(classifier: Classifier, manifest: Manifest) -> None:
    manifest.path_of(manifest["v2"]).write_bytes(b"")
    manifest.path_of(manifest["v5"]).unlink()
    result = evaluate(classifier, manifest, PARAMS, TWO, progress=False)
    assert [(video.id, video.reason) for video in result.unreadable] == [
        ("v2", "empty"),
        ("v5", "FileNotFoundError: No such file or directory"),
    ]
    assert result.ids == ("v0", "v1", "v3", "v4", "v6", "v7")
    figures = metrics(result)
    assert (figures["num_videos"], figures["num_unreadable"], figures["num_quarantined"]) == (6, 2, 1)


def test_no_readable_video_is_an_error(classifier: Classifier, manifest: Manifest) -> None:
    for video in manifest.videos("test"):
        manifest.path_of(video).write_bytes(b"")
    with pytest.raises(ValueError, match="none of its 8 videos can be decoded"):
        evaluate(classifier, manifest, PARAMS, ONE, progress=False)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "split test: the manifest has no videos"),
        ([row("v", "test", label=None)], "v has the label None"),
        ([row("v", "test", label="sideways")], "v has the label 'sideways', the model knows"),
    ],
)
def test_a_split_that_does_not_fit_the_model_is_an_error(
    classifier: Classifier, tmp_path: Path, rows: list[Video], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(
            classifier,
            Manifest(rows, tmp_path),
            PARAMS,
            ONE,
            progress=False,
        )


def test_metrics_agree_with_a_recount() -> None:
    evaluation = random_evaluation()
    logits, targets = evaluation.logits.astype(np.float64), evaluation.targets
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ranks = [int((row > row[target]).sum()) for row, target in zip(logits, targets, strict=True)]
    by_class = [np.mean([r == 0 for r, t in zip(ranks, targets, strict=True) if t == k]) for k in range(6)]
    nll = -np.mean([math.log(row[target]) for row, target in zip(chances, targets, strict=True)])
    error = 0.0
    confidence = chances.max(axis=1)
    for low in np.arange(CALIBRATION_BINS) / CALIBRATION_BINS:
        inside = (confidence > low) & (confidence <= low + 1 / CALIBRATION_BINS)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - (np.array(ranks)[inside] == 0).mean())
    figures = metrics(evaluation)
    assert figures["top1"] == pytest.approx(np.mean([r == 0 for r in ranks]), abs=1e-6)
    assert figures["top5"] == pytest.approx(np.mean([r < 5 for r in ranks]), abs=1e-6)
    assert figures["mean_class_accuracy"] == pytest.approx(np.mean(by_class), abs=1e-6)
    assert figures["nll"] == pytest.approx(nll, abs=1e-6)
    assert figures["calibration_error"] == pytest.approx(error, abs=1e-6)
    assert 0.3 < figures["top1"] < figures["top5"] < 1
    assert abs(figures["top1"] - figures["mean_class_accuracy"]) > 0.01


def test_top5_of_fewer_labels_is_all_of_them() -> None:
    assert metrics(random_evaluation(num_labels=4))["top5"] == 1


def test_confusion_and_class_table_agree_with_a_recount() -> None:
    evaluation = random_evaluation()
    table = per_class(evaluation).set_index("label")
    predicted = evaluation.logits.argmax(axis=1)
    for k, label in enumerate(evaluation.labels):
        for other in range(7):
            count = sum(t == k and p == other for t, p in zip(evaluation.targets, predicted, strict=True))
            assert evaluation.confusion[k, other] == count
        correct = int(((evaluation.targets == k) & (predicted == k)).sum())
        assert table.loc[label, "num_videos"] == (evaluation.targets == k).sum()
        assert table.loc[label, "num_correct"] == correct
        if k < 6:
            assert table.loc[label, "top1"] == pytest.approx(correct / (evaluation.targets == k).sum(), abs=1e-6)
            mistakes = np.bincount(predicted[(evaluation.targets == k) & (predicted != k)], minlength=7)
            assert mistakes[evaluation.labels.index(str(table.loc[label, "most_confused_with"]))] == mistakes.max()
        assert table.loc[label, "precision"] == pytest.approx(correct / (predicted == k).sum(), abs=1e-6)
    assert math.isnan(float(table["top1"].iloc[6]))
    assert table["most_confused_with"].iloc[6] == ""


def test_predictions_name_every_video_and_hold_its_logits() -> None:
    evaluation = random_evaluation(num_videos=20)
    table = predictions(evaluation)
    assert tuple(table["id"]) == evaluation.ids
    assert list(table.columns[4:]) == [f"logit/{label}" for label in evaluation.labels]
    logits = table.iloc[:, 4:].to_numpy()
    assert logits == pytest.approx(evaluation.logits, abs=1e-6)
    assert list(table["predicted"]) == [evaluation.labels[i] for i in logits.argmax(axis=1)]
    assert list(table["label"]) == [evaluation.labels[i] for i in evaluation.targets]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert table["confidence"].to_numpy() == pytest.approx(1 / odds.sum(axis=1), abs=1e-5)
    pairs = confusion_pairs(evaluation)
    assert list(pairs.columns) == ["actual", "predicted"]
    assert pd.crosstab(pairs["actual"], pairs["predicted"]).to_numpy().sum() == 20
    assert list(pairs["actual"]) == list(table["label"])


def test_calibration_bins_hold_every_video_and_give_the_error() -> None:
    evaluation = random_evaluation()
    bins = calibration(evaluation)
    assert bins["num_videos"].sum() == 200
    used = bins[bins["num_videos"] > 0]
    assert ((used["confidence"] >= used["low"]) & (used["confidence"] <= used["high"])).all()
    gaps = (used["confidence"] - used["accuracy"]).abs() * used["num_videos"] / 200
    assert gaps.sum() == pytest.approx(metrics(evaluation)["calibration_error"], abs=1e-5)


def test_pictures_are_drawn_with_equal_bytes(tmp_path: Path) -> None:
    evaluation = random_evaluation(num_labels=3)
    for name in ("a", "b"):
        save_figure(confusion_figure(evaluation.confusion, evaluation.labels), tmp_path / f"confusion-{name}.png")
        save_figure(calibration_figure(calibration(evaluation), 0.1), tmp_path / f"calibration-{name}.png")
    for kind in ("confusion", "calibration"):
        content = (tmp_path / f"{kind}-a.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert content == (tmp_path / f"{kind}-b.png").read_bytes()


@pytest.mark.parametrize(("num_labels", "counts", "names"), [(30, True, True), (31, False, True), (81, False, False)])
def test_many_labels_leave_no_room_for_counts_and_names(num_labels: int, counts: bool, names: bool) -> None:
    evaluation = random_evaluation(num_labels=num_labels)
    axes = confusion_figure(evaluation.confusion, evaluation.labels).axes[0]
    assert bool(axes.texts) == counts
    assert ("label-1" in [text.get_text() for text in axes.get_xticklabels()]) == names


def test_confusion_picture_shows_counts_where_they_stand() -> None:
    figure = confusion_figure(np.array([[3, 1], [0, 2]]), ("left", "right"))
    axes = figure.axes[0]
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "3", (1, 0): "1", (1, 1): "2"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "actual")
    assert axes.get_title() == "6 videos, 83.3% correct"
