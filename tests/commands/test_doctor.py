from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from collections import namedtuple
from contextlib import closing
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mme.commands import doctor
from mme.commands.app import app
from mme.commands.doctor import Finding

ROOT = Path(__file__).parents[2]
RUNNER = CliRunner()
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with the files that the checks read."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".git").mkdir()
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def only(check: str, folder: Path) -> Finding:
    (found,) = getattr(doctor, f"check_{check}")(folder)
    assert isinstance(found, Finding)
    assert found.status == "ok" or found.advice, f"{found}: no fix suggested"
    return found


def test_this_machine_passes(clone: Path) -> None:
    answer = RUNNER.invoke(app, ["doctor", "--folder", str(clone), "--json"])
    findings = [Finding(**entry) for entry in json.loads(answer.stdout)]
    assert [finding for finding in findings if finding.status == "fault"] == []
    assert answer.exit_code == 0
    names = [finding.name for finding in findings]
    assert names == [
        "Python", "libraries", "params.yaml", "write access", "disk", "DVC", "MLflow", "PyTorch", "GPU", "PyAV",
        "decord",
    ]  # fmt: skip


def test_fault_gives_status_1_and_a_fix(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Finding("PyAV", "fault", "no [codec]", "pip install it")
    monkeypatch.setattr(doctor, "run_checks", lambda folder: iter([fault]))
    answer = RUNNER.invoke(app, ["doctor", "--folder", str(clone)])
    assert answer.exit_code == 1
    for words in ("PyAV", "fault", "no [codec]", "pip install it"):
        assert words in answer.stdout


def test_old_python_is_a_fault(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_PYTHON", (4, 0))
    assert only("python", clone).status == "fault"


@pytest.mark.parametrize(
    ("wanted", "status", "detail"),
    [
        (["numpy>=2"], "ok", "1 as required by pyproject.toml"),
        (["numpy<1"], "fault", "numpy 2.*, not <1"),
        (["no-such-library"], "fault", "no no-such-library"),
        (["no-such-library; extra == 'train'"], "warning", "incomplete extras: train"),
    ],
)
def test_library_versions_are_checked(
    wanted: list[str], status: str, detail: str, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: wanted)
    found = only("libraries", clone)
    assert found.status == status
    head, _, tail = detail.partition("*")
    assert head in found.detail
    assert tail in found.detail


def test_invalid_params_and_missing_source_are_faults(clone: Path) -> None:
    path = clone / "params.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("source: motion-primitives", "source: folder"), encoding="utf-8")
    assert "no folder" in only("params", clone).detail
    path.write_text(text.replace("mask_ratio:", "mask_ration:"), encoding="utf-8")
    assert "pretrain.mask_ratio: Field required" in only("params", clone).detail


def test_unwritable_folder_is_a_fault(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / "data").mkdir()

    def refuse(dir: Path) -> None:  # noqa: A002 - the name of tempfile's argument
        raise PermissionError(13, "Permission denied", str(dir))

    assert only("writable", clone).status == "ok"
    monkeypatch.setattr("mme.commands.doctor.tempfile.TemporaryFile", refuse)
    assert "data: Permission denied" in only("writable", clone).detail


@pytest.mark.parametrize(("free_gb", "status"), [(0.5, "fault"), (5, "warning"), (50, "ok")])
def test_free_space_is_checked(free_gb: float, status: str, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mme.commands.doctor.shutil.disk_usage", lambda folder: Usage(0, 0, int(free_gb * 1e9)))
    assert only("disk", clone).status == status


def test_dvc_repository_and_remote_are_checked(clone: Path) -> None:
    assert "no default remote" in only("dvc", clone).detail
    (clone / ".dvc/config").write_text("[core]\n    remote = store\n", encoding="utf-8")
    assert only("dvc", clone).status == "fault"
    with (clone / ".dvc/config").open("a", encoding="utf-8") as file:
        file.write("['remote \"store\"']\n    url = s3://bucket/path\n")
    assert only("dvc", clone).detail.endswith("pushes to s3://bucket/path")
    shutil.rmtree(clone / ".git")
    assert "no repository" in only("dvc", clone).detail


def test_tracking_store_is_checked(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only("mlflow", clone).status == "ok", "a database that is not there yet"
    with closing(sqlite3.connect(clone / "mlflow.db")) as connection:
        connection.execute("CREATE TABLE t (a)")
    assert only("mlflow", clone).status == "ok"
    (clone / "mlflow.db").write_bytes(b"no database" * 100)
    assert "file is not a database" in only("mlflow", clone).detail
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:secret@127.0.0.1:{port}/mlflow")
        found = only("mlflow", clone)
        assert found.status == "ok"
        assert "secret" not in found.detail
    for address in (f"postgresql://me:secret@127.0.0.1:{port}/mlflow", f"http://127.0.0.1:{port}"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        found = only("mlflow", clone)
        assert found.status == "fault"
        assert "secret" not in found.detail


def test_torchvision_must_match_torch(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.27.1"}
    monkeypatch.setattr(doctor, "version", versions.__getitem__)
    found = only("torch", clone)
    assert (found.status, found.advice) == ("fault", "pip install 'torchvision==0.28.*'")


@pytest.mark.parametrize(
    ("has_nvidia", "build", "status", "detail"),
    [
        (False, None, "ok", "none; the CPU is used"),
        (True, None, "warning", "built for CPUs"),
        (True, "13.0", "warning", r"torch (CUDA 13.0) cannot use it"),
    ],
)
def test_gpu_is_checked(
    has_nvidia: bool, build: str | None, status: str, detail: str, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_has_nvidia", lambda: has_nvidia)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    found = only("gpu", clone)
    assert found.status == status
    assert detail in found.detail
