"""Commands and stages end with the message of an expected error, without a traceback."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mme.stages
from mme.commands.app import app
from mme.system.errors import TRACEBACK_VARIABLE, one_line_errors
from mme.video.containers import VideoError

ROOT = Path(__file__).parents[2]
SOURCE = Path("data/raw/motion-primitives")
RUNNER = CliRunner()
STAGES = sorted(
    path for path in Path(mme.stages.__file__).parent.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose list of motion primitives names a file that is not there."""
    source = tmp_path / SOURCE
    source.mkdir(parents=True)
    (source / "list.csv").write_text("path,label,split\ngone.mp4,up,train\n", encoding="utf-8")
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_stage(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mme.stages.ingest"]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_a_wrong_list_ends_a_stage_with_its_message_alone(project: Path) -> None:
    answer = run_stage(project)
    assert answer.returncode == 1
    assert answer.stdout == ""
    [line] = answer.stderr.splitlines()
    assert "list.csv, line 2: no file 'gone.mp4'" in line


def test_the_environment_brings_the_traceback_of_a_stage_back(project: Path) -> None:
    answer = run_stage(project, MME_TRACEBACK="1")
    assert answer.returncode == 1
    assert answer.stderr.startswith("Traceback")
    assert "list.csv, line 2: no file 'gone.mp4'" in answer.stderr.splitlines()[-1]


@pytest.mark.parametrize("stage", STAGES, ids=lambda path: path.stem)
def test_every_stage_ends_with_one_line(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(stage)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(stage), run_name="__main__")
    assert ended.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "params.yaml" in line


def test_a_wrong_list_ends_data_check_with_its_message_alone(project: Path) -> None:
    result = RUNNER.invoke(app, ["data", "check", "motion-primitives", str(project / SOURCE)])
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert "list.csv, line 2: no file 'gone.mp4'" in line


def test_an_unwritable_picture_ends_data_check_with_its_message_alone(project: Path) -> None:
    source = project / SOURCE
    for name in ("gone.mp4", "other.mp4"):
        (source / name).write_bytes(b"no video")
    with (source / "list.csv").open("a", encoding="utf-8") as listing:
        listing.write("other.mp4,down,train\n")  # a single class would be refused before
    (project / "file").touch()
    picture = project / "file/picture.png"
    result = RUNNER.invoke(app, ["data", "check", "motion-primitives", str(source), "--picture", str(picture)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.stderr
    assert str(project / "file") in result.stderr.splitlines()[-1]


def test_the_option_brings_the_traceback_of_a_command_back(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACEBACK_VARIABLE, "0")  # the option sets it
    command = ["--traceback", "data", "check", "motion-primitives", str(project / SOURCE)]
    result = RUNNER.invoke(app, command)
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)


@pytest.mark.parametrize("source", ["int('many')", "[].pop()", "__import__('numpy').zeros(2) + [1, 2, 3]"])
def test_a_bug_keeps_its_traceback(source: str) -> None:
    with pytest.raises((ValueError, IndexError)), one_line_errors():
        eval(source)


def test_an_error_of_the_project_is_expected_wherever_it_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        raise VideoError("empty", Path("a.mp4"), "0 bytes")
    assert capsys.readouterr().err == "a.mp4: empty: 0 bytes\n"
