from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from mme.config import Params, load_params
from mme.manifest import Manifest
from mme.models.checkpoints import content_digest
from mme.tracking import ModelPackage, RegisteredModel, Version, git_commit, resolve, start_noted_run, start_run
from mme.tracking.runs import MAX_PARAM_LENGTH, flatten_params
from mme.tracking.versions import MODEL_LIBRARIES
from tests import media
from tests.factories import row
from tests.tiny import save_tiny_folder

ROOT = Path(__file__).parents[2]
TINY, UNKNOWN = RegisteredModel("tiny"), RegisteredModel("unknown")


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tracking store, shared by the tests of this module because creating one takes seconds."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(autouse=True)
def _in_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def recorded(run_id: str) -> mlflow.entities.Run:
    return MlflowClient().get_run(run_id)


def test_run_is_stored_where_a_bare_mlflow_ui_looks(params: Params, store: Path) -> None:
    with start_run("pretrain", params) as run:
        run.log_metrics({"train/loss": 1.0, "val/top1": 0.25}, step=0)
        run.log_metrics({"train/loss": 0.5, "val/top1": 0.5}, step=1)
    assert (store / "mlflow.db").is_file()
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    found = client.get_run(run.id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "pretrain"
    experiment = client.get_experiment(found.info.experiment_id)
    assert experiment.name == params.runtime.experiment
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert Path(found.info.artifact_uri.removeprefix("file://")).is_relative_to(store / "mlartifacts")
    assert found.data.metrics == {"train/loss": 0.5, "val/top1": 0.5}
    history = client.get_metric_history(run.id, "train/loss")
    assert [(entry.step, entry.value) for entry in history] == [(0, 1.0), (1, 0.5)]


def test_run_records_all_parameters_and_their_digest(params: Params) -> None:
    with start_run("finetune", params, tags={"note": "x"}) as run:
        pass
    found = recorded(run.id)
    assert found.data.params == flatten_params(params)
    assert found.data.params["pretrain.mask_ratio"] == str(params.pretrain.mask_ratio)
    assert found.data.params["ingest.source"] == "motion-primitives"
    assert json.loads(found.data.params["pretrain.betas"]) == list(params.pretrain.betas)
    expected = {"stage": "finetune", "params_digest": params.digest(), "note": "x"}
    assert expected.items() <= found.data.tags.items()


def test_long_parameter_is_truncated_at_mlflows_limit(params: Params) -> None:
    pairs = [[f"left {i}", f"right {i}"] for i in range(400)]
    long = Params.model_validate(
        params.model_dump() | {"finetune": params.finetune.model_dump() | {"flip_pairs": pairs}}
    )
    with start_run("finetune", long) as run:
        pass
    assert len(recorded(run.id).data.params["finetune.flip_pairs"]) == MAX_PARAM_LENGTH


def test_run_records_artifacts_and_data(params: Params, store: Path, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "metrics.json").write_text("{}")
    rows = [row("a", "train"), row("b", "train"), row("c", "test"), row("d", "test", status="quarantined")]
    manifest = Manifest(rows, tmp_path)
    manifest.save(tmp_path / "manifest.parquet")
    with start_run("evaluate", params) as run:
        run.log_artifact(tmp_path / "report" / "metrics.json")
        run.log_artifact(tmp_path / "report", "report")
        run.log_dataset(tmp_path / "manifest.parquet", manifest.digest, context="evaluation")
    paths = {entry.path for entry in MlflowClient().list_artifacts(run.id)}
    assert paths == {"metrics.json", "params.yaml", "report"}
    found = recorded(run.id)
    assert found.data.tags["data_digest"] == manifest.digest
    assert found.inputs is not None
    (entry,) = found.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("motion-primitives", manifest.digest)
    assert json.loads(entry.dataset.profile or "") == {"num_rows": 3, "quarantined": 1, "train": 2, "test": 1}
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "evaluation")]


def test_exception_fails_the_run_and_is_recorded(params: Params) -> None:
    with pytest.raises(ValueError, match="split val"), start_run("evaluate", params) as run:
        raise ValueError("split val: is empty")
    found = recorded(run.id)
    assert found.info.status == "FAILED"
    assert found.data.tags["error"] == "ValueError: split val: is empty"
    assert mlflow.active_run() is None


def test_keyboard_interrupt_kills_the_run(params: Params) -> None:
    with pytest.raises(KeyboardInterrupt), start_run("pretrain", params) as run:
        raise KeyboardInterrupt
    assert recorded(run.id).info.status == "KILLED"


def test_keyboard_interrupt_that_lightning_turned_into_an_exit_kills_the_run(params: Params) -> None:
    def leave() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    with pytest.raises(SystemExit), start_run("pretrain", params) as run:
        leave()
    assert recorded(run.id).info.status == "KILLED"


def test_sigterm_kills_the_run_and_its_handler_is_restored(params: Params) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), start_run("pretrain", params) as run:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(10)
    assert recorded(run.id).info.status == "KILLED"
    assert signal.getsignal(signal.SIGTERM) is before


