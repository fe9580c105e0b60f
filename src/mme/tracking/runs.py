"""Record runs: parameters, metrics, artifacts, data and status of a stage."""

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

import mlflow
import yaml
from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

from mme.config import Params
from mme.config.names import flatten
from mme.system.files import write_text
from mme.tracking.outbox import Outbox, Record, send_unsent
from mme.tracking.store import StoreError, asking, experiment_id, open_store

MAX_PARAM_LENGTH = 6000
"""Longest parameter value that MLflow stores, in characters."""

PARAMS_FILE = "params.yaml"
"""Artifact of every run: its parameters as a file that a checkout of its commit reads."""

CHILD_WAIT_S = 600.0
"""How long a run below another, such as a sweep's trial, waits for a store that is away."""


class Run:
    """A run that is being recorded. Safe to call from several threads.

    A store that is away raises nothing here: records are kept and sent later, see `mme.tracking.outbox`.

    Attributes:
        id: MLflow's run id, by which the run can be resumed.
    """

    def __init__(self, run_id: str, params: Params) -> None:
        self.id = run_id
        self._params = params
        self._outbox = Outbox(run_id)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record metrics under names such as ``val/top1``; ``step`` is usually the epoch."""
        now_ms = time.time_ns() // 1_000_000
        entries = [[name, float(value), now_ms, step] for name, value in metrics.items()]
        self._outbox.put({"kind": "metrics", "entries": entries})

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Record a file, or all files of a folder, in ``folder`` of the run's artifacts."""
        self._outbox.put({"kind": "artifact", "path": str(path), "folder": folder})

    def log_dataset(self, manifest: Path, digest: str, context: str) -> None:
        """Record the data as the run's input.

        Args:
            manifest: manifest file; its counts of usable videos per split become the input's profile.
            digest: digest of the data, also recorded as the run's tag ``data_digest``.
            context: use of the data: ``training``, ``evaluation`` or the name of a split.
        """
        from mme.manifest import Manifest  # not at the top: a registered model is loaded without it

        rows = Manifest.load(manifest).rows
        splits = Counter(row.split for row in rows if row.status == "ok")
        ingest = self._params.datasets.get(manifest.parent.name, self._params.ingest)
        dataset = {
            "name": ingest.root.name or ingest.source,
            "digest": digest,
            "source_type": "local",
            "source": json.dumps({"uri": str(manifest)}),
            "profile": json.dumps({"num_rows": splits.total(), "quarantined": len(rows) - splits.total(), **splits}),
        }
        self._outbox.put({"kind": "dataset", "dataset": dataset, "context": context})
        self.set_tags({"data_digest": digest})

    def rename(self, name: str) -> None:
        """Replace the run's name, which is its stage by default."""
        self._outbox.put({"kind": "name", "name": name})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        self._outbox.put({"kind": "tags", "tags": dict(tags)})

    def end(self, status: int) -> None:
        """End MLflow's active run, which is this one, and send what could not be sent before."""
        unsent: Record | None = None
        try:
            with asking():
                mlflow.end_run(RunStatus.to_string(status))
        except StoreError:
            unsent = {"kind": "end", "status": RunStatus.to_string(status), "time_ms": time.time_ns() // 1_000_000}
        self._outbox.close(unsent)


class SystemMetrics(SystemMetricsMonitor):
    """MLflow's figures of the machine, recorded as all others are: MLflow's own thread ends when the store is away."""

    def __init__(self, run: Run, *, resumed: bool) -> None:
        super().__init__(run.id, resume_logging=resumed)
        self._run = run

    def monitor(self) -> None:
        """Collect and record until `finish` is called."""
        while True:
            for _ in range(self.samples_before_logging):
                self.collect_metrics()
                if self._shutdown_event.wait(self.sampling_interval):
                    return
            self.publish_metrics(self.aggregate_metrics())

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record the figures of an interval."""
        prefix = self._metrics_prefix + (f"{self.node_id}/" if self.node_id else "")
        self._run.log_metrics({f"{prefix}{name}": value for name, value in metrics.items()}, self._logging_step)
        self._logging_step += 1
        for monitor in self.monitors:
            monitor.clear_metrics()


def open_run(run_id: str, params: Params) -> Run:
    """Open an ended run to add to it; its status does not change.

    Raises:
        StoreError: the store does not answer.
    """
    open_store()
    send_unsent()
    return Run(run_id, params)


@contextmanager
def start_noted_run(
    stage: str, params: Params, note: Path, *, tags: Mapping[str, str] | None = None, parent_id: str | None = None
) -> Iterator[Run]:
    """Record the block as a run whose id is kept in the file ``note``; if that file exists, continue its run."""
    former = note.read_text(encoding="utf-8") if note.exists() else None
    with start_run(stage, params, tags=tags, parent_id=parent_id, resume_run_id=former) as run:
        write_text(note, run.id)
        yield run


@contextmanager
def start_run(
    stage: str,
    params: Params,
    *,
    tags: Mapping[str, str] | None = None,
    parent_id: str | None = None,
    resume_run_id: str | None = None,
    killed_by: tuple[type[Exception], ...] = (),
) -> Iterator[Run]:
    """Record the block as one run with system metrics.

    The run ends as ``FINISHED``; as ``KILLED`` on Ctrl-C or SIGTERM, which is raised in the block as
    ``KeyboardInterrupt``; as ``FAILED`` with the tag ``error`` on any other exception.

    Args:
        stage: name of the run and value of its tag ``stage``.
        params: recorded flattened, such as ``pretrain.mask_ratio``, and as the artifact ``params.yaml``; their digest
            is the tag ``params_digest``.
        tags: further tags.
        parent_id: run under which MLflow shows this one.
        resume_run_id: run to continue; if the tracking store does not know it, a new run is created. A continued run
            keeps its recorded parameters: unfinished work is resumed only if those of its own stage are unchanged.
        killed_by: exceptions that mean "stopped on purpose": the run ends as ``KILLED``, not as ``FAILED``.

    Raises:
        RuntimeError: another run is being recorded in this thread.
        StoreError: the store does not answer within seconds (for a run below another, which has come so far, within
            ``CHILD_WAIT_S``), refuses, or has no such experiment any more. Nothing of the block has run.
    """
    if mlflow.active_run() is not None:
        raise RuntimeError(f"cannot start the run {stage!r} inside another one")
    open_store(0.0 if parent_id is None else CHILD_WAIT_S)
    with asking():
        send_unsent()
        former = _former_run(resume_run_id)
        active = mlflow.start_run(
            run_id=None if former is None else resume_run_id,
            experiment_id=experiment_id(params.runtime.experiment),
            run_name=stage,
            tags={
                **_own_tags(stage, params, resumed=former is not None),
                **({} if parent_id is None else {"mlflow.parentRunId": parent_id}),
                **(tags or {}),
            },
            log_system_metrics=False,
        )
    run = Run(active.info.run_id, params)

    try:
        with _sigterm_as_interrupt():
            with asking():
                known = former.data.params if former else {}
                mlflow.log_params({name: value for name, value in flatten_params(params).items() if name not in known})
                if former is None:
                    mlflow.log_text(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False), PARAMS_FILE)
            machine = SystemMetrics(run, resumed=former is not None)
            machine.start()
            try:
                yield run
            finally:
                machine.finish()
    except BaseException as error:
        killed = isinstance(error, killed_by) or is_interrupt(error)
        if not killed:
            run.set_tags({"error": f"{type(error).__name__}: {error}"[:MAX_PARAM_LENGTH]})
        run.end(RunStatus.KILLED if killed else RunStatus.FAILED)
        raise
    run.end(RunStatus.FINISHED)


def flatten_params(params: Params) -> dict[str, str]:
    """Return all parameters as text by ``section.name``; lists as JSON."""
    flat = flatten(params.model_dump(mode="json"), depth=2)
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for name, value in flat.items()
    }
    return {name: text[:MAX_PARAM_LENGTH] for name, text in texts.items()}


def git_commit() -> str | None:
    """Return the checked-out commit, with ``-dirty`` if tracked files of the working folder differ from it.

    None outside a git checkout. ``dvc.lock``, which DVC rewrites while the pipeline runs, is ignored, and so is
    ``params.yaml``, which `dvc exp run -S` changes: every run has its parameters as an artifact. What lies beside the
    project in its repository does not count.
    """
    ignored = [f":(exclude){name}" for name in ("dvc.lock", PARAMS_FILE)]
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *ignored)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def repository_of(folder: Path) -> Path | None:
    """Return the root of the git repository that contains a folder; None if there is none."""
    try:
        return Path(_git("-C", str(folder), "rev-parse", "--show-toplevel"))
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    return answer.stdout.strip("\n")


def _own_tags(stage: str, params: Params, resumed: bool) -> dict[str, str]:
    """Return the tags of a new run; a resumed run keeps its tags and adds the commit that resumed it."""
    commit = git_commit()
    if resumed:
        return {"resumed_git_commit": commit} if commit else {}
    return {"stage": stage, "params_digest": params.digest(), **({"git_commit": commit} if commit else {})}


def _former_run(run_id: str | None) -> mlflow.entities.Run | None:
    """Return the run to continue, without its tag ``error``; None if it does not exist or was deleted."""
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
    """Return True if Ctrl-C or SIGTERM is the cause of an exception.

    Lightning turns it into a ``SystemExit``, and recording an interrupted run may raise another exception.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` on SIGTERM, in this process only: forked workers keep the default action."""
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
