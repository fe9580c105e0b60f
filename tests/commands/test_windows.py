from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mme.commands.app import app
from mme.evaluation.classifier import Classifier
from mme.evaluation.windows import classify_windows, csv_text, vtt_text
from mme.video.codec import write_video
from tests.evaluation.test_live import large
from tests.evaluation.test_windows import changing_frames
from tests.live import camera
from tests.serving.service import server
from tests.tiny import save_tiny_folder

RUNNER = CliRunner()
SPAN = ("--window", "1", "--hop", "0.5")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "scenes.mp4"
    write_video(path, changing_frames(), fps=16, crf=10, gop_frames=12)
    return path


def test_formats_are_those_of_the_classifier(model: Path, video: Path, tmp_path: Path) -> None:
    expected = classify_windows(Classifier.load(model), video, 1, 0.5, 2)
    command = ["classify", str(video), "--model", str(model), *SPAN, "--top-k", "2", "--format"]
    assert RUNNER.invoke(app, [*command, "vtt"]).stdout_bytes.decode() == vtt_text(expected.segments)
    assert RUNNER.invoke(app, [*command, "csv"]).stdout_bytes.decode() == csv_text(expected.windows)
    shown = RUNNER.invoke(app, [*command, "table"], env={"COLUMNS": "300"}).stdout.splitlines()
    assert len(shown) == 1 + len(expected.segments)
    assert shown[1].split()[1:4] == ["0.00", f"{expected.segments[0].end_s:.2f}", expected.segments[0].label]

    (tmp_path / "bad.mp4").write_text("no video")
    done = RUNNER.invoke(app, [*command[:1], str(tmp_path / "bad.mp4"), *command[1:], "json"])
    assert done.exit_code == 1
    bad, good = (json.loads(line) for line in done.stdout.splitlines())
    assert "not-a-video" in bad["error"]
    assert [window["start_s"] for window in good["windows"]] == [window.start_s for window in expected.windows]
    assert [segment["label"] for segment in good["segments"]] == [segment.label for segment in expected.segments]


def test_service_gives_the_same(model: Path, video: Path, tmp_path: Path) -> None:
    with server(model, tmp_path) as (address, _):
        for form in ("vtt", "csv", "table"):
            local, remote = (
                RUNNER.invoke(app, ["classify", str(video), *SPAN, "--format", form, *where])
                for where in (("--model", str(model)), ("--url", address))
            )
            assert remote.exit_code == 0, remote.stderr
            assert remote.stdout == local.stdout
        done = RUNNER.invoke(app, ["classify", str(video), "--window", "0.01", "--url", address])
        assert done.exit_code == 1
        assert "window_s: 0.01 s must be at least one frame" in done.stderr


@pytest.mark.slow
def test_files_of_any_name(model: Path, video: Path, tmp_path: Path) -> None:
    names = [
        b"\xff\xe9.mp4",
        b"new\nline.mp4",
        b'a,b"c.mp4',
        b"\x1b[31m.mp4",
        b"[red]x[bold].mp4",
        b"a" * 251 + b".mp4",
    ]
    shown = [r"\xff\xe9.mp4", r"new\nline.mp4", 'a,b"c.mp4', r"\x1b[31m.mp4", "[red]x[bold].mp4", "a" * 251 + ".mp4"]
    files = [os.fsdecode(os.fsencode(tmp_path) + b"/" + name) for name in names]
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff\n.mp4")
    for file in files:
        os.symlink(video, file)
    Path(bad).write_text("no video")

    with server(model, tmp_path) as (address, _):
        for where in (("--model", str(model)), ("--url", address)):
            for options in (("--top-k", "1"), SPAN):
                done = RUNNER.invoke(app, ["classify", *files, bad, *options, *where], env={"COLUMNS": "500"})
                assert done.exit_code == 1, (done.exception, done.stderr)
                assert [line.split()[0] for line in done.stdout.splitlines() if ".mp4" in line][:6] == [
                    f"{tmp_path}/{name}" for name in shown
                ]
                assert r"bad\xff\n.mp4" in done.stdout + done.stderr
                done = RUNNER.invoke(app, ["classify", *files, bad, *options, *where, "--json"])
                assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == [*files, bad]
    done = RUNNER.invoke(app, ["classify", files[-1], "--model", str(model), "--top-k", "1"], env={"COLUMNS": "80"})
    assert files[-1] in "".join(line[: -len("probability")].split()[0] for line in done.stdout.splitlines()[1:])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name at least one file"),
        (["a.mp4", "--hop", "1"], "need --window"),
        (["a.mp4", "--format", "vtt"], "need --window"),
        (["a.mp4", "b.mp4", "--window", "1", "--format", "csv"], "csv holds one file, not 2"),
        (["a.mp4", "--live", "rtsp://camera"], "excludes files"),
        (["--live", "rtsp://camera", "--format", "vtt"], "a live stream has table and json"),
        (["--live", "rtsp://camera", "--live-option", "tcp"], "'tcp' is not NAME=VALUE"),
    ],
)
def test_options_that_exclude_each_other_are_refused(model: Path, arguments: list[str], words: str) -> None:
    done = RUNNER.invoke(app, ["classify", *arguments, "--model", str(model)], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert words in done.stderr


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_live_stream_is_labelled_until_it_ends_or_is_interrupted(model: Path, is_interrupted: bool) -> None:
    with camera(large(changing_frames(100 if is_interrupted else 5)), fps=16) as served:
        command = [
            sys.executable,
            "-m",
            "mme.commands.app",
            "classify",
            "--model",
            str(model),
            "--json",
            "--tries",
            "0",
        ]
        command += ["--live", served.address, "--window", "0.5", "--hop", "0.25", "--top-k", "1"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            first = json.loads(process.stdout.readline())
            assert first["start_s"] == 0
            assert first["end_s"] == 0.5
            if is_interrupted:
                process.send_signal(signal.SIGINT)
            # `communicate` would lose the lines that `readline` has read ahead, if several were there.
            rest, errors = process.stdout.read(), process.stderr.read()
    assert (process.returncode, errors) == (0, "")
    if not is_interrupted:
        windows = [first, *(json.loads(line) for line in rest.splitlines())]
        expected = classify_windows(Classifier.load(model), served.sent, 0.5, 0.25).windows
        assert [(one["start_s"], one["predictions"][0]["label"]) for one in windows] == [
            (one.start_s, one.predictions[0].label) for one in expected
        ]


def test_stream_that_is_not_there_is_one_line(model: Path) -> None:
    done = RUNNER.invoke(app, ["classify", "--model", str(model), "--live", "tcp://127.0.0.1:9", "--tries", "0"])
    assert done.exit_code == 1
    assert done.stderr == "tcp://127.0.0.1:9: undecodable: cannot be opened: Connection refused, in 1 attempts\n"
