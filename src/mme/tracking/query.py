"""Runs that have been recorded, read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mme.tracking.versions import require_store


@dataclass(frozen=True)
class Recorded:
    """A recorded run.

    Attributes:
        id: MLflow's.
        stage: what ran.
        status: ``FINISHED``, ``FAILED``, ``KILLED`` or ``RUNNING``.
        git_commit: of the code, if it is known; it ends in ``-dirty`` where files differed from it.
        metrics: the last value of each.
    """

    id: str
    stage: str
    status: str
    git_commit: str | None
    metrics: Mapping[str, float]


def read_run(run_id: str | None = None, *, stage: str | None = None, store: str | None = None) -> Recorded:
    """A run by its id, or the last one of a stage.

    Args:
        run_id: MLflow's.
        stage: looked for if no id is given.
        store: address of another store than the one in use.

    Raises:
        ValueError: there is none.
    """
    if store is None:
        require_store(f"run {run_id}")
    client = MlflowClient(store)
    try:
        found = _last_run(client, str(stage)) if run_id is None else client.get_run(run_id)
    except MlflowException as error:
        raise ValueError(f"run {run_id}: {error.message}") from error
    tags = found.data.tags
    return Recorded(
        found.info.run_id, tags.get("stage", ""), found.info.status, tags.get("git_commit"), dict(found.data.metrics)
    )


def recorded_text(run_id: str, name: str) -> str:
    """A text among a run's artifacts.

    Raises:
        ValueError: there is none of this name.
    """
    try:
        return mlflow.artifacts.load_text(f"runs:/{run_id}/{name}")
    except (MlflowException, OSError) as error:
        raise ValueError(f"run {run_id}: has no {name}: {error}") from error


def _last_run(client: MlflowClient, stage: str) -> mlflow.entities.Run:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    order = ["attributes.start_time DESC"]
    found = client.search_runs(experiments, f"tags.stage = '{stage}'", order_by=order, max_results=1)
    if not found:
        raise ValueError(f"no run of stage {stage} was recorded")
    return found[0]
