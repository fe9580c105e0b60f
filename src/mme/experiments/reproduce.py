"""Reproduce a recorded run: its commands, and a comparison of its metrics."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from mme.system.files import write_text
from mme.tracking import RecordedRun, read_run
from mme.tracking.runs import PARAMS_FILE

TIMED = ("seconds", "duration")
"""Suffixes of metrics that depend on the machine and are not compared."""


@dataclass(frozen=True)
class Comparison:
    """A metric as recorded and as measured again; None if only the other run has it."""

    name: str
    recorded: float | None
    repeated: float | None

    @property
    def is_equal(self) -> bool:
        """True if both are equal to the last digit."""
        return self.recorded == self.repeated


@dataclass(frozen=True)
class Recipe:
    """Commands that reproduce a run.

    Attributes:
        run: the recorded run.
        params: text of its ``params.yaml``.
        origin: the repository in which it ran.
    """

    run: RecordedRun
    params: str
    origin: Path

    def commands(self, folder: Path) -> list[list[str]]:
        """Return the command lines; the first creates ``folder``, the others run in it.

        The first `dvc repro` restores stages from the origin's cache and runs missing ones; the second always runs the
        stage itself.
        """
        dvc = [sys.executable, "-m", "dvc"]
        return [
            ["git", "clone", "--quiet", "--no-checkout", str(self.origin), str(folder)],
            ["git", "checkout", "--quiet", str(self.run.git_commit)],
            [*dvc, "cache", "dir", "--local", str(self.origin / ".dvc/cache")],
            ["cp", str(folder) + ".params.yaml", PARAMS_FILE],
            [*dvc, "repro", self.run.stage],
            [*dvc, "repro", "--force", "--single-item", self.run.stage],
        ]


def find_recipe(run_id: str, origin: Path) -> Recipe:
    """Return the recipe of a run.

    Raises:
        ValueError: there is no such run, it has not finished, it is not of a stage of the pipeline, its commit or its
            parameters are missing, or its code was not committed.
    """
    run = read_run(run_id)
    stages = tuple(yaml.safe_load((origin / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    if run.stage not in stages:
        raise ValueError(
            f"run {run_id}: is of {run.stage!r}, which is not a stage of the pipeline: {', '.join(stages)}"
        )
    if run.status != "FINISHED":
        raise ValueError(f"run {run_id}: did not finish ({run.status})")
    if run.git_commit is None or run.git_commit.endswith("-dirty"):
        raise ValueError(
            f"run {run_id}: its code is {run.git_commit or 'unknown'}; only committed code can be reproduced"
        )
    return Recipe(run, run.read_params(), origin)


def shell_script(recipe: Recipe, folder: Path) -> str:
    """Return the commands as typed in a shell."""
    lines = [f"mlflow artifacts download --run-id {recipe.run.id} --artifact-path {PARAMS_FILE} --dst-path ."]
    lines[0] += f" && mv {PARAMS_FILE} {shlex.quote(f'{folder}.params.yaml')}"
    for number, command in enumerate(recipe.commands(folder)):
        words = ["dvc" if word == "dvc" else word for word in command if word not in (sys.executable, "-m")]
        lines.append(shlex.join(words))
        if number == 0:
            lines += [f"cd {shlex.quote(str(folder))}", "export PYTHONPATH=$PWD/src:$PWD"]
    return "\n".join(lines)


def rerun(recipe: Recipe, show: Callable[[str], None]) -> list[Comparison]:
    """Run the commands in a temporary clone and compare every metric.

    Raises:
        ValueError: a command failed; the message contains the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="mme-reproduce-") as scratch:
        folder = Path(scratch) / "clone"
        write_text(f"{folder}.params.yaml", recipe.params)
        for number, command in enumerate(recipe.commands(folder)):
            show(shlex.join(command))
            _run_command(command, folder if number else Path(scratch), folder)
        again = read_run(stage=recipe.run.stage, store=f"sqlite:///{folder}/mlflow.db")
    return compare_metrics(recipe.run.metrics, again.metrics)


def compare_metrics(recorded: Mapping[str, float], repeated: Mapping[str, float]) -> list[Comparison]:
    """Compare every metric of either run, except those of the machine."""
    names = sorted({*recorded, *repeated})
    return [
        Comparison(name, recorded.get(name), repeated.get(name))
        for name in names
        if not name.startswith("system/") and not name.endswith(TIMED)
    ]


def _run_command(command: list[str], cwd: Path, clone: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_TRACKING", "GIT_"))}
    environment = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": f"{clone / 'src'}{os.pathsep}{clone}",  # the code of the run, not the installed one
        "DVC_SITE_CACHE_DIR": f"{clone}.dvc",
    }
    answer = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ValueError(
            f"{shlex.join(command)} exited with {answer.returncode}:\n{answer.stdout}{answer.stderr}"[-4000:]
        )
