"""Runs: what a stage did, with which parameters, on which data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import mlflow
import yaml
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mme.config import Params
from mme.tracking.store import experiment_id, open_store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PARAM_LENGTH = 6000
"""Characters that MLflow keeps of a parameter's value."""

PARAMS_FILE = "params.yaml"
"""The artifact of every run that holds its parameters as a file that a checkout of its commit takes."""

PARENT_TAG = "mlflow.parentRunId"
"""The tag by which MLflow shows a run under another one."""


class Run:
    """A run that is being recorded. Safe to call from several threads.

    Attributes:
        id: MLflow's id of the run, by which it can be resumed.
    """

    def __init__(self, run_id: str, params: Params) -> None:
        self.id = run_id
        self._params = params
        self._client = MlflowClient()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record figures under names such as ``val/top1``; ``step`` is what the names count in, usually epochs."""
        now_ms = time.time_ns() // 1_000_000
        entries = [Metric(name, float(value), now_ms, step) for name, value in metrics.items()]
        self._client.log_batch(self.id, metrics=entries)

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Record a file, or all files of a folder, under ``folder`` of the run's artifacts."""
        if Path(path).is_dir():
            self._client.log_artifacts(self.id, str(path), folder)
        else:
            self._client.log_artifact(self.id, str(path), folder)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Record a figure as the artifact ``name``, whose suffix tells the format."""
        self._client.log_figure(self.id, figure, name)

    def log_dataset(self, manifest: Path, digest: str, context: str) -> None:
        """Record the data as the run's input.

        Args:
            manifest: the manifest's file; counts of its usable videos by split become the input's profile.
            digest: of the data, also the run's tag ``data_digest``.
            context: what the run does with it: ``training``, ``evaluation`` or the name of a split.
        """
        from mme.manifest import Manifest  # answering a video from the registry needs no manifest

        rows = Manifest.load(manifest).rows
        splits = Counter(row.split for row in rows if row.status == "ok")
        ingest = self._params.datasets.get(manifest.parent.name, self._params.ingest)
        dataset = Dataset(
            name=ingest.root.name or ingest.source,
            digest=digest,
            source_type="local",
            source=json.dumps({"uri": str(manifest)}),
            profile=json.dumps({"num_rows": splits.total(), "quarantined": len(rows) - splits.total(), **splits}),
        )
        entry = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        self._client.log_inputs(self.id, datasets=[entry])
        self.set_tags({"data_digest": digest})

    def rename(self, name: str) -> None:
        """Give the run another name than its stage's."""
        self._client.update_run(self.id, name=name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        for name, value in tags.items():
            self._client.set_tag(self.id, name, value)


def attach(run_id: str, params: Params) -> Run:
    """A run that has ended, to add to it; its status stays."""
    open_store()
    return Run(run_id, params)


@contextmanager
def start_run(
    stage: str,
    params: Params,
    *,
    tags: Mapping[str, str] | None = None,
    resume_run_id: str | None = None,
    killed_by: tuple[type[Exception], ...] = (),
) -> Iterator[Run]:
    """Record what happens in the block as one run with system metrics.

    The run ends as ``FINISHED``, as ``KILLED`` on Ctrl-C or SIGTERM, which reaches the block as ``KeyboardInterrupt``,
    and as ``FAILED`` with the tag ``error`` on anything else.

    Args:
        stage: name of the run and its tag ``stage``.
        params: recorded flattened, such as ``pretrain.mask_ratio``, and as the artifact ``params.yaml``; their digest
            is the tag ``params_digest``.
        tags: further tags; ``PARENT_TAG`` names the run that this one is part of.
        killed_by: exceptions that mean that the run was given up, not that it failed: it ends as ``KILLED``.
        resume_run_id: continue this run; where the tracking store does not know it, a new run begins. Parameters stay
            as they were recorded: those that changed since are of other stages, or the run would not go on.

    Raises:
        RuntimeError: a run is being recorded in this thread already.
    """
    if mlflow.active_run() is not None:
        raise RuntimeError(f"cannot start the run {stage!r} inside another one")
    open_store()
    former = _former_run(resume_run_id)
    active = mlflow.start_run(
        run_id=None if former is None else resume_run_id,
        experiment_id=experiment_id(params.tracking.experiment),
        run_name=stage,
        tags={**_own_tags(stage, params, resumed=former is not None), **(tags or {})},
        log_system_metrics=True,
    )
    run = Run(active.info.run_id, params)
    try:
        with _sigterm_as_interrupt():
            known = former.data.params if former else {}
            mlflow.log_params({name: value for name, value in flatten(params).items() if name not in known})
            if former is None:
                mlflow.log_text(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False), PARAMS_FILE)
            yield run
    except BaseException as error:
        killed = isinstance(error, killed_by) or is_interrupt(error)
        if not killed:
            run.set_tags({"error": f"{type(error).__name__}: {error}"[:MAX_PARAM_LENGTH]})
        mlflow.end_run(RunStatus.to_string(RunStatus.KILLED if killed else RunStatus.FAILED))
        raise
    mlflow.end_run()


def flatten(params: Params) -> dict[str, str]:
    """All parameters as ``section.name`` and text; lists as JSON."""
    sections = params.model_dump(mode="json")
    return {
        f"{section}.{name}": (value if isinstance(value, str) else json.dumps(value))[:MAX_PARAM_LENGTH]
        for section, values in sections.items()
        for name, value in values.items()
    }


def git_commit() -> str | None:
    """The checked-out commit, with ``-dirty`` where tracked files differ from it; None outside a git checkout.

    ``dvc.lock`` does not count: DVC rewrites it while the pipeline runs.
    """

    def git(*arguments: str) -> str:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
        return answer.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)dvc.lock")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _own_tags(stage: str, params: Params, resumed: bool) -> dict[str, str]:
    """Tags of a new run; one that goes on keeps them, and says which code went on with it."""
    commit = git_commit()
    if resumed:
        return {"resumed_git_commit": commit} if commit else {}
    return {"stage": stage, "params_digest": params.digest(), **({"git_commit": commit} if commit else {})}


def _former_run(run_id: str | None) -> mlflow.entities.Run | None:
    """A run that can go on; None if there is none."""
    if run_id is None:
        return None
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    if run.info.lifecycle_stage != "active":
        return None
    if "error" in run.data.tags:
        MlflowClient().delete_tag(run_id, "error")
    return run


def is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C or SIGTERM is behind an exception.

    Lightning turns it into a ``SystemExit``; recording that a run was interrupted may fail with something else.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind the block as Ctrl-C does, in this process only: forked workers die of it as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if os.getpid() == owner:
            raise KeyboardInterrupt("SIGTERM")
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
