from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from mme.evaluation.classifier import Classifier
from mme.models.precision import has_bf16
from serving.app import create_app
from tests import media
from tests.serving.service import make_settings
from tests.tiny import LABELS


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Classifier:
    return Classifier.load(folder)


def classify(client: TestClient, path: Path, query: str = "") -> Any:
    response = client.post(f"/classify{query}", files={"file": (path.name, path.read_bytes(), "video/mp4")})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("query", ["", "?segments=1", "?segments=3&crops=3"])
def test_logits_equal_those_of_the_classifier(
    client: TestClient, classifier: Classifier, clip: Path, query: str
) -> None:
    views = {key: int(value) for key, value in (item.split("=") for item in query[1:].split("&") if item)}
    expected = classifier.classify(clip, **views)
    answer = classify(client, clip, f"{query or '?'}&logits=true&top_k=4")
    np.testing.assert_allclose(answer["logits"], expected.logits, rtol=0, atol=1e-5)
    assert [item["label"] for item in answer["predictions"]] == [item.label for item in expected.predictions]
    chances = [item["probability"] for item in answer["predictions"]]
    np.testing.assert_allclose(chances, [item.probability for item in expected.predictions], atol=1e-6)
    assert sum(chances) == pytest.approx(1.0)
    assert answer["views"]["num_views"] == expected.num_views


def test_answer_contains_model_video_views_and_timings(client: TestClient, classifier: Classifier, clip: Path) -> None:
    answer = classify(client, clip, "?top_k=2")
    assert len(answer["predictions"]) == 2
    assert answer["logits"] is None
    assert answer["model"] == {"name": "tiny", "version": None, "digest": classifier.digest}
    assert answer["video"] == {
        "num_frames": 20, "fps": 16.0, "width": 96, "height": 64, "duration_s": 1.25, "codec": "h264"
    }  # fmt: skip
    assert answer["views"] == {"segments": 2, "crops": 1, "num_views": 2}
    timings = answer["timings"]
    parts = [value for name, value in timings.items() if name != "total_ms"]
    assert min(parts) >= 0
    assert 0 < timings["decode_ms"] <= sum(parts) <= timings["total_ms"]


def test_raw_body_is_accepted(client: TestClient, clip: Path) -> None:
    expected = classify(client, clip, "?logits=true")["logits"]
    for kind in ("video/mp4", "video/x-anything", "application/octet-stream"):
        response = client.post("/classify?logits=1", content=clip.read_bytes(), headers={"content-type": kind})
        np.testing.assert_allclose(response.json()["logits"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("b.avi", {"codec": "mpeg4"}),
        ("c.mov", {"rotation": 90}),
        ("d.mkv", {"variable_rate": True}),
        ("e.mp4", {"audio": True, "bframes": 2}),
    ],
)
def test_other_containers_and_codecs_are_classified(
    client: TestClient, classifier: Classifier, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    path = media.write(tmp_path / name, num_frames=20, **changes)
    answer = classify(client, path, "?logits=true")
    np.testing.assert_allclose(answer["logits"], classifier.classify(path).logits, rtol=0, atol=1e-5)
    size = (64, 96) if "rotation" in changes else (96, 64)
    assert (answer["video"]["width"], answer["video"]["height"]) == size


def test_concurrent_videos_get_their_own_answers(client: TestClient, classifier: Classifier, tmp_path: Path) -> None:
    paths = [media.write(tmp_path / f"{i}.mp4", num_frames=10 + i, seed=i) for i in range(12)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda path: classify(client, path, "?logits=true"), paths * 2))
    for path, answer in zip(paths * 2, answers, strict=True):
        np.testing.assert_allclose(answer["logits"], classifier.classify(path).logits, rtol=0, atol=1e-5)
        assert answer["video"]["num_frames"] == classifier.classify(path).video.num_frames  # type: ignore[union-attr]


def test_batch_has_an_entry_per_file(client: TestClient, clip: Path, tmp_path: Path) -> None:
    good, bad = clip.read_bytes(), media.text(tmp_path / "notes.mp4").read_bytes()
    files = [("file", ("a.mp4", good)), ("file", ("b.mp4", bad)), ("files", ("c.mp4", b"")), ("file", ("d.mp4", good))]
    response = client.post("/classify/batch?top_k=1", files=files)
    assert response.status_code == 200
    results = response.json()["results"]
    assert [item["status"] for item in results] == [200, 415, 400, 200]
    assert [item["name"] for item in results] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert [item["index"] for item in results] == [0, 1, 2, 3]
    assert results[1]["problem"]["type"] == "/problems/not-a-video"
    assert results[2]["problem"]["type"] == "/problems/empty"
    assert results[0]["result"]["predictions"] == classify(client, clip, "?top_k=1")["predictions"]
    assert results[0]["problem"] is None
    assert results[1]["result"] is None


def test_labels_and_model(client: TestClient, classifier: Classifier, folder: Path) -> None:
    assert client.get("/labels").json() == {"labels": list(LABELS)}
    model = client.get("/model").json()
    assert model["digest"] == classifier.digest
    assert model["address"] == str(folder)
    assert model["num_labels"] == len(LABELS)
    assert model["precision"] == "32"
    assert model["clip"] == {"snippets": 1, "num_frames": 4, "stride_frames": 2, "fps": 16.0, "size": 16}
    assert model["views"] == {"segments": 2, "crops": 1}
    assert model["metrics"] == {"val/top1": 0.5}
    assert model["provenance"] == {"git_commit": "0" * 40}


@pytest.mark.skipif(not has_bf16(), reason="this processor has no instructions for bf16")
def test_service_computes_in_its_precision(folder: Path, classifier: Classifier, clip: Path, tmp_path: Path) -> None:
    expected = classifier.classify(clip).logits
    with TestClient(create_app(make_settings(folder, tmp_path, precision="bf16"))) as client:
        assert client.get("/model").json()["precision"] == "bf16"
        difference = np.abs(classify(client, clip, "?logits=true")["logits"] - expected).max()
    assert 1e-4 < difference < 0.05


def test_health_ready_and_metrics(client: TestClient, clip: Path) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    ready = client.get("/ready").json()
    assert ready["status"] == "ready"
    assert ready["last_load_error"] is None
    before = read_metric(client, 'mme_videos_total{outcome="ok"}')
    classify(client, clip)
    assert read_metric(client, 'mme_videos_total{outcome="ok"}') == before + 1
    assert read_metric(client, 'mme_http_requests_total{method="POST",route="/classify",status="200"}') >= 1
    assert read_metric(client, "mme_admitted_requests") == 0
    assert read_metric(client, f'mme_model_info{{digest="{ready["model"]["digest"]}",name="tiny",version=""}}') == 1


def read_metric(client: TestClient, series: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.rsplit(" ", 1)[0] == series)
