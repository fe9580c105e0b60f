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
from mme.tracking.runs import PARAMS_FILE, repository_of
from mme.tracking.store import database_address

TIMED = ("seconds", "duration")
"""Suffixes of metrics that depend on the machine and are not compared."""

CACHE_FOLDER = ".dvc/cache"

NUM_CLONING = 2
"""Leading commands of a recipe that make the clone, before its folder can be entered."""


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
        origin: the project's folder in which it ran.
        repository: root of the git repository that contains ``origin``.
    """

    run: RecordedRun
    params: str
    origin: Path
    repository: Path

    def project(self, clone: Path) -> Path:
        """Return the project's folder in a clone of the repository."""
        return clone / self.origin.relative_to(self.repository)

    def commands(self, clone: Path, recorded: Path) -> list[list[str]]:
        """Return the command lines; the first two create ``clone``, the others run in the project's folder of it.

        The first `dvc repro` restores stages from the origin's cache and runs missing ones; the second always runs the
        stage itself.

        Args:
            clone: absolute path, which does not exist.
            recorded: absolute path of the recorded parameters.
        """
        dvc = [sys.executable, "-m", "dvc"]
        return [
            ["git", "clone", "--quiet", "--no-checkout", str(self.repository), str(clone)],
            ["git", "-C", str(clone), "checkout", "--quiet", str(self.run.git_commit)],
            # Not `dvc cache dir`, which writes a path into a file that DVC takes for ASCII.
            ["ln", "-s", str(self.origin / CACHE_FOLDER), CACHE_FOLDER],
            ["cp", str(recorded), PARAMS_FILE],
            *self._links_to_sources(),
            [*dvc, "repro", self.run.stage],
            [*dvc, "repro", "--force", "--single-item", self.run.stage],
        ]

    def _links_to_sources(self) -> list[list[str]]:
        """Return commands that link videos within the project's folder that are not under version control."""
        params = yaml.safe_load(self.params)
        read = [params["ingest"], *params["datasets"].values()]
        roots = {Path(data["root"]) for data in read if data["source"] != "motion-primitives"}
        return [
            command
            for root in sorted(roots)
            if (self.origin / root).is_dir() and not root.is_absolute() and not _is_tracked(self.origin, root)
            for command in (
                ["mkdir", "-p", str(root.parent)],
                ["ln", "-s", str((self.origin / root).resolve()), str(root)],
            )
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
    repository = repository_of(origin)
    if repository is None:
        raise ValueError(f"{origin}: is in no git repository, which `mme reproduce` clones")
    return Recipe(run, run.read_params(), origin.resolve(), repository)


def shell_script(recipe: Recipe, clone: Path) -> str:
    """Return the commands as typed in a shell."""
    scratch = Path(f"{clone}.params")
    download = ["mlflow", "artifacts", "download", "--run-id", recipe.run.id, "--artifact-path", PARAMS_FILE]
    lines = [shlex.join([*download, "--dst-path", str(scratch)])]
    for number, command in enumerate(recipe.commands(clone, scratch / PARAMS_FILE)):
        if number == NUM_CLONING:
            lines += [f"cd {shlex.quote(str(recipe.project(clone)))}", "export PYTHONPATH=$PWD/src:$PWD"]
        words = ["dvc" if word == "dvc" else word for word in command if word not in (sys.executable, "-m")]
        lines.append(shlex.join(words))
    return "\n".join(lines)


def rerun(recipe: Recipe, show: Callable[[str], None]) -> list[Comparison]:
    """Run the commands in a temporary clone and compare every metric.

    Raises:
        ValueError: a command failed; the message contains the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="mme-reproduce-") as scratch:
        clone, recorded = Path(scratch) / "clone", Path(scratch) / PARAMS_FILE
        project = recipe.project(clone)
        write_text(recorded, recipe.params)
        for number, command in enumerate(recipe.commands(clone, recorded)):
            show(shlex.join(command))
            _run_command(command, Path(scratch) if number < NUM_CLONING else project, project)
        again = read_run(stage=recipe.run.stage, store=database_address(project))
    return compare_metrics(recipe.run.metrics, again.metrics)


def compare_metrics(recorded: Mapping[str, float], repeated: Mapping[str, float]) -> list[Comparison]:
    """Compare every metric of either run, except those of the machine."""
    names = sorted({*recorded, *repeated})
    return [
        Comparison(name, recorded.get(name), repeated.get(name))
        for name in names
        if not name.startswith("system/") and not name.endswith(TIMED)
    ]


def _is_tracked(folder: Path, path: Path) -> bool:
    command = ["git", "ls-files", "--", str(path)]
    return bool(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)


def _run_command(command: list[str], cwd: Path, project: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_TRACKING", "GIT_"))}
    environment = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": f"{project / 'src'}{os.pathsep}{project}",  # the code of the run, not the installed one
        "DVC_SITE_CACHE_DIR": str(project / ".work/dvc"),
    }
    answer = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ValueError(
            f"{shlex.join(command)} exited with {answer.returncode}:\n{answer.stdout}{answer.stderr}"[-4000:]
        )
