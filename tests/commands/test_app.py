from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mme.commands.app import app
from mme.evaluation.classifier import Classifier
from mme.manifest import Manifest
from mme.models.precision import has_bf16
from mme.system.files import write_json
from mme.video.codec import write_video
from tests.factories import row
from tests.http_server import Handler, listening
from tests.tiny import moving_frames, save_tiny_folder

ROOT = Path(__file__).parents[2]
RUNNER = CliRunner()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def videos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.mp4" for name in ("first", "second")]
    for seed, path in enumerate(paths):
        write_video(path, moving_frames(seed=seed), fps=10, crf=10, gop_frames=4)
    return paths


@contextmanager
def service(answers: dict[str, tuple[int, Any]]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that answers by the name of the uploaded file and records the requests."""
    requests: list[dict[str, str]] = []

    class Service(Handler):
        def respond(self) -> None:
            body = self.read_body().decode("latin-1")
            requests.append(
                {"path": self.path, "body": body, "authorization": self.headers.get("Authorization", "none")}
            )
            status, answer = next(answer for name, answer in answers.items() if f'filename="{name}"' in body)
            self.answer(status, answer)

    with listening(Service) as address:
        yield f"http://{address}", requests


def test_classify_predicts_as_the_classifier(model: Path, videos: list[Path]) -> None:
    done = RUNNER.invoke(app, ["classify", *map(str, videos), "--model", str(model), "--top-k", "2", "--json"])
    assert done.exit_code == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in videos]
    classifier = Classifier.load(model)
    for line, path in zip(lines, videos, strict=True):
        expected = classifier.classify(path, top_k=2)
        assert [p["label"] for p in line["predictions"]] == [p.label for p in expected.predictions]
        assert line["predictions"][0]["probability"] == pytest.approx(expected.predictions[0].probability, abs=1e-6)
        assert line["model"] == {"name": "tiny", "digest": classifier.digest}
        assert line["video"]["num_frames"] == 20
        assert line["views"] == {"segments": 2, "crops": 1, "num_views": 2}
        assert line["timings"]["inference_ms"] > 0


@pytest.mark.skipif(not has_bf16(), reason="this processor has no instructions for bf16")
def test_classify_computes_in_the_precision_that_is_asked_for(model: Path, videos: list[Path]) -> None:
    arguments = ["classify", str(videos[0]), "--model", str(model), "--json"]
    given, halved = (RUNNER.invoke(app, [*arguments, *more]).stdout for more in ([], ["--precision", "bf16"]))
    best, near = (json.loads(output)["predictions"][0]["probability"] for output in (given, halved))
    assert near != best
    assert near == pytest.approx(best, abs=0.05)


def test_classify_refuses_a_precision_that_it_cannot_compute_in(
    model: Path, videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    local, wide = ["classify", str(videos[0]), "--model", str(model)], {"COLUMNS": "300"}
    unknown = RUNNER.invoke(app, [*local, "--precision", "int8"], env=wide)
    assert (unknown.exit_code, "'int8' is not one of '32', 'bf16'" in unknown.output) == (2, True)
    remote = RUNNER.invoke(app, ["classify", "x.mp4", "--url", "http://127.0.0.1:9", "--precision", "bf16"], env=wide)
    assert (remote.exit_code, "the service has its own: MME_PRECISION" in remote.output) == (2, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    without = RUNNER.invoke(app, [*local, "--precision", "bf16"], env=wide)
    assert (without.exit_code, "this processor has no instructions for it" in without.output) == (2, True)


def test_classify_prints_a_table(model: Path, videos: list[Path]) -> None:
    done = RUNNER.invoke(app, ["classify", str(videos[0]), "--model", str(model)], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    best = Classifier.load(model).classify(videos[0]).predictions[0]
    assert any(
        line.split() == [str(videos[0]), best.label, f"{best.probability:.3f}"] for line in done.stdout.splitlines()
    )


def test_bad_file_gives_status_1_and_the_others_are_classified(model: Path, videos: list[Path], tmp_path: Path) -> None:
    text, missing = tmp_path / "text.mp4", tmp_path / "missing.mp4"
    text.write_text("no video at all, only words")
    files = [str(path) for path in (text, missing, videos[0])]
    done = RUNNER.invoke(app, ["classify", *files, "--model", str(model), "--json"])
    assert done.exit_code == 1
    first, second, third = [json.loads(line) for line in done.stdout.splitlines()]
    assert "not-a-video" in first["error"]
    assert "missing.mp4" in second["error"]
    assert len(third["predictions"]) == 4
    table = RUNNER.invoke(app, ["classify", *files, "--model", str(model)], env={"COLUMNS": "300"})
    assert table.exit_code == 1
    assert "not-a-video" in table.stdout


def test_folder_stands_for_the_videos_below_it(model: Path, videos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("b.mp4", "a/c.MP4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).hardlink_to(videos[0])
    (folder / "notes.txt").write_text("no video")
    done = RUNNER.invoke(app, ["classify", str(videos[1]), str(folder), "--model", str(model), "--json"])
    assert done.exit_code == 0
    lines = [json.loads(line)["file"] for line in done.stdout.splitlines()]
    assert lines == [str(videos[1]), str(folder / "b.mp4"), str(folder / "a/c.MP4")]
    (folder / "empty").mkdir()
    done = RUNNER.invoke(app, ["classify", str(folder / "empty"), "--model", str(model)], env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert f"{folder / 'empty'}: no videos in this folder" in done.stderr


def test_missing_model_is_named(tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["classify", "x.mp4", "--model", str(tmp_path / "none")], env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert "none/config.json" in done.stderr


def test_classify_through_the_service(videos: list[Path]) -> None:
    answer = {"predictions": [{"label": "left", "probability": 0.75}], "model": {"name": "m", "version": "3"}}
    with service({"first.mp4": (200, answer)}) as (url, requests):
        arguments = ["classify", str(videos[0]), "--url", url, "--top-k", "3", "--json"]
        done = RUNNER.invoke(app, arguments, env={"MME_API_KEY": "secret"})
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"file": str(videos[0]), **answer}
    (request,) = requests
    assert request["path"] == "/classify?top_k=3"
    assert request["authorization"] == "Bearer secret"
    assert 'name="file"' in request["body"]
    assert videos[0].read_bytes().decode("latin-1") in request["body"]


def test_problem_of_the_service_is_shown(videos: list[Path]) -> None:
    problem = {"type": "/problems/truncated", "title": "Truncated", "status": 422, "detail": "ends at frame 7"}
    answers = {"first.mp4": (422, problem), "second.mp4": (502, b"<html>bad gateway</html>")}
    with service(answers) as (url, _):
        done = RUNNER.invoke(app, ["classify", *map(str, videos), "--url", url, "--json"])
    assert done.exit_code == 1
    first, second = [json.loads(line)["error"] for line in done.stdout.splitlines()]
    assert first == f"{videos[0]}: 422 Truncated: ends at frame 7"
    assert second == f"{url} answered 502, but no JSON"


def test_unreachable_service_is_an_error_of_each_file(videos: list[Path]) -> None:
    done = RUNNER.invoke(app, ["classify", str(videos[0]), "--url", "http://127.0.0.1:9", "--json"])
    assert done.exit_code == 1
    assert "refused" in json.loads(done.stdout)["error"]


def test_model_and_url_exclude_each_other(model: Path) -> None:
    done = RUNNER.invoke(app, ["classify", "x.mp4", "--url", "http://127.0.0.1:9", "--model", str(model)])
    assert done.exit_code == 2
    assert "exclude each other" in done.stderr


def test_classify_without_a_model_names_the_command_that_trains_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = RUNNER.invoke(app, ["classify", "x.mp4"], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "there is no models/export here yet: `make repro` makes it" in done.stderr


def test_summary_shows_counts_accuracies_and_version(tmp_path: Path) -> None:
    splits = [("a", "train"), ("b", "train"), ("c", "val"), ("d", "test"), ("e", "pretrain")]
    rows = [row(name, split, label=None if split == "pretrain" else "left") for name, split in splits]
    Manifest([*rows, row("bad", "test", status="quarantined", reason="truncated")], tmp_path / "data").save(
        tmp_path / "data/manifest.parquet"
    )
    write_json(
        tmp_path / "reports/finetune/metrics.json", {"train": {"loss": 0.1}, "val": {"top1": 0.8125, "top5": 1.0}}
    )
    write_json(tmp_path / "reports/evaluate/metrics.json", {"test": {"top1": 0.775, "top5": 0.99}, "unreadable": {}})
    write_json(
        tmp_path / "reports/pretrain/metrics.json",
        {
            "train": {"loss": 1.0},
            "val": {"position_explained": 0.325, "position_explained_moving": 0.4123, "position_cosine": 0.617},
            "videos": {"used": 9, "too_short": 2},
        },
    )
    receipt = {"name": "mme-motion-primitives", "version": 3, "alias": "champion", "gate": {"reason": "best so far"}}
    write_json(tmp_path / "reports/register.json", receipt)
    done = RUNNER.invoke(app, ["summary", "--folder", str(tmp_path)], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    shown = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "videos 1 pretrain, 2 train, 1 val, 1 test" in shown
    assert "quarantined 1 truncated" in shown
    assert "too short to pretrain on 2" in shown
    assert "motion explained, val 32.5%, of moving points 41.2% (cosine 0.62)" in shown
    assert "val top-1 81.2%" in shown
    assert "test top-1 77.5%" in shown
    assert "test top-5 99.0%" in shown
    assert "registered mme-motion-primitives version 3" in shown
    assert "alias champion" in shown
    assert f"curl -F file=@{tmp_path}/data/videos/d.mp4 http://127.0.0.1:8000/classify" in shown


@pytest.mark.parametrize(
    ("top1", "counts", "is_learned"), [(0.16, [5] * 10, False), (0.3, [5] * 10, True), (0.8, [42, 8], False)]
)
def test_summary_says_that_a_model_is_no_better_than_chance(
    top1: float, counts: list[int], is_learned: bool, tmp_path: Path
) -> None:
    """Of 50 videos 16 % are between 8 and 29 %, 30 % between 19 and 44 %; 84 % have the first of two labels."""
    figures = {"top1": top1, "mean_class_accuracy": top1 / 2}
    write_json(tmp_path / "reports/evaluate/metrics.json", {"test": figures, "unreadable": {}})
    table = "".join(f"label-{number},{count}\n" for number, count in enumerate(counts))
    (tmp_path / "reports/evaluate/per_class.csv").write_text("label,num_videos\n" + table, encoding="utf-8")
    done = RUNNER.invoke(app, ["summary", "--folder", str(tmp_path)], env={"COLUMNS": "100"})
    assert done.exit_code == 0
    assert ("is no better than chance" in done.stdout) != is_learned
    assert f"test mean of classes {top1 / 2:.1%}" in [" ".join(line.split()) for line in done.stdout.splitlines()]
    if top1 == 0.16:
        assert (
            "test top-1 16.0% of 50 videos (95 % interval 8.3% to 28.5%) is no better than chance, 10.0%" in done.stdout
        )


def test_summary_shows_why_a_version_has_no_alias(tmp_path: Path) -> None:
    receipt = {"name": "m", "version": 1, "alias": None, "gate": {"reason": "test/top1 0.4 is below 0.5"}}
    write_json(tmp_path / "reports/register.json", receipt)
    done = RUNNER.invoke(app, ["summary", "--folder", str(tmp_path)], env={"COLUMNS": "100"})
    assert "none: test/top1 0.4 is below 0.5" in done.stdout


def test_summary_shows_stages_that_have_not_run(tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["summary", "--folder", str(tmp_path)])
    assert done.exit_code == 0
    assert done.stdout.count("not run yet") == 4
    assert "`make repro` runs the rest" in done.stdout
    assert "make serve" not in done.stdout


def test_params_are_checked_and_shown() -> None:
    done = RUNNER.invoke(app, ["params", str(ROOT / "params.yaml")])
    assert done.exit_code == 0
    assert any(line.split()[:2] == ["clip", "num_frames"] for line in done.stdout.splitlines())
    assert any(line.split()[0] == "mask_ratio" for line in done.stdout.splitlines() if line.split())


def test_invalid_params_are_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text().replace("mask_ratio:", "mask_ration:"))
    done = RUNNER.invoke(app, ["params", str(path)])
    assert done.exit_code == 1
    assert "pretrain.mask_ration" in done.stderr
    assert "pretrain.mask_ratio: Field required" in done.stderr
