"""Traffic unlike that of the evaluation raises the drift above the alert's threshold; balanced traffic does not."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from starlette.testclient import TestClient

from mme.evaluation.answers import ANSWERS_FILE, count_answers, facts, softmax
from mme.evaluation.classifier import Classifier
from mme.system.files import write_json
from mme.video.sampling import Views
from serving.app import create_app
from tests import media
from tests.serving.service import RAW, make_settings
from tests.serving.test_classify import read_metric
from tests.tiny import LABELS, save_tiny_folder

WINDOW = 40
VIDEOS = 'mme_prediction_{}_count{{kind="video"}}'


def threshold() -> float:
    alerts = yaml.safe_load((Path(__file__).parents[2] / "docker/prometheus/alerts.yml").read_text(encoding="utf-8"))
    rules = {rule["alert"]: rule["expr"] for group in alerts["groups"] for rule in group["rules"]}
    found = re.fullmatch(r".*mme_answer_drift\) > ([0-9.]+)", rules["MmeAnswersDrift"])
    assert found is not None
    return float(found[1])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("videos")
    return [media.write(folder / f"{seed}.mp4", num_frames=8, seed=seed).read_bytes() for seed in range(20)]


@pytest.fixture
def service(tmp_path: Path, videos: list[bytes]) -> Iterator[tuple[TestClient, dict[str, list[bytes]]]]:
    """A service whose model was evaluated on ``videos``, which are also given by their answers."""
    folder = save_tiny_folder(tmp_path / "model")
    classifier = Classifier.load(folder)
    by_label = defaultdict[str, list[bytes]](list)
    rows = [classifier.classify(video).logits for video in videos]
    for video, logits in zip(videos, rows, strict=True):
        by_label[LABELS[int(logits.argmax())]].append(video)
    assert len(by_label) > 1
    write_json(folder / ANSWERS_FILE, count_answers(softmax(np.stack(rows)), LABELS).model_dump(mode="json"))
    with TestClient(create_app(make_settings(folder, tmp_path, drift_window=WINDOW))) as client:
        yield client, by_label


def send(client: TestClient, video: bytes) -> None:
    assert client.post("/classify", content=video, headers=RAW).status_code == 200


def figures(client: TestClient) -> dict[str, float]:
    return {
        name: read_metric(client, f'mme_answer_drift{{of="{name}"}}') for name in ("label", "confidence", "entropy")
    }


def test_traffic_of_one_class_rings_the_alert(
    service: tuple[TestClient, dict[str, list[bytes]]], videos: list[bytes]
) -> None:
    client, by_label = service
    for video in videos[: WINDOW // 2 - 1]:
        send(client, video)
    assert all(map(math.isnan, figures(client).values()))  # too few to tell
    for video in [*videos[WINDOW // 2 - 1 :], *videos]:
        send(client, video)
    assert max(figures(client).values()) < threshold()
    for label, own in by_label.items():
        assert read_metric(client, f'mme_predictions_total{{kind="video",label="{label}"}}') == 2 * len(own)
    assert read_metric(client, VIDEOS.format("confidence")) == WINDOW
    assert read_metric(client, VIDEOS.format("entropy")) == WINDOW

    rarest = min(by_label, key=lambda label: len(by_label[label]))
    for number in range(WINDOW):
        send(client, by_label[rarest][number % len(by_label[rarest])])
    assert figures(client)["label"] > threshold()
    for video in [*videos, *videos]:  # the window slides on
        send(client, video)
    assert max(figures(client).values()) < threshold()


def test_model_without_an_evaluation_has_no_drift(client: TestClient, clip: Path) -> None:
    for _ in range(2):
        send(client, clip.read_bytes())
    metrics = client.get("/metrics").text
    assert 'mme_predictions_total{kind="video",label=' in metrics
    assert "mme_answer_drift{" not in metrics


def test_windows_and_views_are_answers_but_drift_is_that_of_whole_videos_alone(
    service: tuple[TestClient, dict[str, list[bytes]]], tmp_path: Path
) -> None:
    client, by_label = service
    long = media.write(tmp_path / "long.mp4", num_frames=64).read_bytes()
    asked = {"window_s": 0.5, "hop_s": 0.125, "top_k": 4}
    windows = client.post("/classify", content=long, headers=RAW, params=asked).json()["windows"]
    assert len(windows) > WINDOW / 2
    best = [window["predictions"][0] for window in windows]
    check_series(client, "window", [one["label"] for one in best], {"confidence": [one["probability"] for one in best]})

    classifier = Classifier.load(tmp_path / "model")
    rarest = min(by_label.values(), key=len)[0]
    views = classifier.prepare(rarest).frames
    for _ in range(WINDOW):
        sent = {"name": "frames", "datatype": "UINT8", "shape": views.shape, "data": views.ravel().tolist()}
        assert client.post("/v2/models/tiny/infer", json={"inputs": [sent]}).status_code == 200
    logits = np.stack([classifier.predict([Views(view[None], None, 0.0)])[0] for view in views] * WINDOW)
    indices, confidence, entropy = facts(softmax(logits))
    values = {"confidence": confidence.tolist(), "entropy": entropy.tolist()}
    check_series(client, "view", [LABELS[index] for index in indices], values)

    for _ in range(WINDOW):  # other views than those of the evaluation
        assert client.post("/classify?segments=1", content=rarest, headers=RAW).status_code == 200
    assert read_metric(client, VIDEOS.format("confidence")) == WINDOW
    assert all(map(math.isnan, figures(client).values()))


def check_series(client: TestClient, kind: str, labels: list[str], values: dict[str, list[float]]) -> None:
    for label in set(labels):
        assert read_metric(client, f'mme_predictions_total{{kind="{kind}",label="{label}"}}') == labels.count(label)
    for name, found in values.items():
        total = read_metric(client, f'mme_prediction_{name}_sum{{kind="{kind}"}}')
        assert total == pytest.approx(sum(found), abs=1e-3)
