"""MLflow: runs, and versions of registered models. No other package imports mlflow.

Runs are stored in ``mlflow.db`` and ``mlartifacts/`` in the working folder, where a bare ``mlflow ui`` finds them,
unless ``MLFLOW_TRACKING_URI`` names another store. One run per stage execution, all in one experiment. Every run
records all parameters, so that any two runs can be compared by any of them.
"""

from __future__ import annotations

import logging
import os

# Must be set before MLflow is imported: disables telemetry and silences its migration log.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

try:
    import mlflow as _mlflow  # noqa: F401 - first, so that the error names the extra that installs it
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("runs and registered models need MLflow: pip install 'mme[registry]'") from error

from mme.tracking.outbox import send_unsent
from mme.tracking.query import RecordedRun, read_run
from mme.tracking.runs import Run, git_commit, is_interrupt, open_run, start_noted_run, start_run
from mme.tracking.store import (
    StoreAwayError,
    StoreError,
    asking,
    explaining,
    open_store,
    require_store,
    shown_store,
    store_kind,
)
from mme.tracking.versions import ModelPackage, RegisteredModel, Version, resolve, resolve_version

# It prints the whole trace of a database error that is raised and reported in one line all the same.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

__all__ = [
    "ModelPackage",
    "RecordedRun",
    "RegisteredModel",
    "Run",
    "StoreAwayError",
    "StoreError",
    "Version",
    "asking",
    "explaining",
    "git_commit",
    "is_interrupt",
    "open_run",
    "open_store",
    "read_run",
    "require_store",
    "resolve",
    "resolve_version",
    "send_unsent",
    "shown_store",
    "start_noted_run",
    "start_run",
    "store_kind",
]