def test_run_is_resumed_by_its_id(params: Params) -> None:
    with pytest.raises(KeyboardInterrupt), start_run("pretrain", params) as first:
        first.log_metrics({"train/loss": 1.0}, step=0)
        raise KeyboardInterrupt
    with start_run("pretrain", params, resume_run_id=first.id) as second:
        second.log_metrics({"train/loss": 0.5}, step=1)
    assert second.id == first.id
    assert recorded(first.id).info.status == "FINISHED"
    assert [entry.step for entry in MlflowClient().get_metric_history(first.id, "train/loss")] == [0, 1]


def test_resumed_run_keeps_its_parameters(params: Params) -> None:
    with pytest.raises(OSError, match="disk"), start_run("pretrain", params) as first:
        raise OSError("disk full")
    later = params.model_copy(update={"finetune": params.finetune.model_copy(update={"epochs": 77})})
    with start_run("pretrain", later, resume_run_id=first.id, tags={"note": "resumed"}):
        pass
    found = recorded(first.id)
    assert found.info.status == "FINISHED"
    assert "error" not in found.data.tags
    assert found.data.params == flatten_params(params)
    assert found.data.tags["params_digest"] == params.digest()
    assert found.data.tags["note"] == "resumed"
    assert found.data.tags.get("resumed_git_commit") == git_commit()


def test_run_noted_in_a_file_is_resumed(params: Params, tmp_path: Path) -> None:
    note = tmp_path / "run_id"
    with pytest.raises(KeyboardInterrupt), start_noted_run("pretrain", params, note, parent_id="p" * 32) as first:
        raise KeyboardInterrupt
    assert note.read_text(encoding="utf-8") == first.id
    assert recorded(first.id).data.tags["mlflow.parentRunId"] == "p" * 32
    with start_noted_run("pretrain", params, note) as second:
        pass
    assert second.id == first.id
    assert recorded(first.id).info.status == "FINISHED"


def test_unknown_run_id_starts_a_new_run(params: Params) -> None:
    with start_run("pretrain", params, resume_run_id="0" * 32) as run:
        pass
    assert run.id != "0" * 32
    assert recorded(run.id).info.status == "FINISHED"


def test_runs_do_not_nest(params: Params) -> None:
    with start_run("pretrain", params), pytest.raises(RuntimeError, match="finetune"), start_run("finetune", params):
        pass


def test_system_metrics_are_recorded(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with start_run("pretrain", params) as run:
        threading.Event().wait(1.5)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= recorded(
        run.id
    ).data.metrics.keys()


def test_metrics_from_several_threads_are_all_recorded(params: Params) -> None:
    with start_run("pretrain", params) as run, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda step: run.log_metrics({"train/loss": float(step)}, step), range(40)))
    assert {entry.step for entry in MlflowClient().get_metric_history(run.id, "train/loss")} == set(range(40))


