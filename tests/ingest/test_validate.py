from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mme.commands.app import app
from mme.ingest.validate import ValidationJob, validate_file
from mme.system.files import sha256_file
from tests import media
from tests.ingest import layouts

RUNNER = CliRunner()


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Nine good clips of two classes."""
    for number in range(9):
        label = ("wave", "jump")[number % 2]
        media.write(tmp_path / "own" / label / f"{number}.mp4", num_frames=24 + number, size=(48, 32), seed=number)
    return tmp_path / "own"


def test_a_source_without_faults(own: Path, tmp_path: Path) -> None:
    picture = tmp_path / "own.png"
    answer = RUNNER.invoke(app, ["data", "check", "folder", str(own), "--json", "--picture", str(picture)])
    assert answer.exit_code == 0, answer.output
    report = json.loads(answer.stdout)
    assert (report["videos"], report["classes"], report["faults"], report["bad"]) == (9, 2, [], [])
    assert sum(split["videos"] for split in report["splits"].values()) == 9
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_rates_of_a_source_and_the_one_that_suits(tmp_path: Path) -> None:
    for number in range(20):
        label = ("wave", "jump")[number % 2]
        fps = 30 if number < 12 else Fraction(30000, 1001) if number < 17 else 12
        media.write(tmp_path / f"{label}/{number}.mp4", num_frames=8 + number, fps=Fraction(fps), size=(64, 48))
    arguments = ["data", "check", "folder", str(tmp_path), "-S", "fps=30"]
    report = json.loads(RUNNER.invoke(app, [*arguments, "--json"]).stdout)
    assert report["rates"] == {"fps": 30, "held": 3, "source": {"12": 3, "30": 17}, "suggested": 12}
    (warning,) = report["warnings"]
    assert warning.startswith("frame rates vary, mostly from 12 to 30 per second")
    shown = RUNNER.invoke(app, arguments, env={"COLUMNS": "200"}).stdout
    assert "3 of 20 videos have fewer than 30 frames per second (fps): their pictures are repeated" in shown
    assert "30                 17      85%" in shown
    assert "ingest.fps is 30; what suits is 12: the highest standard rate that 90 % of the videos reach" in shown
    suits = RUNNER.invoke(app, [*arguments[:-1], "fps=12"], env={"COLUMNS": "200"}).stdout
    assert "fps suits 12: the" in suits
    assert "repeated" not in suits.partition("warning")[0]


def test_unusable_duplicate_and_ignored_files_are_named(own: Path) -> None:
    for split, label in (("train", "wave"), ("test", "jump")):
        (own / split).mkdir()
        (own / label).rename(own / split / label)
    shutil.copy(own / "train/wave/0.mp4", own / "test/jump/twin.mp4")
    media.text(own / "test/jump/[b]text.mp4")
    (own / "README.md").write_text("Mine.", encoding="utf-8")
    answer = RUNNER.invoke(app, ["data", "check", "folder", str(own)])
    assert answer.exit_code == 1
    for words in (
        "bad: test/jump/[b]text.mp4: not-a-video",
        "duplicates in different splits: test/jump/twin.mp4, train/wave/0.mp4",
        "files that are not videos by their names: 1, such as README.md",
        "fault: 1 of 11 videos cannot be used, more than runtime.max_bad_ratio 0 allows",
        "fault: 1 contents are in training and in validation or test",
    ):
        assert words in answer.stdout, words
    arguments = ["data", "check", "folder", str(own), "-S", "runtime.max_bad_ratio=0.5", "--json"]
    assert len(json.loads(RUNNER.invoke(app, arguments).stdout)["faults"]) == 1


def test_missing_videos_of_kinetics_are_not_a_fault(tmp_path: Path) -> None:
    root = layouts.make_kinetics(tmp_path / "k400", layouts.one_clip(tmp_path))
    for number, path in enumerate(sorted(root.rglob("*.mp4"))):
        path.write_bytes(path.read_bytes() + b"\0\0\0\x08free" * number)  # other bytes, the same video
    answer = RUNNER.invoke(app, ["data", "check", "kinetics", str(root)])
    assert answer.exit_code == 0, answer.output
    assert (
        "listed files that do not exist: 2, such as #NAME? in line 9 of train.csv, vanished_00_000000_" in answer.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["youtube", "."], "source: Input should be"),
        (["folder", "nothing"], "nothing: not a folder"),
        (["folder", ".", "-S", "split_number"], "--set 'split_number': not NAME=VALUE"),
        (["ucf101", ".", "-S", "split_number=4"], "split_number: Input should be 1, 2 or 3"),
        (["folder", ".", "-S", "splitt=4"], "splitt: Extra inputs are not permitted"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments: list[str], message: str) -> None:
    answer = RUNNER.invoke(app, ["data", "check", *arguments])
    assert answer.exit_code == 1
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_wrong_lines_are_named(tmp_path: Path) -> None:
    layouts.make_ucf101(tmp_path)
    (tmp_path / "ucfTrainTestlist/testlist01.txt").write_text("YoYo/gone.avi\n", encoding="utf-8")
    answer = RUNNER.invoke(app, ["data", "check", "ucf101", str(tmp_path)])
    assert answer.exit_code == 1
    assert "testlist01.txt, line 1: " in answer.stderr


def test_damage_inside_of_a_file_is_found_by_decoding(tmp_path: Path) -> None:
    path = media.damaged(tmp_path / "a.mp4")
    assert validate_file(ValidationJob("a", path, 16, decode=False)).reason is None
    assert validate_file(ValidationJob("a", path, 16, decode=True)).reason == "truncated"
    good = validate_file(ValidationJob("a", path, 16, decode=True, span_s=(0.0, 0.75)))
    assert (good.reason, good.num_frames) == (None, 12)


def test_outcome_of_a_usable_file(tmp_path: Path) -> None:
    path = media.write(tmp_path / "a.webm", codec="libvpx-vp9", num_frames=30, size=(96, 64))
    seen = validate_file(ValidationJob("a", path, 16, decode=False))
    assert (seen.sha256, seen.num_frames, seen.width, seen.height) == (sha256_file(path), 30, 96, 64)
    assert validate_file(ValidationJob("a", tmp_path / "gone.mp4", 16, decode=False)).reason == "undecodable"
