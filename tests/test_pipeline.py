"""The whole pipeline on a few small videos, in a copy of the project, through DVC as a user runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from mme.evaluation.classifier import Classifier
from mme.system.files import read_json, sha256_file
from tests import media

ROOT = Path(__file__).parents[1]
STAGES = ["synthesize", "ingest", "trajectories", "pretrain", "finetune", "evaluate", "register"]
NUM_PRETRAIN, CLASSES = 8, ["left", "right", "grow", "clockwise", "up", "down"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SMALL: dict[str, dict[str, Any]] = {
    "run": {"num_workers": 1},
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


class Project:
    """A copy of the project in a folder of its own, with its own git history and DVC cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for line in self._run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).splitlines():
            if (ROOT / line).is_file() and not line.startswith(("tests/", "dvc.lock")):
                (folder / line).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / line, folder / line)
        self.set(**SMALL)
        self.git("init", "--quiet")
        self.commit("start")

    def run(self, command: list[str], **environment: str) -> str:
        """What a command writes that runs in the project, with more in its environment."""
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
        """The stages that ran."""
        return re.findall(r"^Running stage '(\w+)'", self.dvc("repro", *arguments), re.MULTILINE)

    def set(self, **sections: dict[str, Any]) -> None:
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, values in sections.items():
            params[section] |= values
        path.write_text(yaml.safe_dump(params), encoding="utf-8")

    def report(self, name: str) -> Any:
        return read_json(self.folder / "reports" / name)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after its first `dvc repro register` and a commit of the lock. The tests below run in order."""
    project = Project(tmp_path_factory.mktemp("project"))
    assert project.repro("register") == STAGES
    project.commit("first result")
    return project


def test_one_command_leads_to_a_registered_model(project: Project) -> None:
    manifest = project.report("ingest.json")
    assert manifest["videos"] == NUM_PRETRAIN + 3 * len(CLASSES)
    receipt = project.report("register.json")
    assert (receipt["version"], receipt["alias"]) == (1, "champion")
    assert receipt["metrics"]["test/top1"] == project.report("evaluate/metrics.json")["test"]["top1"]
    answer = Classifier.load(project.folder / "models/export").classify(
        next((project.folder / "data/videos").iterdir())
    )
    assert len(answer.predictions) == 5
    assert (project.folder / "models/export/README.md").is_file()


def test_nothing_but_the_lock_is_new_to_git(project: Project) -> None:
    assert project.git("show", "--stat=200", "--format=", "HEAD").split()[:1] == ["dvc.lock"]
    assert project.git("status", "--porcelain") == ""


def test_every_training_stage_is_a_finished_run_with_data_and_parameters(project: Project) -> None:
    client = MlflowClient(f"sqlite:///{project.folder}/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name != "Default"]
    runs = {run.data.tags["stage"]: run for run in client.search_runs([experiment.experiment_id])}
    assert {"ingest", "pretrain", "finetune", "evaluate", "register"} <= runs.keys()
    digest = runs["finetune"].data.tags["data_digest"]
    commit = project.git("rev-parse", "HEAD~1").strip()
    for stage, run in runs.items():
        assert run.info.status == "FINISHED", stage
        assert run.data.params["pretrain.epochs"] == "2"
        assert run.data.tags["git_commit"] == commit
    for stage in ("pretrain", "finetune", "evaluate", "register"):
        inputs = runs[stage].inputs
        assert inputs is not None
        assert [entry.dataset.digest for entry in inputs.dataset_inputs] == [digest], stage
    assert "val/top1" in runs["finetune"].data.metrics
    assert "test/top1" in runs["evaluate"].data.metrics


def test_again_runs_nothing_and_neither_does_an_edit_of_the_service(project: Project) -> None:
    assert project.repro("register") == []
    with (project.folder / "serving/app.py").open("a", encoding="utf-8") as file:
        file.write("\n# edited\n")
    assert project.repro("register") == []
    project.git("checkout", "--quiet", "serving")


def test_metrics_and_plots_are_shown(project: Project) -> None:
    shown = json.loads(project.dvc("metrics", "show", "--json"))[""]["data"]
    top1 = shown[str(Path("reports/evaluate/metrics.json"))]["data"]["test"]["top1"]
    assert top1 == project.report("evaluate/metrics.json")["test"]["top1"]
    project.dvc("plots", "show", "--out", "dvc_plots")
    page = (project.folder / "dvc_plots/index.html").read_text(encoding="utf-8")
    for expected in ("train/loss", "val/top1", "confusion.png", "predictions.png", "preview.png", "predicted"):
        assert expected in page, expected


def test_finetuning_parameters_rerun_finetuning_and_what_follows(project: Project) -> None:
    project.set(finetune={"lr": 0.004})
    assert project.repro("register") == ["finetune", "evaluate", "register"]
    assert project.report("register.json")["version"] == 2
    difference = json.loads(project.dvc("metrics", "diff", "--json"))
    assert "train.loss" in difference[str(Path("reports/finetune/metrics.json"))]


def test_the_same_parameters_give_the_same_weights_and_metrics(project: Project) -> None:
    """Trained again rather than brought back from DVC's cache; the registry knows the result by its content."""
    files = ["models/finetune/model.safetensors", "reports/finetune/curves.csv", "reports/evaluate/metrics.json"]
    project.git("checkout", "--quiet", "--", "params.yaml", "dvc.lock")
    project.dvc("checkout")
    before = [sha256_file(project.folder / name) for name in files]
    assert project.repro("--force", "--single-item", "finetune", "evaluate", "register") == [
        "finetune",
        "evaluate",
        "register",
    ]
    assert [sha256_file(project.folder / name) for name in files] == before
    receipt = project.report("register.json")
    assert (receipt["version"], receipt["created"]) == (1, False)


def test_another_source_leaves_the_motion_primitives_alone(project: Project) -> None:
    """Class folders of one's own in mixed formats, one file of them no video."""
    source = project.folder.parent / "own videos"
    for index in range(10):
        suffix, codec = ((".mp4", "libx264"), (".webm", "libvpx-vp9"))[index % 2]
        media.write(source / ("wave", "jump")[index % 2] / f"{index}{suffix}", codec=codec, num_frames=40, seed=index)
    media.text(source / "wave" / "broken.mp4")
    project.set(ingest={"source": "folder", "root": str(source), "max_bad_ratio": 0.2})
    shutil.rmtree(project.folder / "data/raw")
    assert project.repro("ingest") == ["ingest"]
    assert project.report("ingest.json")["videos"] == 10
    quarantine = (project.folder / "data/quarantine.csv").read_text(encoding="utf-8").splitlines()
    assert len(quarantine) == 2
    assert quarantine[1].startswith("wave/broken.mp4,not-a-video")
    assert not (project.folder / "data/raw").exists()
