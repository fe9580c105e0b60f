"""Read recorded runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mme.tracking.outbox import REFUSALS
from mme.tracking.runs import PARAMS_FILE
from mme.tracking.store import StoreError, asking, require_store


@dataclass(frozen=True)
class RecordedRun:
    """A recorded run.

    Attributes:
        id: MLflow's run id.
        stage: stage that ran.
        status: ``FINISHED``, ``FAILED``, ``KILLED`` or ``RUNNING``.
        git_commit: commit of the code, if known; ends in ``-dirty`` if tracked files differed from it.
        metrics: last value of each metric.
    """

    id: str
    stage: str
    status: str
    git_commit: str | None
    metrics: Mapping[str, float]

    def read_params(self) -> str:
        """Return the text of the run's ``params.yaml``.

        Raises:
            ValueError: the run has no such artifact.
        """
        try:
            return mlflow.artifacts.load_text(f"runs:/{self.id}/{PARAMS_FILE}")
        except (MlflowException, OSError) as error:
            raise ValueError(f"run {self.id}: has no {PARAMS_FILE}: {error}") from error


def read_run(run_id: str | None = None, *, stage: str | None = None, store: str | None = None) -> RecordedRun:
    """Read a run by its id, or the last run of a stage.

    Args:
        run_id: MLflow's run id.
        stage: used if no id is given.
        store: address of another tracking store than the current one.

    Raises:
        ValueError: there is no such run.
        StoreError: the store does not answer.
    """
    if store is None:
        require_store(f"run {run_id}")
    client = MlflowClient(store)

    try:
        with asking():
            found = _last_run(client, str(stage)) if run_id is None else client.get_run(run_id)
    except StoreError as error:
        cause = error.__cause__
        if not isinstance(cause, MlflowException) or cause.error_code not in REFUSALS:
            raise
        raise ValueError(f"run {run_id}: {cause.message}") from error

    tags = found.data.tags
    return RecordedRun(
        id=found.info.run_id,
        stage=tags.get("stage", ""),
        status=found.info.status,
        git_commit=tags.get("git_commit"),
        metrics=dict(found.data.metrics),
    )


def _last_run(client: MlflowClient, stage: str) -> mlflow.entities.Run:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    order = ["attributes.start_time DESC"]
    found = client.search_runs(experiments, f"tags.stage = '{stage}'", order_by=order, max_results=1)
    if not found:
        raise ValueError(f"no run of stage {stage} was recorded")
    return found[0]
