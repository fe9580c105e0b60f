"""Corrections by callers: what is kept, under which names and limits, and what is refused."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mme.evaluation.classifier import Classifier
from mme.ingest.feedback import MAX_CORRECTIONS, load_record
from mme.ingest.transcode import NormalForm, SourceVideo
from mme.video.codec import GOP_FRAMES
from serving.app import create_app
from tests import media
from tests.serving.service import make_settings, server
from tests.serving.test_classify import read_metric
from tests.tiny import LABELS

DAY_S = 86_400


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept/here"


@pytest.fixture
def service(folder: Path, kept: Path, tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(make_settings(folder, tmp_path, feedback_dir=kept))) as client:
        yield client


def tell(client: TestClient, clip: bytes, label: str, **fields: str) -> Any:
    return client.post("/feedback", files={"file": ("../../evil.mp4", clip)}, data={"label": label, **fields})


def digest_of(clip: bytes) -> str:
    return hashlib.sha256(clip).hexdigest()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_clip_is_kept_in_the_normal_form_with_both_labels(
    service: TestClient, kept: Path, folder: Path, tmp_path: Path
) -> None:
    path = media.write(tmp_path / "upload.mov", num_frames=25, size=(640, 480), rotation=90, audio=True, title="secret")
    clip = path.read_bytes()
    expected = Classifier.load(folder).classify(path).predictions[0]
    answer = tell(service, clip, "right", note=" it was a rotation\n")
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert (document["label"], document["former_label"], document["clip"]) == ("right", None, digest_of(clip))
    assert document["answered"] == {"label": expected.label, "probability": pytest.approx(expected.probability)}

    assert names(kept) == {f"{digest_of(clip)}.mp4", f"{digest_of(clip)}.json"}
    record = load_record(kept / f"{digest_of(clip)}.json")
    assert record.duration_s == pytest.approx(25 / 16)
    (correction,) = record.corrections
    assert (correction.label, correction.note, correction.answered) == ("right", "it was a rotation", expected.label)
    assert (correction.model, correction.version, correction.model_digest) == (
        "tiny",
        None,
        document["model"]["digest"],
    )
    assert abs(correction.received.timestamp() - time.time()) < 60

    video = SourceVideo(kept / record.clip_name)
    assert video.is_normal(NormalForm(16.0, 256, 0, GOP_FRAMES))
    assert (video.info.width, video.info.height, video.info.num_frames) == (256, 342, 25)
    assert b"secret" not in (kept / record.clip_name).read_bytes()


def test_small_clip_is_not_enlarged_and_a_normal_one_is_encoded_anew(
    service: TestClient, kept: Path, clip: Path
) -> None:
    assert tell(service, clip.read_bytes(), "up").status_code == 200
    stored = kept / f"{digest_of(clip.read_bytes())}.mp4"
    info = SourceVideo(stored).info
    assert (info.width, info.height) == (96, 64)
    assert stored.read_bytes() != clip.read_bytes()


def test_later_label_replaces_and_the_earlier_ones_stay_in_the_record(
    service: TestClient, kept: Path, clip: Path
) -> None:
    content = clip.read_bytes()
    told = [LABELS[number % 4] for number in range(MAX_CORRECTIONS + 3)]
    answers = [tell(service, content, label).json() for label in told]
    assert [answer["former_label"] for answer in answers] == [None, *told[:-1]]
    assert len(names(kept)) == 2
    record = load_record(kept / f"{digest_of(content)}.json")
    assert [correction.label for correction in record.corrections] == told[-MAX_CORRECTIONS:]
    assert record.last.label == told[-1]
    agreed = sum(label == answers[0]["answered"]["label"] for label in told)
    assert read_metric(service, 'mme_feedback_total{outcome="agrees"}') == agreed
    assert read_metric(service, 'mme_feedback_total{outcome="disagrees"}') == len(told) - agreed
    assert read_metric(service, "mme_feedback_clips") == 1
    assert read_metric(service, "mme_feedback_bytes") == sum(path.stat().st_size for path in kept.iterdir())


def test_answer_to_feedback_is_none_of_the_answers_that_are_counted(service: TestClient, clip: Path) -> None:
    tell(service, clip.read_bytes(), "up")
    assert "mme_predictions_total{" not in service.get("/metrics").text


def problem(answer: Any) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["type"])


def test_unknown_label_is_refused_with_those_like_it(service: TestClient, kept: Path, clip: Path) -> None:
    answer = tell(service, clip.read_bytes(), "rihgt")
    assert answer.status_code == 422
    assert problem(answer) == "/problems/unknown-label"
    assert answer.json()["labels"][0] == "right"
    assert "'rihgt' is not one of the 4 labels, such as right" in answer.json()["detail"]
    assert names(kept) == set()


@pytest.mark.parametrize(
    ("fields", "expected", "word"),
    [
        ({}, "invalid-parameter", "label"),
        ({"label": "  "}, "invalid-parameter", "label"),
        ({"label": "up", "note": "n" * 1001}, "invalid-parameter", "1000"),
        ({"label": "up", "note": "n" * 5000}, "malformed-body", "4096"),
    ],
)
def test_fields_are_checked(
    service: TestClient, kept: Path, clip: Path, fields: dict[str, str], expected: str, word: str
) -> None:
    answer = service.post("/feedback", files={"file": clip.read_bytes()}, data=fields)
    assert problem(answer) == f"/problems/{expected}"
    assert word in answer.json()["detail"]
    assert names(kept) == set()


def test_what_is_no_video_is_not_kept(service: TestClient, kept: Path, tmp_path: Path) -> None:
    notes = media.text(tmp_path / "notes.mp4").read_bytes()
    assert problem(tell(service, notes, "up")) == "/problems/not-a-video"
    assert problem(service.post("/feedback", content=b"", headers={"content-type": "video/mp4"})).endswith("parameter")
    assert names(kept) == set()


def test_full_folder_refuses_new_clips_and_takes_labels_of_kept_ones(
    folder: Path, kept: Path, clip: Path, tmp_path: Path
) -> None:
    settings = make_settings(folder, tmp_path, feedback_dir=kept, feedback_max_bytes=12_000)
    other = media.write(tmp_path / "other.mp4", num_frames=20, size=(320, 240), seed=1).read_bytes()
    with TestClient(create_app(settings)) as client:
        assert tell(client, clip.read_bytes(), "up").status_code == 200
        answer = tell(client, other, "up")
        assert (answer.status_code, problem(answer)) == (507, "/problems/feedback-full")
        assert "12000 bytes are taken" in answer.json()["detail"]
        assert tell(client, clip.read_bytes(), "down").json()["former_label"] == "up"
    assert len(names(kept)) == 2


def test_clips_expire_and_remains_of_a_crash_are_removed(folder: Path, kept: Path, clip: Path, tmp_path: Path) -> None:
    settings = make_settings(folder, tmp_path, feedback_dir=kept, feedback_max_days=30)
    other = media.write(tmp_path / "other.mp4", num_frames=20, seed=1).read_bytes()
    with TestClient(create_app(settings)) as client:
        tell(client, clip.read_bytes(), "up")
        tell(client, other, "up")
    old = kept / f"{digest_of(other)}.json"
    os.utime(old, (time.time() - 31 * DAY_S,) * 2)
    orphan = kept / f"{'0' * 64}.mp4"
    unfinished = kept / f".{'1' * 64}.mp4.abc"
    orphan.touch()
    unfinished.mkdir()
    for path in (orphan, unfinished):
        os.utime(path, (time.time() - 2 * DAY_S,) * 2)
    with TestClient(create_app(settings)) as client:
        assert read_metric(client, "mme_feedback_clips") == 1
    assert names(kept) == {f"{digest_of(clip.read_bytes())}{suffix}" for suffix in (".mp4", ".json")}


def test_damaged_record_is_replaced(service: TestClient, kept: Path, clip: Path) -> None:
    tell(service, clip.read_bytes(), "up")
    record = kept / f"{digest_of(clip.read_bytes())}.json"
    record.write_text("{")
    assert tell(service, clip.read_bytes(), "down").json()["former_label"] is None
    assert load_record(record).last.label == "down"


def test_without_a_folder_there_is_no_feedback(client: TestClient, service: TestClient, clip: Path) -> None:
    assert tell(client, clip.read_bytes(), "up").status_code == 404
    assert "/feedback" not in client.get("/openapi.json").json()["paths"]
    assert client.get("/ready").json()["feedback"] is False
    assert "/feedback" in service.get("/openapi.json").json()["paths"]
    assert service.get("/ready").json()["feedback"] is True


def test_keys_and_rates_are_those_of_other_requests(folder: Path, kept: Path, clip: Path, tmp_path: Path) -> None:
    keys = {"api_keys": hashlib.sha256(b"secret").hexdigest(), "rate_per_minute": 1}
    with TestClient(create_app(make_settings(folder, tmp_path, feedback_dir=kept, **keys))) as client:
        assert problem(tell(client, clip.read_bytes(), "up")) == "/problems/unauthorized"
        client.headers["Authorization"] = "Bearer secret"
        assert tell(client, clip.read_bytes(), "up").status_code == 200
        assert problem(tell(client, clip.read_bytes(), "up")) == "/problems/rate-limited"


def test_folder_that_cannot_be_made_ends_the_start(folder: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    log = tmp_path / "log"
    with (
        pytest.raises(AssertionError),
        server(folder, tmp_path, log=log, MME_FEEDBACK_DIR=str(taken / "kept")),
    ):
        pass
    assert str(taken) in log.read_text()
