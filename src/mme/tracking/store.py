"""MLflow tracking store: address, first-use locking, experiment."""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"

_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Make MLflow's page open on the table of runs, not on an empty table of language-model traces."""


def store_kind() -> str:
    """Return the scheme of the tracking store's address: ``sqlite``, ``postgresql``, ``https`` and so on."""
    return urlsplit(mlflow.get_tracking_uri()).scheme


def open_store() -> None:
    """Create or migrate the tables of a local database under a file lock.

    MLflow's own lock does not stop two processes from creating the tables at the same time.
    """
    address = mlflow.get_tracking_uri()
    if not address.startswith("sqlite:///"):
        return
    database = Path(unquote(address.removeprefix("sqlite:///")))
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unnamed CHECK constraint", UserWarning)  # from alembic, about SQLite
        mlflow.search_experiments(max_results=1)


def require_store(purpose: str) -> None:
    """Open an existing store; create none.

    Args:
        purpose: start of the error message, such as a model's address.

    Raises:
        ValueError: the working folder has no store and ``MLFLOW_TRACKING_URI`` is not set; or the store is a database
            and only mlflow-skinny is installed.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI") and not Path(DATABASE).is_file():
        raise ValueError(f"{purpose}: no {DATABASE} in {Path.cwd()} and MLFLOW_TRACKING_URI is not set")
    kind = store_kind()
    if kind.partition("+")[0] in DATABASE_ENGINES and find_spec("sqlalchemy") is None:
        raise ValueError(
            f"{purpose}: the store is a database ({kind}), which mlflow-skinny does not open: pip install mlflow, or"
            " name a tracking server by its http address in MLFLOW_TRACKING_URI"
        )
    open_store()


def experiment_id(name: str) -> str:
    """Return the id of an experiment; create the experiment if it does not exist."""
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        local = mlflow.get_tracking_uri().startswith("sqlite:")
        location = (Path(ARTIFACTS).resolve() / name).as_uri() if local else None
        try:
            return str(mlflow.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # created by another process in the meantime
                raise
            found = mlflow.get_experiment_by_name(name)
    assert found is not None
    return str(found.experiment_id)
