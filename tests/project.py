"""A small copy of the project in which tests run the pipeline through DVC, as a user does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from mme.system.files import read_json

ROOT = Path(__file__).parents[1]
STAGES = ["synthesize", "survey-primitives", "ingest", "trajectories", "pretrain", "finetune", "evaluate", "register"]
NUM_PRETRAIN = 8
CLASSES = ["left", "right", "grow", "clockwise", "up", "down"]

SMALL: dict[str, dict[str, Any]] = {
    "runtime": {"num_workers": 1},
    "synthesize": {
        "classes": CLASSES, "num_pretrain": NUM_PRETRAIN, "train_per_class": 1, "val_per_class": 1, "test_per_class": 1,
    },
    "model": {"dim": 16, "depth": 1, "num_heads": 2},
    "pretrain": {
        "epochs": 2, "warmup_epochs": 1, "batch_size": 8, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2,
    },
    "finetune": {"epochs": 2, "warmup_epochs": 1, "batch_size": 6, "horizontal_flip": False, "flip_pairs": []},
    "registry": {"minimum": 0.0},
}  # fmt: skip

UNCACHED = ("mlflow.db", "reports/register.json")
"""Results of the pipeline that neither git nor DVC's cache holds."""


class Project:
    """A copy of the project with small parameters, its own git history and its own DVC cache."""

    def __init__(self, folder: Path, repository: Path | None = None) -> None:
        """Make the copy.

        Args:
            folder: of the project.
            repository: root of its git repository, if that is a folder above.
        """
        self.folder = folder
        for line in self._run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).splitlines():
            if (ROOT / line).is_file() and not line.startswith(("tests/", "dvc.lock")):
                (folder / line).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / line, folder / line)
        self.set(**SMALL)
        self.git("init", "--quiet", str(repository or folder))
        self.commit("start")

    def run(self, command: list[str], **environment: str) -> str:
        """Run a command in the project and return its output."""
        return self._run(command, self.folder, environment)

    def _run(self, command: list[str], folder: Path, more: Mapping[str, str] = MappingProxyType({})) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "GIT_"))}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{self.folder / 'src'}{os.pathsep}{self.folder}",
            "DVC_SITE_CACHE_DIR": str(self.folder / ".work/dvc"),
            "OMP_NUM_THREADS": "1",
            **more,
        }
        answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
        return answer.stdout

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
        return self._run(["git", *identity, *arguments], self.folder)

    def commit(self, message: str) -> None:
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", message)

    def dvc(self, *arguments: str) -> str:
        return self._run([sys.executable, "-m", "dvc", *arguments], self.folder)

    def repro(self, *arguments: str) -> list[str]:
        """Run `dvc repro` and return the stages that ran."""
        return re.findall(r"^Running stage '([^']+)'", self.dvc("repro", *arguments), re.MULTILINE)

    def set(self, **sections: dict[str, Any]) -> None:
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, values in sections.items():
            params[section] |= values
        path.write_text(yaml.safe_dump(params), encoding="utf-8")

    def report(self, name: str) -> Any:
        return read_json(self.folder / "reports" / name)

    def train(self) -> list[str]:
        """Run the whole pipeline, commit the lock, keep that state for `restore`, and return the stages that ran."""
        stages = self.repro("register")
        self.commit("first result")
        self.git("tag", "trained")
        for name in UNCACHED:
            shutil.copy(self.folder / name, self.folder / ".work")
        return stages

    def restore(self) -> None:
        """Bring back the state that `train` left: files, DVC's outputs, runs and registry."""
        self.git("reset", "--quiet", "--hard", "trained")
        self.dvc("checkout", "--force")
        for name in UNCACHED:
            shutil.copy(self.folder / ".work" / Path(name).name, self.folder / name)

    def clone(self, folder: Path) -> Project:
        """Return a clone of the repository, without any output."""
        self.git("clone", "--quiet", str(self.folder), str(folder))
        clone = object.__new__(Project)
        clone.folder = folder
        return clone
