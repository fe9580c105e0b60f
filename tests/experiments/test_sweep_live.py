"""Sweeps through the command line: killed processes, several workers, several hosts with one database."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
import psutil  # type: ignore[import-untyped]
import pytest
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from optuna.storages import RDBStorage

from mme.config import Params, load_params
from mme.experiments.sweep.points import best_point, measured_points, points_to_repeat, standard_error
from mme.experiments.sweep.study import REPEAT_OF, RUN_ID, SEED, WORKER, is_repeat, open_storage
from mme.experiments.sweep.trial import METRIC
from tests import servers
from tests.small_data import make_small_data, small_params

ROOT = Path(__file__).parents[2]
NUM_TRIALS = 5
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}
PATIENCE_S = 600.0
STARTED: list[subprocess.Popen[str]] = []
OPENED: list[RDBStorage] = []

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def params(runtime: dict[str, Any] | None = None, **sweep: Any) -> Params:
    return small_params(
        runtime=runtime or {},
        sweep={
            "trials": NUM_TRIALS, "startup_trials": 2, "num_clips": 8, "probe_epochs": 1,
            "prune_after_epochs": 1, "reduction_factor": 2, "repeat_best": 1, "repeat_seeds": 2,
            "fixed": {"pretrain.epochs": 4, "pretrain.warmup_epochs": 1},
            "first": ({"pretrain.mask_ratio": 0.7, "pretrain.length": 3},),
            "space": {
                "pretrain.mask_ratio": {"steps": (0.3, 0.9, 0.1)},
                "pretrain.length": {"steps": (1, 4, 1)},
            },
            **sweep,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos and trajectories, which no test changes."""
    folder = tmp_path_factory.mktemp("small") / "data"
    make_small_data(folder, params())
    return folder


def make_project(folder: Path, data: Path, runtime: dict[str, Any] | None = None, **sweep: Any) -> Path:
    """A folder in which `mme sweep` can run."""
    folder.mkdir(exist_ok=True)
    (folder / "data").symlink_to(data)
    write(folder, params(runtime, **sweep))
    return folder


@pytest.fixture
def project(data: Path, tmp_path: Path) -> Path:
    """A project without a study."""
    return make_project(tmp_path / "project", data)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after a whole sweep. Tests work on copies of it."""
    folder = make_project(tmp_path_factory.mktemp("finished"), data)
    finish(start(folder, "sweep", "--workers", "2"), folder)
    return folder


@pytest.fixture
def swept(finished: Path, tmp_path: Path) -> Path:
    """A copy of a project after a whole sweep."""
    return Path(shutil.copytree(finished, tmp_path / "project", symlinks=True))


def write(folder: Path, params: Params) -> None:
    text = yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False)
    (folder / "params.yaml").write_text(f"# a comment\n{text}", encoding="utf-8")


def start(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """Start the command ``mme``."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "mme.commands.app", *words],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def _end_processes() -> Iterator[None]:
    """End the processes of a failed test, and close databases."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()
    while OPENED:
        storage = OPENED.pop()
        storage.remove_session()
        storage.engine.dispose()  # otherwise the garbage collector closes its connections, with a warning


def finish(process: subprocess.Popen[str], folder: Path) -> str:
    output, _ = process.communicate(timeout=PATIENCE_S)
    logs = "".join(path.read_text(encoding="utf-8")[-3000:] for path in folder.glob(".work/sweep/*/*.log"))
    assert process.returncode == 0, output + logs
    return output


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the condition was not met"
        time.sleep(0.1)


def study(folder: Path) -> optuna.Study:
    """The study of the sweep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        storage = open_storage(load_params(folder / "params.yaml"))
        if isinstance(storage, RDBStorage):
            OPENED.append(storage)
        (name,) = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=name, storage=storage)


