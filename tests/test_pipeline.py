"""The whole pipeline on a few small videos, in a copy of the project, through DVC as a user runs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from mme.evaluation.classifier import Classifier
from mme.system.files import sha256_file
from tests import media
from tests.project import CLASSES, NUM_PRETRAIN, STAGES, Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after its first `dvc repro register` and a commit of the lock. Tests that use it change nothing."""
    project = Project(tmp_path_factory.mktemp("project"))
    assert project.train() == STAGES
    return project


@pytest.fixture
def project(trained: Project) -> Iterator[Project]:
    """The trained project for a test that changes it; afterwards it is as before."""
    yield trained
    trained.restore()


def test_one_command_registers_a_model(trained: Project) -> None:
    assert trained.report("ingest.json")["videos"] == NUM_PRETRAIN + 3 * len(CLASSES)
    result = trained.report("register.json")
    assert (result["version"], result["alias"]) == (1, "champion")
    assert result["metrics"]["test/top1"] == trained.report("evaluate/metrics.json")["test"]["top1"]
    video = next((trained.folder / "data/videos").iterdir())
    answer = Classifier.load(trained.folder / "models/export").classify(video)
    assert len(answer.predictions) == 5
    assert (trained.folder / "models/export/README.md").is_file()


def test_only_the_lock_is_new_to_git(trained: Project) -> None:
    assert trained.git("show", "--stat=200", "--format=", "trained").split()[:1] == ["dvc.lock"]
    assert trained.git("status", "--porcelain") == ""


def test_every_training_stage_is_a_finished_run_with_data_and_parameters(trained: Project) -> None:
    client = MlflowClient(f"sqlite:///{trained.folder}/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name != "Default"]
    runs = {run.data.tags["stage"]: run for run in client.search_runs([experiment.experiment_id])}
    assert {"ingest", "pretrain", "finetune", "evaluate", "register"} <= runs.keys()
    digest = runs["finetune"].data.tags["data_digest"]
    commit = trained.git("rev-parse", "trained~1").strip()
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


def test_repro_runs_nothing_again_nor_after_an_edit_of_the_service(project: Project) -> None:
    assert project.repro("register") == []
    with (project.folder / "serving/app.py").open("a", encoding="utf-8") as file:
        file.write("\n# edited\n")
    assert project.repro("register") == []


def test_metrics_and_plots_are_shown(trained: Project) -> None:
    shown = json.loads(trained.dvc("metrics", "show", "--json"))[""]["data"]
    top1 = shown[str(Path("reports/evaluate/metrics.json"))]["data"]["test"]["top1"]
    assert top1 == trained.report("evaluate/metrics.json")["test"]["top1"]
    trained.dvc("plots", "show", "--out", "dvc_plots")
    page = (trained.folder / "dvc_plots/index.html").read_text(encoding="utf-8")
    for expected in ("train/loss", "val/top1", "confusion.png", "predictions.png", "preview.png", "predicted"):
        assert expected in page, expected


def test_finetuning_parameters_rerun_finetuning_and_old_ones_give_the_old_weights(project: Project) -> None:
    """With the old values the stages are forced to run, not restored from DVC's cache: same files, same version."""
    files = ["models/finetune/model.safetensors", "reports/finetune/curves.csv", "reports/evaluate/metrics.json"]
    before = [sha256_file(project.folder / name) for name in files]
    project.set(finetune={"lr": 0.004})
    assert project.repro("register") == ["finetune", "evaluate", "register"]
    assert project.report("register.json")["version"] == 2
    difference = json.loads(project.dvc("metrics", "diff", "--json"))
    assert "train.loss" in difference[str(Path("reports/finetune/metrics.json"))]

    project.git("checkout", "--quiet", "--", "params.yaml", "dvc.lock")
    project.dvc("checkout")
    again = ["finetune", "evaluate", "register"]
    assert project.repro("--force", "--single-item", *again) == again
    assert [sha256_file(project.folder / name) for name in files] == before
    result = project.report("register.json")
    assert (result["version"], result["created"]) == (1, False)


def test_queued_experiments_run_the_code_that_they_were_queued_with(project: Project) -> None:
    """Their runs and versions are in the project's stores, although they run in copies of the project."""
    project.dvc("exp", "run", "register", "--queue", "-S", "finetune.lr=0.004,0.008")
    with (project.folder / "src/mme/stages/finetune.py").open("a", encoding="utf-8") as file:
        file.write("\nraise RuntimeError('edited after the experiments were queued')\n")
    project.dvc("exp", "run", "--run-all")
    assert len(project.dvc("exp", "list", "--name-only").split()) == 2
    client = MlflowClient(f"sqlite:///{project.folder}/mlflow.db")
    (model,) = client.search_registered_models()
    versions = client.search_model_versions(f"name='{model.name}'")
    assert sorted(int(version.version) for version in versions) == [1, 2, 3]
    rates = {client.get_run(version.run_id).data.params["finetune.lr"] for version in versions if version.run_id}
    assert {"0.004", "0.008"} <= rates


def test_another_source_leaves_the_motion_primitives_alone(project: Project) -> None:
    """Class folders of one's own in mixed formats, one file of them no video."""
    source = project.folder.parent / "own videos"
    for index in range(10):
        suffix, codec = ((".mp4", "libx264"), (".webm", "libvpx-vp9"))[index % 2]
        media.write(source / ("wave", "jump")[index % 2] / f"{index}{suffix}", codec=codec, num_frames=40, seed=index)
    media.text(source / "wave" / "broken.mp4")
    project.set(ingest={"source": "folder", "root": str(source)}, runtime={"max_bad_ratio": 0.2})
    shutil.rmtree(project.folder / "data/raw")
    assert project.repro("ingest") == ["survey", "ingest"]
    assert project.report("ingest.json")["videos"] == 10
    quarantine = (project.folder / "data/quarantine.csv").read_text(encoding="utf-8").splitlines()
    assert len(quarantine) == 2
    assert quarantine[1].startswith("wave/broken.mp4,not-a-video")
    assert not (project.folder / "data/raw").exists()
