from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml

from mme.evaluation.classifier import Classifier
from mme.manifest import Manifest
from mme.models.checkpoints import save_weights
from mme.stages.evaluate import main
from mme.system.files import read_json
from mme.video.codec import write_video
from tests.factories import row
from tests.tiny import LABELS, moving_frames, save_tiny_folder, tiny_config, tiny_model

ROOT = Path(__file__).parents[2]
REPORT = Path("reports/evaluate")
FILES = ["calibration.png", "confusion.csv", "confusion.png", "metrics.json", "per_class.csv", "predictions.csv"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which everything before the stage has run; tests share it, as making a run store takes seconds."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "params.yaml", folder)
    rows = [row(f"v{i}", "test", label=LABELS[i % 4]) for i in range(12)]
    for seed, video in enumerate(rows):
        path = folder / "data/videos" / video.path
        write_video(path, moving_frames(seed=seed), fps=10, crf=10, gop_frames=4)
    Manifest(rows, folder / "data").save(folder / "data/manifest.parquet")
    save_tiny_folder(folder / "models/finetune")
    return folder


@pytest.fixture(autouse=True)
def _in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def last_run() -> mlflow.entities.Run:
    (run, *_) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return run


def test_the_report_agrees_with_the_classifier_and_the_record() -> None:
    main()
    assert sorted(path.name for path in REPORT.iterdir()) == FILES
    figures = read_json(REPORT / "metrics.json")
    classifier = Classifier.load("models/finetune")
    videos = Manifest.load("data/manifest.parquet").videos("test")
    answers = [classifier.classify(Path("data/videos") / video.path).predictions[0].label for video in videos]
    hits = sum(answer == video.label for answer, video in zip(answers, videos, strict=True))
    assert figures["test"]["top1"] == pytest.approx(hits / 12, abs=1e-6)
    assert 0 < hits < 12
    assert figures["unreadable"] == {}
    table = pd.read_csv(REPORT / "predictions.csv")
    assert list(table["predicted"]) == answers
    pairs = pd.read_csv(REPORT / "confusion.csv")
    assert list(zip(pairs["actual"], pairs["predicted"], strict=True)) == [
        (video.label, answer) for video, answer in zip(videos, answers, strict=True)
    ]
    run = last_run()
    assert run.data.metrics["test/top1"] == figures["test"]["top1"]
    assert run.data.metrics["test/top5"] == 1
    assert run.data.tags["stage"] == "evaluate"
    logged = mlflow.artifacts.list_artifacts(run_id=run.info.run_id)
    assert sorted(item.path for item in logged if item.path != "params.yaml") == FILES


def test_frozen_features_are_probed_where_that_is_asked_for(project: Path) -> None:
    """The pretrained encoder of this project is the one that the finetuned model has, untrained as both are."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    config = tiny_config()
    raw["model"], raw["clip"] = config.model.model_dump(mode="json"), config.clip.model_dump(mode="json")
    raw["pretrain"] |= {"length": 3, "decoder_dim": 16}
    raw["evaluate"] |= {"protocols": ["finetuned", "linear", "knn"], "split": "test"}
    rows = [row(f"t{i}", "train", label=LABELS[i % 4]) for i in range(8)]
    manifest = Manifest.load("data/manifest.parquet")
    for seed, video in enumerate(rows):
        write_video(Path("data/videos") / video.path, moving_frames(seed=seed), fps=10, crf=10, gop_frames=4)
    before = {path: path.read_bytes() for path in (Path("params.yaml"), Path("data/manifest.parquet"))}
    Path("models/pretrain").mkdir()
    try:
        main()
        without = read_json(REPORT / "metrics.json")["test"]
        Path("params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
        Manifest([*manifest.rows, *rows], project / "data").save("data/manifest.parquet")
        save_weights(Path("models/pretrain/model.safetensors"), tiny_model(config))
        main()
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    figures = read_json(REPORT / "metrics.json")["test"]
    assert figures.keys() - without.keys() == {"probe_top1", "knn_top1"}
    assert without == {name: figures[name] for name in without}
    assert 0 <= figures["probe_top1"] <= 1
    assert last_run().data.metrics["test/probe_top1"] == figures["probe_top1"]


def test_the_same_inputs_give_the_same_bytes() -> None:
    main()
    before = {path.name: path.read_bytes() for path in REPORT.iterdir()}
    main()
    assert {path.name: path.read_bytes() for path in REPORT.iterdir()} == before


def test_an_unreadable_video_fails_the_stage_after_the_report() -> None:
    path = Path("data/videos/v3.mp4")
    content = path.read_bytes()
    path.write_bytes(b"")
    try:
        with pytest.raises(ValueError, match="1 videos of test are unreadable: v3: empty"):
            main()
    finally:
        path.write_bytes(content)
    figures = read_json(REPORT / "metrics.json")
    assert figures["unreadable"] == {"v3": "empty"}
    assert (figures["test"]["num_videos"], figures["test"]["num_unreadable"]) == (11, 1)
    run = last_run()
    assert run.info.status == "FAILED"
    assert run.data.metrics["test/num_unreadable"] == 1
