"""`mme doctor`: environment checks, each with a suggested fix."""

from __future__ import annotations

import configparser
import importlib
import importlib.util
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

import httpx
import numpy as np
import typer
from jaxtyping import UInt8
from rich.console import Console
from rich.table import Table
from rich.text import Text

FindingStatus = Literal["ok", "warning", "fault"]
STYLES = {"ok": "green", "warning": "yellow", "fault": "red"}

MIN_PYTHON = (3, 11)
TORCHVISION_AHEAD = 15
"""torch 2.N needs torchvision 0.(N + 15)."""

FREE_FAULT_GB, FREE_WARNING_GB = 1.0, 10.0
CONNECT_TIMEOUT_S = 5.0
MAX_ERROR = 8
LOCAL_STORE = "sqlite:///mlflow.db"
WRITTEN_FOLDERS = (".", "data", "models", "reports", ".work", ".dvc")
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


@dataclass(frozen=True)
class Finding:
    """Result of a check; ``advice`` is the suggested fix, empty if none is needed."""

    name: str
    status: FindingStatus
    detail: str
    advice: str = ""


def doctor_command(
    folder: Annotated[Path, typer.Option(help="Folder of the project.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
) -> None:
    """Check versions, decoders, GPU, DVC, MLflow, write access and disk, with a suggested fix per finding.

    The status is 1 if there is a fault; warnings do not count.
    """
    findings = list(run_checks(folder))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        table = Table("check", "", "found", "fix", box=None, pad_edge=False)
        for finding in findings:
            status = Text(finding.status, style=STYLES[finding.status])
            table.add_row(finding.name, status, Text(finding.detail), Text(finding.advice))
        Console().print(table)
    if any(finding.status == "fault" for finding in findings):
        raise typer.Exit(1)


def run_checks(folder: Path) -> Iterator[Finding]:
    """Yield the finding of every check on the project in ``folder``, quick ones first."""
    checks: tuple[Callable[[Path], Iterator[Finding]], ...] = (
        check_python, check_libraries, check_params, check_writable, check_disk, check_dvc, check_mlflow,
        check_torch, check_gpu, check_decoders,
    )  # fmt: skip
    for check in checks:
        yield from check(folder)


def check_python(_: Path) -> Iterator[Finding]:
    """Check the interpreter's version."""
    found = sys.version.split()[0]
    if sys.version_info < MIN_PYTHON:
        yield Finding("Python", "fault", found, "install Python 3.11 or newer, then make PYTHON=python3.11 venv")
    else:
        yield Finding("Python", "ok", found)


def check_libraries(_: Path) -> Iterator[Finding]:
    """Check the versions that pyproject.toml requires; those of an extra may be missing."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in requires("mme") or []]
    except PackageNotFoundError:
        yield Finding("libraries", "warning", "mme is importable but not installed", "pip install --no-deps -e .")
        return
    missing, wrong, extras = [], [], set()
    for requirement in wanted:
        extra = re.search(r"extra == ['\"](\w+)", str(requirement.marker or ""))
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            if extra is None:
                missing.append(requirement.name)
            elif requirement.name != "mme":
                extras.add(extra[1])
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found}, not {requirement.specifier}")
    advice = "pip install -r requirements.lock"
    if missing or wrong:
        yield Finding("libraries", "fault", "; ".join([*(f"no {name}" for name in missing), *wrong]), advice)
    elif extras:
        detail = f"good; incomplete extras: {', '.join(sorted(extras))}"
        yield Finding("libraries", "warning", detail, f"if you need them: {advice}")
    else:
        yield Finding("libraries", "ok", f"{len(wanted)} as required by pyproject.toml")


def check_params(folder: Path) -> Iterator[Finding]:
    """Check that ``params.yaml`` is valid and the source folder exists."""
    from mme.config import load_params

    try:
        params = load_params(folder / "params.yaml")
    except ValueError as error:
        yield Finding("params.yaml", "fault", str(error), "correct the named keys, or git checkout params.yaml")
        return
    root = folder / params.ingest.root
    if params.ingest.source != "motion-primitives" and not root.is_dir():
        yield Finding("params.yaml", "fault", f"ingest.root: no folder {root}", "set ingest.root to your videos")
    else:
        yield Finding("params.yaml", "ok", f"valid; data from {params.ingest.root}")


def check_writable(folder: Path) -> Iterator[Finding]:
    """Check that the folders of the pipeline are writable."""
    refused = []
    for name in WRITTEN_FOLDERS:
        if (folder / name).is_dir():
            try:
                with tempfile.TemporaryFile(dir=folder / name):
                    pass
            except OSError as error:
                refused.append(f"{name}: {error.strerror}")
    if refused:
        yield Finding("write access", "fault", "; ".join(refused), f"chown -R {os.getuid()} the folders named")
    else:
        yield Finding("write access", "ok", str(folder.resolve()))


def check_disk(folder: Path) -> Iterator[Finding]:
    """Check the free disk space."""
    free_gb = shutil.disk_usage(folder).free / 1e9
    status: FindingStatus = "fault" if free_gb < FREE_FAULT_GB else "warning" if free_gb < FREE_WARNING_GB else "ok"
    advice = "" if status == "ok" else "dvc gc --workspace, or move the cache: dvc cache dir /larger/disk"
    yield Finding("disk", status, f"{free_gb:.1f} GB free", advice)


def check_dvc(folder: Path) -> Iterator[Finding]:
    """Check DVC, its repository and its default remote."""
    if importlib.util.find_spec("dvc") is None:
        yield Finding("DVC", "warning", "not installed: the pipeline cannot run", "pip install -r requirements.lock")
        return
    if not (folder / ".dvc").is_dir() or not (folder / ".git").exists():
        yield Finding("DVC", "fault", f"{folder.resolve()} is no repository of git and DVC", "run this in a clone")
        return
    config = configparser.ConfigParser(interpolation=None)
    config.read([folder / ".dvc/config", folder / ".dvc/config.local"], encoding="utf-8")
    remote = config.get("core", "remote", fallback=None)
    if remote is None:
        detail = f"{version('dvc')}, no default remote: data and models are on this machine only"
        yield Finding("DVC", "warning", detail, "dvc remote add --default NAME s3://BUCKET/PATH, then dvc push")
        return
    section = f"'remote \"{remote}\"'"
    url = config.get(section, "url", fallback="")
    if not url:
        yield Finding("DVC", "fault", f"remote {remote!r} has no address", f"dvc remote add {remote} ADDRESS")
    else:
        yield Finding("DVC", "ok", f"{version('dvc')}, pushes to {urlsplit(url)._replace(query='').geturl()}")


def check_mlflow(folder: Path) -> Iterator[Finding]:
    """Check that the tracking store is reachable."""
    if importlib.util.find_spec("mlflow") is None:
        yield Finding("MLflow", "warning", "not installed: no runs, no registry", "pip install -r requirements.lock")
        return
    address = os.environ.get("MLFLOW_TRACKING_URI", LOCAL_STORE)
    parts = urlsplit(address)
    shown = re.sub("//[^/@]*@", "//", address)  # without a password
    try:
        if parts.scheme in {"http", "https"}:
            httpx.get(f"{address.rstrip('/')}/health", timeout=CONNECT_TIMEOUT_S).raise_for_status()
        elif parts.scheme == "sqlite":
            _open_sqlite(folder / unquote(address.removeprefix("sqlite:///")))
        else:
            port = parts.port or PORTS.get(parts.scheme.partition("+")[0], 0)
            socket.create_connection((parts.hostname or "127.0.0.1", port), CONNECT_TIMEOUT_S).close()
    except (httpx.HTTPError, httpx.InvalidURL, sqlite3.Error, OSError) as error:
        advice = "start it, or unset MLFLOW_TRACKING_URI to use the file mlflow.db"
        yield Finding("MLflow", "fault", f"{shown}: {error}", advice)
        return
    yield Finding("MLflow", "ok", f"{version('mlflow-skinny')}, {shown}")  # also installed by the whole of MLflow


def _open_sqlite(path: Path) -> None:
    if path.exists():
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=CONNECT_TIMEOUT_S)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
    elif not path.parent.is_dir():
        raise OSError(f"no folder {path.parent}")


def check_torch(_: Path) -> Iterator[Finding]:
    """Check that torch and torchvision match and can be imported."""
    try:
        torch_version, vision_version = version("torch"), version("torchvision")
    except PackageNotFoundError as error:
        yield Finding("PyTorch", "fault", f"no {error.name}", "pip install -r requirements.lock")
        return
    detail = f"torch {torch_version}, torchvision {vision_version}"
    expected = f"0.{int(torch_version.split('.')[1]) + TORCHVISION_AHEAD}"
    if torch_version.split(".")[0] == "2" and not vision_version.startswith(f"{expected}."):
        advice = f"pip install 'torchvision=={expected}.*'"
        yield Finding("PyTorch", "fault", f"{detail}, which does not match", advice)
        return
    try:
        import torch

        importlib.import_module("torchvision")
        total = float(torch.ones(3).sum())
    except (ImportError, RuntimeError, OSError) as error:
        yield Finding("PyTorch", "fault", f"{detail}: {error}", "make clean, remove .venv, make venv")
        return
    assert total == 3
    yield Finding("PyTorch", "ok", detail)


def check_gpu(_: Path) -> Iterator[Finding]:
    """Check that torch can use the GPU, if there is one."""
    try:
        import torch

        if torch.cuda.is_available():
            names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
            torch.ones(2, device="cuda").sum().item()
            yield Finding("GPU", "ok", f"{len(names)}: {', '.join(names)}")
            return
        build = torch.version.cuda
    except (ImportError, RuntimeError) as error:
        yield Finding(
            "GPU", "fault", str(error).splitlines()[0], "check the driver with nvidia-smi, or runtime.device: cpu"
        )
        return
    if not _has_nvidia():
        yield Finding("GPU", "ok", "none; the CPU is used")
    elif build is None:
        yield Finding("GPU", "warning", "present, but this torch is built for CPUs", "install a CUDA build of torch")
    else:
        advice = "update the driver: nvidia-smi shows the newest CUDA version that it supports"
        yield Finding("GPU", "warning", f"present, but torch (CUDA {build}) cannot use it", advice)


def _has_nvidia() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    answer = subprocess.run([program, "-L"], capture_output=True, text=True, check=False, timeout=30)
    return answer.returncode == 0 and "GPU" in answer.stdout


def check_decoders(_: Path) -> Iterator[Finding]:
    """Check that a tiny video can be written, and read by both decoders."""
    advice = "pip install --force-reinstall --no-deps -r requirements.lock"
    levels = np.arange(20, 240, 20, dtype=np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (len(levels), 64, 64, 3))  # decord fails on 32 x 32
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiny.mp4")
        try:
            from mme.video.codec import iter_frames, write_video

            write_video(path, frames, fps=10, crf=10, gop_frames=4)
            fault = _difference(np.stack(list(iter_frames(path))), frames)
        except (ImportError, ValueError, OSError) as error:
            fault = str(error)
        if fault:
            yield Finding("PyAV", "fault", fault, advice)
            return
        yield Finding("PyAV", "ok", f"{version('av')}, writes and reads H.264")
        try:
            import decord
        except ImportError as error:
            fault = str(error)
        else:
            try:
                reader = decord.VideoReader(str(path), num_threads=1)
                fault = _difference(reader.get_batch(range(len(frames))).asnumpy(), frames)
            except (decord.DECORDError, RuntimeError, OSError) as error:
                fault = str(error).splitlines()[0]
        if fault:
            yield Finding("decord", "warning", f"{fault}; PyAV reads everything, slower", advice)
        else:
            yield Finding("decord", "ok", f"{version('decord2')}, reads H.264")


def _difference(found: UInt8[np.ndarray, "T H W 3"], expected: UInt8[np.ndarray, "T H W 3"]) -> str:
    if found.shape != expected.shape:
        return f"frames {found.shape} instead of {expected.shape}"
    error = abs(found.astype(int) - expected).max()
    return f"brightness is off by {error} grey levels" if error > MAX_ERROR else ""
