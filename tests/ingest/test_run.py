from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mme.config import IngestParams, RuntimeParams, load_params
from mme.ingest.report import IngestResult, print_report
from mme.ingest.run import Ingest, video_id_of
from mme.ingest.sources import list_source
from mme.manifest import Manifest
from mme.system.files import sha256_file
from mme.video.codec import read_frames
from tests import media
from tests.media import Spec

CODECS = {"libx264": ".mp4", "libvpx-vp9": ".webm", "mpeg4": ".avi"}
SIZES = [(96, 64), (64, 96), (80, 80), (176, 100)]
RATES = [Fraction(16), Fraction(25), Fraction(30000, 1001)]

ROOT = Path(__file__).parents[2]


def params(root: Path, **changes: Any) -> IngestParams:
    values = load_params(ROOT / "params.yaml").ingest.model_dump()
    values |= {"source": "folder", "root": root, "short_side": 32}
    return IngestParams.model_validate(values | changes)


def ingest(wanted: IngestParams, folder: Path, num_workers: int = 2, **limits: Any) -> IngestResult:
    runtime = RuntimeParams.model_validate({"deadline_s": 30.0, "max_bad_ratio": 0.5, **limits})
    stage = Ingest(wanted, 0, folder / "work", runtime)
    result = stage.run(num_workers, lambda: None)
    stage.check(result)
    stage.finish(result, folder / "data")
    return result


def write_list(folder: Path) -> None:
    """List all files, pipes among them, which a scan of folders leaves out."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.mp4"))]
    lines = [f"{name},{name.partition('/')[0]}" for name in names]
    (folder / "list.csv").write_text("\n".join(["path,label", *lines]), encoding="utf-8")


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def own_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, four subjects, 36 clips of three codecs, five unusual but usable ones, and eight unusable ones."""
    root = tmp_path_factory.mktemp("own")
    for number in range(36):
        label = ("wave", "jump")[number % 2]
        codec = list(CODECS)[number % 3]
        spec = Spec(codec=codec, size=SIZES[number % 4], fps=RATES[number % 3], num_frames=24 + number % 5, seed=number)
        media.write(root / label / f"subject{number % 4}_{number:02d}{CODECS[codec]}", spec)
    media.write(root / "wave/subject0_rotated.mp4", rotation=90)
    media.write(root / "wave/subject1_variable.mp4", variable_rate=True)
    media.write(root / "jump/subject2_wide.mkv", pixel_aspect=Fraction(4, 3), bframes=2, audio=True)
    media.write(root / "jump/subject3_ünïcode [x] 100%.mov", audio=True)
    for label, name in (("wave", "cut.mp4"), ("jump", "cut.webm")):
        codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
        media.truncated(root / label / f"subject0_{name}", spec=Spec(codec=codec, num_frames=48))
    media.text(root / "wave/subject1_text.mp4")
    media.audio_only(root / "wave/subject2_sound.mp4")
    media.no_frames(root / "jump/subject3_no-frames.mp4")
    media.empty(root / "jump/subject0_empty.mp4")
    media.damaged(root / "jump/subject1_damaged.mp4")
    media.write(root / "wave/subject2_short.mp4", num_frames=5)
    (root / "jump/subject3_gone.mp4").symlink_to("nowhere.mp4")
    (root / "README.md").write_text("Mine.\n", encoding="utf-8")
    return root


BAD = {
    "wave/subject0_cut.mp4": "truncated",
    "jump/subject0_cut.webm": "truncated",
    "wave/subject1_text.mp4": "not-a-video",
    "wave/subject2_sound.mp4": "no-video-stream",
    "jump/subject3_no-frames.mp4": "zero-frames",
    "jump/subject0_empty.mp4": "empty",
    "jump/subject1_damaged.mp4": "truncated",
    "jump/subject3_gone.mp4": "undecodable",
}


@pytest.fixture(scope="module")
def ingested(own_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IngestResult]:
    folder = tmp_path_factory.mktemp("ingested")
    return folder, ingest(params(own_videos, group_pattern=r"^(subject\d)_"), folder)


