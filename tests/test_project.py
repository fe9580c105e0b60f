"""Promises of the project's own files: lock, menu, README, links, no telemetry, nothing of one machine."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mme.tracking.versions import MODEL_LIBRARIES
from tests import media
from tests.tiny import save_tiny_folder

ROOT = Path(__file__).parents[1]


@functools.cache
def tracked() -> list[Path]:
    """Return the files under version control, and new ones that are not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in (ROOT / line for line in answer.stdout.splitlines()) if path.is_file()]


@functools.cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]  # type: ignore[no-any-return]


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def fenced_in(page: Path, language: str) -> list[str]:
    """Return a page's code blocks of a language."""
    blocks = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [content for name, content in blocks if name == language]


def fenced(language: str) -> list[str]:
    """Return the README's code blocks of a language."""
    return fenced_in(ROOT / "README.md", language)


def make_targets() -> dict[str, str]:
    """Return the targets of the menu with their help texts."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z-]+):.*? ## (.+)$", text, re.MULTILINE))


def test_no_file_has_a_package_index_address_or_a_local_path() -> None:
    addresses = ["pypi" + r"\.org", "pythonhosted" + r"\.org", "registry" + r"\.npmjs", "download" + r"\.pytorch"]
    options = ["--" + "index-url", "--" + "extra-index-url", "--" + "find-links"]
    places = ["/" + "work/", "/" + "tmp/w", "/" + "home/[a-z]", "/" + "Users/"]
    pattern = re.compile("|".join(addresses + options + places))
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert found == []


def test_lock_has_pins_only() -> None:
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line
    assert pins()["torch"].startswith("2.13.")
    assert not [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))]


def test_lock_meets_every_requirement() -> None:
    extras = project()["optional-dependencies"]
    wanted = [
        Requirement(text) for text in [*project()["dependencies"], *(text for part in extras.values() for text in part)]
    ]
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    for requirement in [*wanted, *map(Requirement, build)]:
        name = canonicalize_name(requirement.name)
        if name != project()["name"]:
            assert pins()[name] in requirement.specifier, requirement


def test_registered_model_requires_what_the_classifier_requires() -> None:
    base = {Requirement(text).name for text in project()["dependencies"]}
    assert set(MODEL_LIBRARIES) == base - {"httpx", "typer"} | {"pandas"}


def test_classifier_imports_nothing_of_training() -> None:
    code = "import sys, mme.evaluation.classifier; print(' '.join(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert not {"dvc", "matplotlib", "mlflow", "optuna", "pandas", "pytorch_lightning"} & set(answer.stdout.split())


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_waiting_threads_leave_their_core_unless_the_user_says_otherwise(given: dict[str, str], policy: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment = {**kept, **given, "PYTHONPATH": str(ROOT / "src"), "OMP_DISPLAY_ENV": "true"}
    code = "import mme.training.pretrain"
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert f"OMP_WAIT_POLICY = '{policy}'" in answer.stderr


def test_service_needs_only_the_client_of_mlflow() -> None:
    """The service's image leaves out what `mlflow` requires, but not `mlflow-skinny` or the service itself."""
    whole, client, ours = (
        {Requirement(text).name.replace("-", "_").lower() for text in texts if "extra ==" not in text}
        for texts in (
            metadata.requires("mlflow") or [],
            metadata.requires("mlflow-skinny") or [],
            [*project()["dependencies"], *project()["optional-dependencies"]["serving"]],
        )
    )
    missing = {"scikit_learn": "sklearn"}
    absent = sorted(missing.get(name, name) for name in whole - client - ours if not name.startswith("mlflow"))
    assert {"pandas", "sklearn", "sqlalchemy"} <= set(absent)
    imports = "mme.tracking, serving.app, serving.inference.model_reloader"
    code = f"import sys; sys.modules |= dict.fromkeys({absent}); import {imports}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_make_prints_every_target() -> None:
    answer = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.findall(r"^  make ([a-z-]+)", answer.stdout, re.MULTILINE) == list(make_targets())
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == set(make_targets())
    assert {"repro", "serve", "test", "check", "format", "bench", "clean", "ui", "venv"} <= set(make_targets())


def test_make_refuses_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    command = ["make", "venv", f"PYTHON={old}"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert not (tmp_path / ".venv").exists()


def test_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_folder(tmp_path / "models/export")
    media.write(tmp_path / "video.mp4")
    monkeypatch.chdir(tmp_path)
    (code,) = fenced("python")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["features"].ndim == 1
    assert "Prediction(label=" in capsys.readouterr().out


def test_tree_of_the_readme_exists() -> None:
    (tree,) = [block for block in fenced("") if "params.yaml" in block]
    folder, missing = ROOT, []
    for line in tree.splitlines():
        name = line.split()[0]
        folder = folder if line.startswith("  ") else ROOT
        if not (folder / name).exists():
            missing.append(name)
        if name.endswith("/") and not line.startswith("  "):
            folder = ROOT / name
    assert missing == []


def test_links_between_documents_have_targets() -> None:
    made = {"parameters.md", "commands.md", "api.md"}  # by docs/hooks.py, for the site
    for path in (path for path in tracked() if path.suffix == ".md"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
            assert "://" in target or target in made or (path.parent / target).exists(), f"{path.name}: {target}"


def test_ci_runs_checks_docs_and_all_tests() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    assert set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) == {"check", "docs", "test", "slow-test"}
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    markers = {marker.partition(":")[0] for marker in options["markers"]}
    chosen = re.search(r"-m '([a-z ]+)'", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert chosen is not None
    assert set(chosen[1].split(" or ")) == markers - {"gpu"}


def test_telemetry_is_off() -> None:
    config = (ROOT / ".dvc/config").read_text(encoding="utf-8")
    assert "analytics = false" in config
    assert "check_update = false" in config
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in ("DVC_NO_ANALYTICS", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"):
        assert re.search(rf"^export {name} := (true|1)$", makefile, re.MULTILINE), name
    code = "import mme.tracking; from mlflow.telemetry.utils import is_telemetry_disabled as off; print(off())"
    quiet = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CI", "PYTEST", "GITHUB", "MLFLOW", "DO_NOT"))
    }
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**quiet, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "True"
