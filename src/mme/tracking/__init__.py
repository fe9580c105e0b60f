"""Runs, the model registry and what both record: the only package that speaks to MLflow.

Runs go to ``mlflow.db`` and ``mlartifacts/`` in the working folder, where a bare ``mlflow ui`` looks for them, unless
``MLFLOW_TRACKING_URI`` names another place. One run a stage execution, all in one experiment; every run carries all
parameters, so that any two can be compared by any of them.
"""

from __future__ import annotations

import os

# Read by MLflow when it is imported: nothing phones home, and its first use of a database is no news.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

try:
    import mlflow as _mlflow  # noqa: F401 - asks for it by the name of our own extra, before anything else does
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("runs and registered models need MLflow: pip install 'mme[registry]'") from error

from mme.tracking.query import Recorded, read_run, recorded_text
from mme.tracking.runs import PARAMS_FILE, PARENT_TAG, Run, attach, flatten, git_commit, is_interrupt, start_run
from mme.tracking.store import store_kind
from mme.tracking.versions import (
    Package,
    Version,
    find_alias,
    find_version,
    get_version,
    list_versions,
    model_tags,
    register,
    registered_metrics,
    require_store,
    resolve,
    set_alias,
    tag_model,
    tag_version,
    untag_version,
)

__all__ = [
    "PARAMS_FILE",
    "PARENT_TAG",
    "Package",
    "Recorded",
    "Run",
    "Version",
    "attach",
    "find_alias",
    "find_version",
    "flatten",
    "get_version",
    "git_commit",
    "is_interrupt",
    "list_versions",
    "model_tags",
    "read_run",
    "recorded_text",
    "register",
    "registered_metrics",
    "require_store",
    "resolve",
    "set_alias",
    "start_run",
    "store_kind",
    "tag_model",
    "tag_version",
    "untag_version",
]
