"""Runs are reproduced: in a subfolder of a repository, with an experiment's parameters, of videos beside the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from tests.small_data import small_params

ROOT = Path(__file__).parents[2]

PIPELINE: dict[str, Any] = {"stages": {"evaluate": {"cmd": "python stage.py", "params": ["seed"], "outs": ["result"]}}}

STAGE = """
from pathlib import Path
from mme.config import load_params
from mme.tracking import start_run
params = load_params()
value = params.seed + len(list(params.ingest.root.iterdir()))
with start_run("evaluate", params) as run:
    run.log_metrics({"value": value})
Path("result").write_text(str(value))
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def command(folder: Path, *words: str, **more: str) -> str:
    """Run a command as a user of the project in ``folder`` and return its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "GIT_"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "DVC_SITE_CACHE_DIR": str(folder / ".work/dvc"),
        "COLUMNS": "250",
        **{f"GIT_{who}_{what}": "x@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        **more,
    }
    answer = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, f"{words}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one stage, below the root of its repository; an experiment with another seed has run in it."""
    repository = tmp_path_factory.mktemp("reproduce") / "all models"
    folder = repository / "gestes d'été #1"
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc/config").touch()
    (folder / "src").symlink_to(ROOT / "src")
    params = small_params(seed=1, ingest={"source": "folder", "root": Path("videos/own")})
    (folder / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")), encoding="utf-8")
    (folder / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE), encoding="utf-8")
    (folder / "stage.py").write_text(STAGE, encoding="utf-8")
    (folder / ".gitignore").write_text("/mlflow*\n/mlartifacts\n/.work\n/videos\n/result\n", encoding="utf-8")
    (repository / "stage.py").write_text("raise AssertionError('of another project')", encoding="utf-8")
    command(repository, "git", "init", "--quiet")
    command(repository, "git", "add", ".")
    command(repository, "git", "commit", "--quiet", "--message", "start")
    for number in range(4):
        (folder / f"videos/own/{number}").mkdir(parents=True)
    command(folder, sys.executable, "-m", "dvc", "exp", "run", "-S", "seed=30")
    return folder


def runs_of(folder: Path) -> list[Any]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def reproduce(folder: Path, *words: str) -> str:
    return command(folder, sys.executable, "-m", "mme.commands.app", "reproduce", *words)


def test_an_experiment_is_reproduced(project: Path) -> None:
    [run] = runs_of(project)
    assert run.data.metrics["value"] == 34
    before = sorted(path.name for path in project.parent.rglob("*"))
    output = reproduce(project, run.info.run_id, "--run")
    assert re.search(r"value +34.0 +34.0", output)
    assert "all 1 metrics are equal to the last digit" in output
    assert sorted(path.name for path in project.parent.rglob("*")) == before


def test_the_printed_commands_do_it_and_touch_no_file_of_the_project(project: Path) -> None:
    [run] = runs_of(project)
    (project / "params.yaml").write_text("# of the user\n", encoding="utf-8")
    command(project, "bash", "-e", "-c", reproduce(project, run.info.run_id))
    assert (project / "params.yaml").read_text(encoding="utf-8") == "# of the user\n"
    clone = project.parents[1] / f"reproduced-{run.info.run_id[:8]}" / project.name
    [again] = runs_of(clone)
    assert again.data.metrics["value"] == 34
    assert again.data.tags["git_commit"] == run.data.tags["git_commit"]