def runs(store: str) -> dict[str, list[Run]]:
    """Recorded runs by stage."""
    client = MlflowClient(store)
    found: dict[str, list[Run]] = {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            found.setdefault(run.data.tags["stage"], []).append(run)
    return found


def check_runs(found: dict[str, list[Run]], done: optuna.Study) -> None:
    """Check that there is one parent run, and one child run with the right status per counted trial."""
    (parent,) = found["sweep"]
    assert parent.info.status == "FINISHED"
    ended = ended_trials(done)
    assert len(ended) == NUM_TRIALS
    children = {child.info.run_id: child for child in found["sweep-trial"]}
    assert {trial.user_attrs[RUN_ID] for trial in ended} == set(children)
    for trial in ended:
        child = children[trial.user_attrs[RUN_ID]]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.status == STATUS[trial.state.name]
        assert child.data.metrics[METRIC] == trial.value
        assert float(child.data.params["pretrain.mask_ratio"]) == pytest.approx(trial.params["pretrain.mask_ratio"])
        assert child.data.params["pretrain.length"] == str(trial.params["pretrain.length"])
        assert child.data.params["pretrain.epochs"] == "4"


def ended_trials(done: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Finished and pruned trials, without repetitions."""
    return [trial for trial in done.get_trials() if trial.state.name in STATUS and not is_repeat(trial)]


def check_repeats(found: dict[str, list[Run]], done: optuna.Study, num_seeds: int) -> None:
    """Check that the best point and the median one were repeated, once with each seed."""
    expected = {
        (point.trial.number, seed)
        for point in points_to_repeat(measured_points(done), 1)
        for seed in range(1, 1 + num_seeds)
    }
    finished = [trial for trial in done.get_trials() if is_repeat(trial) and trial.state.name == "COMPLETE"]
    keys = [(trial.user_attrs[REPEAT_OF], trial.user_attrs[SEED]) for trial in finished]
    assert sorted(keys) == sorted(expected)
    repeats = {run.info.run_id: run for run in found["sweep-repeat"]}
    assert {trial.user_attrs[RUN_ID] for trial in finished} == set(repeats)
    for trial in finished:
        run = repeats[trial.user_attrs[RUN_ID]]
        assert run.info.status == "FINISHED"
        assert run.data.params["seed"] == str(trial.user_attrs[SEED])
        assert run.data.params["pretrain.length"] == str(trial.params["pretrain.length"])
        assert run.info.run_name == f"trial {trial.user_attrs[REPEAT_OF]:02d}, seed {trial.user_attrs[SEED]}"
        assert run.data.metrics[METRIC] == trial.value


def has_probed(folder: Path) -> bool:
    return (folder / "optuna.journal").exists() and any(
        trial.intermediate_values for trial in study(folder).get_trials()
    )


def retried(done: optuna.Study) -> set[int]:
    return {trial.system_attrs["failed_trial"] for trial in done.get_trials() if "failed_trial" in trial.system_attrs}


def test_killed_sweep_is_continued(project: Path) -> None:
    process = start(project, "sweep", "--workers", "2")
    wait_until(lambda: has_probed(project), process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
    assert not alive  # the workers end with their parent
    assert len(gone) >= 2
    unfinished = [trial for trial in study(project).get_trials() if trial.state.name in ("RUNNING", "FAIL")]
    assert unfinished

    finish(start(project, "sweep", "--workers", "2"), project)
    done = study(project)
    check_runs(runs(f"sqlite:///{project}/mlflow.db"), done)
    assert retried(done) == {trial.number for trial in unfinished}
    assert [path.name for path in project.glob(".work/sweep/*/*") if path.is_dir()] == []


def test_killed_worker_is_replaced_and_its_trial_run_again(data: Path, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", data, trials=2)
    process = start(project, "sweep", "--workers", "1")
    wait_until(lambda: has_probed(project), process)
    (running,) = [trial for trial in study(project).get_trials() if trial.state.name == "RUNNING"]
    psutil.Process(running.user_attrs[WORKER]["pid"]).kill()
    finish(process, project)
    done = study(project)
    assert retried(done) == {running.number}
    assert len(ended_trials(done)) == 2


def test_finished_sweep_runs_nothing_again(swept: Path) -> None:
    found = runs(f"sqlite:///{swept}/mlflow.db")
    check_runs(found, study(swept))
    check_repeats(found, study(swept), 2)
    before = len(study(swept).get_trials())
    finish(start(swept, "sweep", "--workers", "1"), swept)
    assert len(study(swept).get_trials()) == before


def test_finished_sweep_runs_additional_trials(swept: Path) -> None:
    write(swept, params(trials=NUM_TRIALS + 1))
    finish(start(swept, "sweep", "--workers", "1"), swept)
    assert len(ended_trials(study(swept))) == NUM_TRIALS + 1


def test_killed_repetitions_are_continued(swept: Path) -> None:
    write(swept, params(repeat_seeds=3))
    process = start(swept, "sweep", "--workers", "1")
    wait_until(lambda: any(trial.state.name == "RUNNING" for trial in study(swept).get_trials()), process)
    process.kill()
    process.wait()
    finish(start(swept, "sweep", "--workers", "1"), swept)
    found = runs(f"sqlite:///{swept}/mlflow.db")
    check_runs(found, study(swept))
    check_repeats(found, study(swept), 3)


def test_trial_is_repeated_with_a_further_seed_and_reported(swept: Path) -> None:
    point = best_point(measured_points(study(swept)))
    output = finish(start(swept, "sweep", "repeat", "--seeds", "3", "--workers", "1"), swept)
    assert ["seed 3" in line for line in output.splitlines() if line.startswith("trial")] == [True]
    repeated = next(each for each in measured_points(study(swept)) if each.trial.number == point.trial.number)
    assert set(repeated.repeats) == {1, 2, 3}

    store = f"sqlite:///{swept}/mlflow.db"
    finish(start(swept, "sweep", "report"), swept)
    folder = swept / "reports/sweep"
    text = (folder / "report.md").read_text(encoding="utf-8")
    points = measured_points(study(swept))
    best = best_point(points)
    error = standard_error(points, best)
    assert error is not None
    assert f"Best: trial {best.trial.number}, {METRIC} {100 * best.estimate:.1f} ± {100 * error:.1f} with" in text
    assert "median finished trial" in text
    for picture in ("history.png", "contour.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
        assert f"({picture})" in text
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["state"] in ("complete", "pruned") and not row["repeat_of"] for row in rows) == NUM_TRIALS
    assert {row["seed"] for row in rows} == {"", "1", "2", "3"}
    (parent,) = runs(store)["sweep"]
    listed = MlflowClient(store).list_artifacts(parent.info.run_id, "report")
    assert {"report/report.md", "report/history.png"} <= {entry.path for entry in listed}


def test_best_values_are_applied_and_the_study_is_still_found(swept: Path) -> None:
    before = (swept / "params.yaml").read_text(encoding="utf-8")
    best = best_point(measured_points(study(swept))).trial.params
    finish(start(swept, "sweep", "apply", "--dry-run"), swept)
    assert (swept / "params.yaml").read_text(encoding="utf-8") == before
    (pruned, *_) = [trial.number for trial in ended_trials(study(swept)) if trial.state.name == "PRUNED"]
    refused = start(swept, "sweep", "apply", "--trial", str(pruned))
    assert "is not finished" in refused.communicate(timeout=PATIENCE_S)[0]
    finish(start(swept, "sweep", "apply", "--force"), swept)
    pretrain = load_params(swept / "params.yaml").pretrain
    assert pretrain.mask_ratio == pytest.approx(best["pretrain.mask_ratio"])
    assert pretrain.length == best["pretrain.length"]
    assert (swept / "params.yaml").read_text(encoding="utf-8").startswith("# a comment\n")
    assert "already" in finish(start(swept, "sweep", "apply"), swept)


@servers.needs_postgres
def test_two_hosts_share_a_sweep_through_postgresql_mlflow_and_s3(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls of the command that share only the addresses of the stores."""
    with (
        servers.postgres(["optuna", "mlflow"]) as database,
        servers.s3(tmp_path / "s3.log", ["runs"]) as bucket,
        servers.mlflow(
            tmp_path / "mlflow.log", f"{database.address}/mlflow", "s3://runs/artifacts",
            {**servers.S3_CREDENTIALS, "MLFLOW_S3_ENDPOINT_URL": bucket.address},
        ) as recorder,
    ):  # fmt: skip
        place = urlsplit(database.address)
        address = f"postgresql://{place.username}@{place.hostname}:{place.port}/optuna"
        monkeypatch.setenv("PGPASSWORD", str(place.password))  # parameters hold no password
        folders = [tmp_path / name for name in ("one", "two")]
        for folder in folders:
            make_project(folder, data, {"sweep_storage": address})
        hosts = [start(folder, "sweep", "--workers", "1", MLFLOW_TRACKING_URI=recorder.address) for folder in folders]
        outputs = [finish(host, folder) for host, folder in zip(hosts, folders, strict=True)]
        assert all("best is trial" in output for output in outputs)
        done = study(folders[0])
        found = runs(recorder.address)
        check_runs(found, done)
        check_repeats(found, done, 2)
        client = MlflowClient(recorder.address)
        names = {entry.path for entry in client.list_artifacts(found["sweep-trial"][0].info.run_id)}
        assert "params.yaml" in names