def test_environment_variable_selects_another_store(
    params: Params, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_run("pretrain", params):
        pass
    shutil.copy(store / "mlflow.db", tmp_path / "other.db")  # saves the seconds that making one takes
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    with start_run("pretrain", params) as run:
        pass
    assert recorded(run.id).info.status == "FINISHED"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(mlflow.MlflowException, match=run.id):
        recorded(run.id)


RECORD = """
import sys
from mme.config import load_params
from mme.tracking import start_run
with start_run(sys.argv[2], load_params(sys.argv[1])) as run:
    run.log_metrics({"val/top1": 0.5})
"""


@pytest.mark.slow
def test_processes_started_together_share_a_new_store_and_print_nothing(tmp_path: Path) -> None:
    """The first use of a database creates its tables and the experiment, each once."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    commands = [[sys.executable, "-c", RECORD, str(ROOT / "params.yaml"), stage] for stage in ("pretrain", "finetune")]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True)
        for command in commands
    ]
    answers = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert answers == [("", "")] * 2
    runs = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["1"])
    assert {run.data.tags["stage"] for run in runs} == {"pretrain", "finetune"}


def test_git_commit_marks_a_dirty_tree_but_ignores_lock_and_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for name in ("params.yaml", "dvc.lock", "dvc.yaml"):
        (tmp_path / name).write_text("a: 1\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_commit() == head
    for name in ("params.yaml", "dvc.lock", "untracked"):
        (tmp_path / name).write_text("a: 2\n")
        assert git_commit() == head
    (tmp_path / "dvc.yaml").write_text("a: 2\n")
    assert git_commit() == f"{head}-dirty"


def test_a_project_in_a_subfolder_is_dirty_by_its_own_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "models of ours"
    project.mkdir()
    names = ("dvc.lock", "params.yaml", "dvc.yaml")
    for name in ("notes.txt", "dvc.yaml", *(f"models of ours/{name}" for name in names)):
        (tmp_path / name).write_text("1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.chdir(project)
    head = git_commit()
    assert head is not None
    for path in (tmp_path / "notes.txt", tmp_path / "dvc.yaml", project / "dvc.lock", project / "params.yaml"):
        path.write_text("2\n")
        assert git_commit() == head
    (project / "dvc.yaml").write_text("2\n")
    assert git_commit() == f"{head}-dirty"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    folder = save_tiny_folder(tmp_path_factory.mktemp("models") / "export")
    (folder / "README.md").write_text("# card\n")
    video = media.write(tmp_path_factory.mktemp("videos") / "example.mp4", num_frames=12)
    return ModelPackage(folder, video, "A model.", {"digest": content_digest(folder), "test/top1": "0.5"})


@pytest.fixture(scope="module")
def registered(package: ModelPackage, store: Path, params: Params) -> Version:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(store)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with start_run("register", params):
            return TINY.register(package)


def test_register_and_resolve(package: ModelPackage, registered: Version) -> None:
    assert (registered.number, registered.aliases, registered.address) == (1, (), "models:/tiny/1")
    assert package.tags.items() <= registered.tags.items()
    folder = resolve("models:/tiny/1")
    assert content_digest(folder) == content_digest(package.folder)
    assert (folder / "README.md").read_text() == "# card\n"
    assert MlflowClient().get_model_version("tiny", "1").description == "A model."


def test_version_is_found_by_digest_and_alias(package: ModelPackage, registered: Version) -> None:
    assert TINY.find_digest(package.tags["digest"]) == registered
    assert TINY.find_digest("other") is None
    assert UNKNOWN.find_digest(package.tags["digest"]) is None
    assert UNKNOWN.find_alias("champion") is None
    assert TINY.find_alias("champion") is None
    registered.set_alias("challenger", {"champion", "challenger"})
    challenger = TINY.find_alias("challenger")
    assert challenger is not None
    assert challenger.number == 1
    challenger.set_alias("champion", {"champion", "challenger"})
    assert TINY.find_alias("challenger") is None
    assert TINY.version(1).aliases == ("champion",)
    assert resolve("models:/tiny@champion") == resolve("models:/tiny/1")


def test_version_tags_are_replaced(registered: Version) -> None:
    registered.set_tags({"test/top1": "0.75"})
    assert TINY.version(1).tags["test/top1"] == "0.75"


def test_mlflow_model_predicts_as_the_classifier(package: ModelPackage, registered: Version) -> None:
    """Loaded as an MLflow client does: schema, example, parameters and the packaged code."""
    from mme.evaluation.classifier import Classifier

    model = mlflow.pyfunc.load_model("models:/tiny/1")
    answer = model.predict(pd.DataFrame({"video": [str(package.example)]}), params={"top_k": 3})
    expected = Classifier.load(package.folder).classify(package.example, top_k=3).predictions
    assert answer["label"].tolist() == [expected[0].label]
    assert answer["labels"].tolist() == [[prediction.label for prediction in expected]]
    assert answer["probabilities"].tolist() == [[prediction.probability for prediction in expected]]
    example = model.metadata.load_input_example(mlflow.artifacts.download_artifacts("models:/tiny/1"))
    assert model.predict(example)["label"].tolist() == [expected[0].label]
    assert model.metadata.signature.inputs.input_names() == ["video"]
    with pytest.raises(mlflow.MlflowException, match="video"):
        model.predict(pd.DataFrame({"clip": ["x"]}))


def test_mlflow_model_is_self_contained(registered: Version) -> None:
    folder = Path(mlflow.artifacts.download_artifacts("models:/tiny/1"))
    assert (folder / "code" / "mme" / "evaluation" / "classifier.py").is_file()
    assert not list(folder.rglob("__pycache__"))
    pins = (folder / "requirements.txt").read_text().splitlines()
    names = {pin.partition("==")[0] for pin in pins}
    assert names == {"mlflow", *MODEL_LIBRARIES}
    assert all("==" in pin and "+" not in pin for pin in pins)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("models:/tiny", "is not of the form"),
        ("models:/tiny@a/b", "is not of the form"),
        ("models:/tiny/latest", "is not of the form"),
        ("models:/tiny/99", "99"),
        ("models:/tiny@nobody", "nobody"),
        ("models:/unknown@champion", "unknown"),
    ],
)
def test_resolve_error_contains_the_address(registered: Version, address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        resolve(address)
    assert address in str(caught.value)


def test_resolve_creates_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI is not set"):
        resolve("models:/tiny@champion")
    assert not list(tmp_path.iterdir())


def test_resolve_error_names_the_package_that_a_database_needs(
    registered: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mme.tracking.store.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tiny@champion: the store is a database \(sqlite\), .*pip install mlflow"):
        resolve("models:/tiny@champion")


def test_resolve_rejects_a_version_of_another_project(registered: Version) -> None:
    created = MlflowClient().create_model_version("tiny", source=TINY.version(1).address)
    with pytest.raises(ValueError, match=f"version {created.version} was not registered"):
        resolve(f"models:/tiny/{created.version}")