def test_usable_files_are_transcoded_and_others_quarantined_with_a_reason(
    own_videos: Path, ingested: tuple[Path, IngestResult]
) -> None:
    folder, result = ingested
    manifest = Manifest.load(folder / "data/manifest.parquet")
    assert len(manifest) == 49
    assert {row.source_path: row.reason for row in manifest.quarantined} == BAD
    with open(folder / "data/quarantine.csv", newline="", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    assert {row["path"]: row["reason"] for row in listed} == BAD
    assert all(row["detail"] for row in listed)
    good = manifest.videos(["train", "val", "test"])
    assert len(good) == 41
    for video in good:
        assert min(video.width, video.height) == 32
        assert video.sha256 == sha256_file(own_videos / video.source_path)
        frames = read_frames(manifest.path_of(video))
        assert frames.shape == (video.num_frames, video.height, video.width, 3)
        numbers = media.frame_numbers(frames)
        assert (numbers[0], numbers) == (0, sorted(numbers))
    assert {path.name for path in (folder / "data/videos").iterdir()} == {video.path for video in good}
    assert all(re.fullmatch(r"[\w-]+\.mp4", video.path, re.ASCII) for video in good)
    rotated = next(video for video in good if "rotated" in video.id)
    assert (rotated.width, rotated.height) == (32, 48)
    assert result.listing.ignored == ["README.md"]


def test_subjects_do_not_cross_splits(ingested: tuple[Path, IngestResult]) -> None:
    manifest = Manifest.load(ingested[0] / "data/manifest.parquet")
    splits = {(row.group, row.split) for row in manifest.rows}
    assert len(splits) == 4
    assert {split for _, split in splits} == {"train", "val", "test"}
    assert manifest.labels == ["jump", "wave"]


def test_the_report_counts(ingested: tuple[Path, IngestResult]) -> None:
    report = ingested[1].report()
    assert report["videos"] == 41
    assert report["quarantined"]["videos"] == 8
    assert report["quarantined"]["reasons"]["truncated"] == 3
    assert sum(split["videos"] for split in report["splits"].values()) == 41
    assert sum(sum(split["classes"].values()) for split in report["splits"].values()) == 41
    assert report["duplicates"]["files"] == 0
    assert report["ignored"] == {"files": 1, "first": ["README.md"]}
    assert json.loads(json.dumps(report)) == report


def test_work_folder_is_removed_at_the_end(ingested: tuple[Path, IngestResult]) -> None:
    assert sorted(path.name for path in ingested[0].iterdir()) == ["data"]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    root = tmp_path / "few"
    for number in range(6):
        media.write(root / ("up", "down")[number % 2] / f"{number}.mp4", num_frames=24, size=(48, 32), seed=number)
    return root


def test_results_are_independent_of_the_number_of_workers(few: Path, tmp_path: Path) -> None:
    for num_workers in (1, 3):
        ingest(params(few), tmp_path / str(num_workers), num_workers)
    assert content(tmp_path / "1") == content(tmp_path / "3")


def test_missing_ray_names_the_package(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'mme\[ray\]'"):
        ingest(params(few), tmp_path, executor="ray")


@pytest.mark.slow
@pytest.mark.timeout(900)  # Ray starts eight processes of its own
def test_ray_writes_the_bytes_of_local(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Ray of this machine with two workers, with bad files, and paths relative to the caller's folder."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.chdir(tmp_path)
    media.truncated(few / "up/cut.mp4", spec=Spec(num_frames=48))
    media.text(few / "down/text.mp4")
    os.mkfifo(few / "up/pipe.mp4")  # hangs until the deadline
    write_list(few)
    wanted = params(Path("few"), source="csv", list_file="list.csv")
    for executor in ("local", "ray"):
        result = ingest(wanted, Path(executor), deadline_s=5.0, executor=executor)
        reasons = {row.source_path: row.reason for row in result.manifest.quarantined}
        assert reasons == {"up/cut.mp4": "truncated", "down/text.mp4": "not-a-video", "up/pipe.mp4": "timed-out"}
    assert content(Path("ray/data")) == content(Path("local/data"))


def test_resume_with_another_executor(few: Path, tmp_path: Path) -> None:
    Ingest(params(few), 0, tmp_path / "work").run(1, lambda: None)
    stage = Ingest(params(few), 0, tmp_path / "work", RuntimeParams(executor="ray"))
    assert stage.num_done == 6
    assert stage.run(1, lambda: None).report()["videos"] == 6, "and nothing to do needs no cluster"


def test_too_many_unusable_files_are_an_error_and_listed(few: Path, tmp_path: Path) -> None:
    media.text(few / "up/text.mp4")
    media.empty(few / "up/empty.mp4")
    with pytest.raises(ValueError, match="2 of 8 files cannot be used") as caught:
        ingest(params(few), tmp_path, max_bad_ratio=0.2)
    assert "up/text.mp4: not-a-video" in str(caught.value)
    assert "up/empty.mp4: empty" in str(caught.value)
    rows = (tmp_path / "work/quarantine.csv").read_text("utf-8").splitlines()
    assert [row.split(",")[0] for row in rows] == ["path", "up/empty.mp4", "up/text.mp4"]
    assert not (tmp_path / "data").exists()
    stage = Ingest(params(few), 0, tmp_path / "work", RuntimeParams(max_bad_ratio=0.25))
    assert stage.num_done == 8, "a larger ratio needs nothing decoded again"
    assert len(ingest(params(few), tmp_path, max_bad_ratio=0.25).manifest.quarantined) == 2


def test_hanging_decoder_is_killed(few: Path, tmp_path: Path) -> None:
    os.mkfifo(few / "up/pipe.mp4")  # opening it blocks for ever: nobody writes to it
    write_list(few)
    begin = time.monotonic()
    result = ingest(params(few, source="csv", list_file="list.csv"), tmp_path, deadline_s=1.0)
    assert time.monotonic() - begin < 60
    assert [(row.source_path, row.reason) for row in result.manifest.quarantined] == [("up/pipe.mp4", "timed-out")]
    assert result.report()["videos"] == 6


PROGRAM = """
import sys
from pathlib import Path
from mme.config import IngestParams
from mme.ingest.run import Ingest
if __name__ == "__main__":
    stage = Ingest(IngestParams.model_validate_json(sys.argv[1]), 0, Path(sys.argv[2]) / "work")
    stage.run(1, lambda: print("one", flush=True))
"""


def test_resume_after_sigkill_gives_the_same_bytes(few: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(program), params(few).model_dump_json(), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == b"one\n"
        process.send_signal(signal.SIGKILL)
    journal = next((tmp_path / "work").glob("*/journal.jsonl"))
    with journal.open("a", encoding="utf-8") as file:
        file.write('{"path": "torn')  # as a kill in the middle of a line leaves it
    stage = Ingest(params(few), 0, tmp_path / "work")
    assert 3 <= stage.num_done < 6
    num_done = stage.num_done
    advanced: list[int] = []
    result = stage.run(1, lambda: advanced.append(1))
    assert len(advanced) == 6 - num_done
    stage.finish(result, tmp_path / "data")
    ingest(params(few), tmp_path / "whole")
    assert content(tmp_path / "data") == content(tmp_path / "whole/data")


def test_resume_repeats_only_missing_and_modified_files(few: Path, tmp_path: Path) -> None:
    Ingest(params(few), 0, tmp_path / "work").run(1, lambda: None)
    assert Ingest(params(few), 0, tmp_path / "work").num_done == 6
    assert Ingest(params(few, crf=20), 0, tmp_path / "work").num_done == 0
    next((tmp_path / "work").glob("*/*.mp4")).unlink()
    media.write(few / "up/0.mp4", num_frames=26, size=(48, 32), seed=9)
    media.write(few / "up/new.mp4", num_frames=26, size=(48, 32), seed=8)
    stage = Ingest(params(few), 0, tmp_path / "work")
    assert stage.num_done in {4, 5}  # 5 if the removed video was that of the changed file
    result = stage.run(1, lambda: None)
    assert Counter(row.num_frames for row in result.manifest.rows) == {24: 5, 26: 2}


def test_resume_of_clips_of_a_long_video(tmp_path: Path) -> None:
    media.write(tmp_path / "raw/long.mp4", num_frames=160)
    lines = [f"long.mp4,{label},{second},{second + 1.5}" for second, label in enumerate(["up", "down"] * 4)]
    (tmp_path / "raw/list.csv").write_text("\n".join(["path,label,start,end", *lines]), encoding="utf-8")
    wanted = params(tmp_path / "raw", source="csv", list_file="list.csv")
    with pytest.raises(KeyboardInterrupt):
        Ingest(wanted, 0, tmp_path / "work").run(1, Interrupt(after=3))
    assert Ingest(wanted, 0, tmp_path / "work").num_done == 3
    result = ingest(wanted, tmp_path)
    rows = sorted(result.manifest.rows, key=lambda row: row.source_path)
    assert [row.source_path for row in rows] == [f"long.mp4#t={second},{second + 1.5}" for second in range(8)]
    assert len({row.sha256 for row in rows}) == 8
    assert len({row.split for row in rows}) == 1, "clips of one video stay on one side"
    assert re.fullmatch(r"long-2-3-5-[0-9a-f]{8}", rows[2].id)
    manifest = Manifest.load(tmp_path / "data/manifest.parquet")
    frames = read_frames(manifest.path_of(manifest[rows[2].id]))
    assert media.frame_numbers(frames) == list(range(32, 56))


class Interrupt:
    """Stops a run after some files, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_equal_files_in_training_and_test_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for split in ("train", "test"):
        media.write(root / split / "up/1.mp4", num_frames=24, size=(48, 32))
        media.write(root / split / "down/1.mp4", num_frames=24, size=(48, 32), seed=int(split == "test") + 1)
    shutil.copy(root / "train/up/1.mp4", root / "train/up/2.mp4")
    duplicates = ingest(params(root), tmp_path).report()["duplicates"]
    assert duplicates == {
        "files": 2,
        "across_splits": 1,
        "first_across_splits": [["test/up/1.mp4", "train/up/1.mp4", "train/up/2.mp4"]],
    }


def test_warning_about_a_split_without_a_class(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("train/up/1.mp4", "train/down/2.mp4", "test/up/3.mp4"):
        media.write(root / name, num_frames=24, size=(48, 32))
    assert ingest(params(root), tmp_path).report()["warnings"] == ["val has no video", "test has no video of down"]


def test_video_ids_are_readable_and_unique_per_name_and_content() -> None:
    assert re.fullmatch(r"up-subject1_10-[0-9a-f]{8}", video_id_of("up/subject1_10.mp4", "abc"))
    paths = ["a/b.mp4", "a-b.mp4", "a b.mp4", "a/b.avi", "日本.mp4", "日木.mp4", "x" * 300 + ".mp4", ".mp4"]
    ids = {video_id_of(path, sha) for path in paths for sha in ("1", "2")}
    assert len(ids) == 2 * len(paths)
    assert all(re.fullmatch(r"\w[\w-]{8,80}", name, re.ASCII) for name in ids)


def test_names_of_any_bytes_and_lengths(tmp_path: Path) -> None:
    """All but names that are not UTF-8 are ingested; each stands in one line of the report."""
    clip = media.write(tmp_path / "clip.mp4", num_frames=12, size=(48, 32)).read_bytes()
    longest = b"x" * 251 + b".mp4"
    good = [b"a/1.mp4", b"b/1.mp4", b"a/li\nne.mp4", b"c\nd/1.mp4", b"a/" + longest, b"y" * 255 + b"/" + longest]
    bad = [b"b/no\r\nvideo.mp4", b"b/\x1b[31mred.mp4"]
    left_out = [b"a/caf\xe9.mp4", b"caf\xe9/1.mp4"]
    root = tmp_path / "raw"
    for number, name in enumerate([*good, *bad, *left_out]):
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"junk" if name in bad else clip + b"\0\0\0\x0cfree" + number.to_bytes(4, "big"))
    result = ingest(params(root), tmp_path)
    manifest = Manifest.load(tmp_path / "data/manifest.parquet")
    assert {row.source_path for row in manifest.rows if row.status == "ok"} == {name.decode() for name in good}
    with open(tmp_path / "data/quarantine.csv", newline="", encoding="utf-8") as file:
        assert {row["path"] for row in csv.DictReader(file)} == {name.decode() for name in bad}
    assert "2 videos are left out, such as a/caf\\xe9.mp4: their names are not UTF-8" in result.listing.warnings[0]
    printed = io.StringIO()
    print_report(result, Console(file=printed, width=1000))
    assert "bad: b/no\\r\\nvideo.mp4: not-a-video" in printed.getvalue()
    assert "bad: b/\\x1b[31mred.mp4: not-a-video" in printed.getvalue()


def test_list_that_is_not_utf8_says_how_to_save_it(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"path,label\ncaf\xe9.mp4,wave\n")
    with pytest.raises(ValueError, match=r"list.csv: is not UTF-8; save it so \(iconv -f latin1 -t utf8\)"):
        list_source(params(tmp_path, source="csv", list_file="list.csv"))
