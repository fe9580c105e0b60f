"""One motion at any frame rate has one answer: in evaluation, Python, the command line, MLflow and the service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from mme.commands.app import app
from mme.config import EvaluateParams, RuntimeParams
from mme.data.labelled.clips import LabelledDataset
from mme.evaluation.classifier import Classifier
from mme.evaluation.multiview import evaluate
from mme.evaluation.probe import centre_views
from mme.manifest import Manifest
from mme.registry.pyfunc import VideoClassifier
from mme.video.codec import read_frames
from serving.app import create_app
from tests.factories import row
from tests.rates import FPS, write_at, write_twins
from tests.serving.service import RAW, make_settings
from tests.small_data import small_params
from tests.tiny import save_tiny_folder


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_twins(tmp_path_factory.mktemp("data") / "videos")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("models") / "tiny", fps=FPS)


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with TestClient(create_app(make_settings(folder, tmp_path_factory.mktemp("uploads")))) as client:
        yield client


@pytest.fixture(scope="module")
def manifest(twins: dict[str, Path]) -> Manifest:
    labels = ("left", "right")
    rows = [row(name, "test", path=name, label=labels[n % 2], num_frames=40) for n, name in enumerate(twins)]
    return Manifest(rows, twins["same.mp4"].parents[1])


def all_equal(answers: dict[str, Any]) -> None:
    expected = answers.pop("same.mp4")
    for name, answer in answers.items():
        assert np.array_equal(answer, expected), name


def test_views_of_a_classifier(twins: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    classifier = Classifier.load(folder)
    all_equal({name: classifier.prepare(path).frames for name, path in twins.items()})
    all_equal({name: classifier.prepare(path.read_bytes(), 3, 3).frames for name, path in twins.items()})
    slower = Classifier.load(save_tiny_folder(tmp_path / "slower", fps=FPS / 2))
    assert not np.array_equal(slower.prepare(twins["same.mp4"]).frames, classifier.prepare(twins["same.mp4"]).frames)


def test_decoded_frames_are_at_the_rate_of_the_model(twins: dict[str, Path], folder: Path) -> None:
    classifier = Classifier.load(folder)
    frames = read_frames(twins["same.mp4"])
    assert np.array_equal(classifier.prepare(frames).frames, classifier.prepare(twins["double.mp4"]).frames)


def test_evaluation_and_training(manifest: Manifest, folder: Path) -> None:
    params = EvaluateParams(split="test", segments=2, crops=1, pool="mean", protocols=("finetuned",))
    evaluation = evaluate(Classifier.load(folder), manifest, params, RuntimeParams(), progress=False)
    all_equal(dict(zip(evaluation.ids, evaluation.logits, strict=True)))

    small = small_params()
    (views,) = [frames for frames, _ in centre_views(manifest, "test", small)]
    all_equal(dict(zip(evaluation.ids, views, strict=True)))
    dataset = LabelledDataset(manifest, "test", small.clip, small.finetune, seed=0, training=False)
    all_equal({video.id: dataset[0, index]["clip"].numpy() for index, video in enumerate(dataset.videos)})


def test_command_line(twins: dict[str, Path], folder: Path) -> None:
    done = CliRunner().invoke(app, ["classify", *map(str, twins.values()), "--model", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    all_equal({Path(line["file"]).name: [p["probability"] for p in line["predictions"]] for line in lines})
    assert [round(line["video"]["fps"]) for line in lines[:4]] == [16, 32, 64, 8]


def test_mlflow(twins: dict[str, Path], folder: Path) -> None:
    model = VideoClassifier()
    context: Any = SimpleNamespace(artifacts={"folder": str(folder)})
    model.load_context(context)
    answer = model.predict(context, pd.DataFrame({"video": [str(path) for path in twins.values()]}))
    all_equal(dict(zip(twins, answer["probabilities"], strict=True)))


def test_service(twins: dict[str, Path], client: TestClient) -> None:
    answers = {}
    for name, path in twins.items():
        response = client.post("/classify?logits=true&segments=3", content=path.read_bytes(), headers=RAW)
        assert response.status_code == 200, response.text
        answers[name] = response.json()["logits"]
    all_equal(answers)
    assert client.get("/model").json()["clip"]["fps"] == FPS


def test_tracks_of_the_page(twins: dict[str, Path], client: TestClient) -> None:
    answers = {}
    for name, path in twins.items():
        response = client.post("/trajectories", content=path.read_bytes(), headers=RAW)
        assert response.status_code == 200, response.text
        assert response.json()["fps"] == FPS
        answers[name] = response.json()["windows"]
    assert [window["start_s"] for window in answers["same.mp4"]] == [0, 12 / FPS, 24 / FPS, 36 / FPS]
    expected = answers.pop("same.mp4")
    for name, windows in answers.items():
        assert windows == expected, name


def test_a_single_picture_is_classified_but_has_no_tracks(client: TestClient, tmp_path: Path) -> None:
    picture = np.full((64, 96, 3), 90, dtype=np.uint8)
    path = write_at(tmp_path / "still.mp4", [picture], [0], Fraction(5))
    assert client.post("/classify", content=path.read_bytes(), headers=RAW).status_code == 200
    refused = client.post("/trajectories", content=path.read_bytes(), headers=RAW)
    assert (refused.status_code, refused.json()["type"]) == (422, "/problems/too-short")
