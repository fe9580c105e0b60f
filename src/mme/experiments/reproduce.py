"""Rebuilding a recorded run: the commands that lead to it again, and whether they do."""

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
"""Ends of names of metrics that measure the machine and not the model."""


@dataclass(frozen=True)
class Comparison:
    """A metric, as recorded and as measured again; None where only the other has it."""

    name: str
    recorded: float | None
    repeated: float | None

    @property
    def is_equal(self) -> bool:
        """To the last digit."""
        return self.recorded == self.repeated


@dataclass(frozen=True)
class Recipe:
    """How a run is rebuilt.

    Attributes:
        run: what was recorded.
        params: its ``params.yaml``.
        origin: the repository it was made in.
    """

    run: RecordedRun
    params: str
    origin: Path

    def commands(self, folder: Path) -> list[list[str]]:
        """Command lines, each to be run in ``folder`` but the first, which makes it.

        The first `dvc repro` takes what the cache of the origin has and runs what it has not; the second one runs the
        stage itself in any case.
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


def recipe(run_id: str, origin: Path) -> Recipe:
    """Look a run up.

    Raises:
        ValueError: there is no such run, it has not finished, it is none of the pipeline's, it lacks its commit or its
            parameters, or its code was not committed.
    """
    run = read_run(run_id)
    stages = tuple(yaml.safe_load((origin / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    if run.stage not in stages:
        raise ValueError(f"run {run_id}: is of {run.stage!r}, none of the pipeline's stages {', '.join(stages)}")
    if run.status != "FINISHED":
        raise ValueError(f"run {run_id}: did not finish ({run.status})")
    if run.git_commit is None or run.git_commit.endswith("-dirty"):
        raise ValueError(
            f"run {run_id}: its code is {run.git_commit or 'not known'}; only what was committed can be rebuilt"
        )
    return Recipe(run, run.read_params(), origin)


def script(recipe: Recipe, folder: Path) -> str:
    """The commands as a person would type them."""
    lines = [f"mlflow artifacts download --run-id {recipe.run.id} --artifact-path {PARAMS_FILE} --dst-path ."]
    lines[0] += f" && mv {PARAMS_FILE} {shlex.quote(f'{folder}.params.yaml')}"
    for number, command in enumerate(recipe.commands(folder)):
        words = ["dvc" if word == "dvc" else word for word in command if word not in (sys.executable, "-m")]
        lines.append(shlex.join(words))
        if number == 0:
            lines += [f"cd {shlex.quote(str(folder))}", "export PYTHONPATH=$PWD/src:$PWD"]
    return "\n".join(lines)


def repeat(recipe: Recipe, say: Callable[[str], None]) -> list[Comparison]:
    """Run the commands in a temporary clone, which is removed, and compare every metric.

    Raises:
        ValueError: a command failed; the message holds the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="mme-reproduce-") as scratch:
        folder = Path(scratch) / "clone"
        write_text(f"{folder}.params.yaml", recipe.params)
        for number, command in enumerate(recipe.commands(folder)):
            say(shlex.join(command))
            _run(command, folder if number else Path(scratch), folder)
        again = read_run(stage=recipe.run.stage, store=f"sqlite:///{folder}/mlflow.db")
    return compare(recipe.run.metrics, again.metrics)


def compare(recorded: Mapping[str, float], repeated: Mapping[str, float]) -> list[Comparison]:
    """Every metric of either run, but for those of the machine."""
    names = sorted({*recorded, *repeated})
    return [
        Comparison(name, recorded.get(name), repeated.get(name))
        for name in names
        if not name.startswith("system/") and not name.endswith(TIMED)
    ]


def _run(command: list[str], where: Path, clone: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_TRACKING", "GIT_"))}
    environment = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": f"{clone / 'src'}{os.pathsep}{clone}",  # the code of the run, not that of the environment
        "DVC_SITE_CACHE_DIR": f"{clone}.dvc",
    }
    answer = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ValueError(
            f"{shlex.join(command)} ended with {answer.returncode}:\n{answer.stdout}{answer.stderr}"[-4000:]
        )
