"""The place that holds runs and versions."""

from __future__ import annotations

import warnings
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"


def store_kind() -> str:
    """What keeps the runs: ``sqlite``, ``postgresql``, ``https`` and so on."""
    return urlsplit(mlflow.get_tracking_uri()).scheme


def open_store() -> None:
    """Let one process at a time make or migrate the tables of a local database: MLflow's own lock does not hold."""
    address = mlflow.get_tracking_uri()
    if not address.startswith("sqlite:///"):
        return
    database = Path(unquote(address.removeprefix("sqlite:///")))
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unnamed CHECK constraint", UserWarning)  # of alembic, about SQLite
        mlflow.search_experiments(max_results=1)


# Without it MLflow's page takes an experiment for one of language models and opens on an empty table of traces.
_OPENS_ON_RUNS = {"mlflow.experimentKind": "custom_model_development"}


def experiment_id(name: str) -> str:
    """The id of an experiment, which is made if need be."""
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        local = mlflow.get_tracking_uri().startswith("sqlite:")
        location = (Path(ARTIFACTS).resolve() / name).as_uri() if local else None
        try:
            return str(mlflow.create_experiment(name, artifact_location=location, tags=_OPENS_ON_RUNS))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another stage may have made it just now
                raise
            found = mlflow.get_experiment_by_name(name)
    assert found is not None
    return str(found.experiment_id)
