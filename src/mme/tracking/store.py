"""MLflow tracking store: address, whether it answers, first-use locking, experiment."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES

from mme.config.paths import project_folder
from mme.system.files import atomic_path

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"

PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
CONNECT_TIMEOUT_S = 5.0

HASTE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""Settings under which MLflow gives up within seconds; its own are seven retries of two minutes each."""

ASK_AGAIN_S = 5.0

_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Make MLflow's page open on the table of runs, not on an empty table of language-model traces."""

_log = logging.getLogger(__name__)
_hasty = threading.RLock()


class StoreError(RuntimeError):
    """The tracking store does not answer or refuses; the message names it and says what to do."""


class StoreAwayError(StoreError):
    """The tracking store does not answer; it may do so later."""


def store_kind() -> str:
    """Return the scheme of the tracking store's address: ``sqlite``, ``postgresql``, ``https`` and so on."""
    return urlsplit(mlflow.get_tracking_uri()).scheme


def shown_store() -> str:
    """Return the address of the tracking store for people: of a database file its path, never a password."""
    address = mlflow.get_tracking_uri()
    if address.startswith("sqlite:///"):
        return os.path.abspath(unquote(address.removeprefix("sqlite:///")))
    return without_login(address)


def without_login(text: str) -> str:
    """Return a text with addresses in it, without their user names and passwords."""
    return re.sub(r"//[^/@\s]*@", "//", text)


@contextmanager
def asking() -> Iterator[None]:
    """Let requests to the store fail within seconds, as a `StoreError`.

    Settings ``MLFLOW_HTTP_REQUEST_*`` of the user's own hold. They are variables of the whole process, so that one
    thread asks at a time.

    Raises:
        StoreError: the store does not answer or refuses.
    """
    with _hasty:
        ours = {name: value for name, value in HASTE.items() if name not in os.environ}
        os.environ.update(ours)
        try:
            yield
        except (MlflowException, OSError) as error:
            raise explained(error) from error
        finally:
            for name in ours:
                os.environ.pop(name, None)


@contextmanager
def explaining() -> Iterator[None]:
    """Let errors of MLflow be a `StoreError`, with MLflow's own patience, which large files need.

    Raises:
        StoreError: the store does not answer or refuses.
    """
    try:
        yield
    except MlflowException as error:
        raise explained(error) from error


def explained(error: Exception) -> StoreError:
    """Return an error of MLflow in one line: which store, what happened, what to do."""
    text = without_login(" ".join(str(error).split()))
    if re.search(r"locked", text):
        reason, advice = "the database is locked", "end the process that holds it, then try again"
    elif re.search(r"read-?only|permission denied", text, re.IGNORECASE) and not is_server():
        reason, advice = "cannot be written", "give yourself the right to write it, its folder and its lock file"
    elif re.search(r"disk is full|no space left", text, re.IGNORECASE):
        reason, advice = "its disk is full", "make room, then try again"
    elif re.search(r"\b40[13]\b|PERMISSION_DENIED|UNAUTHENTICATED|[Pp]ermission denied", text):
        reason = "refuses this user"
        advice = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return StoreError(f"MLflow at {shown_store()} {reason} ({_brief(text)}): {advice}")
    else:
        reason = _reason(text)
        advice = "start it or correct MLFLOW_TRACKING_URI, then run the same command again"
        if not is_server():
            advice = "see whether the file is a database of this version of MLflow"
    return StoreAwayError(f"MLflow at {shown_store()}: {reason}: {advice}")


def _reason(text: str) -> str:
    """Return what a long message of MLflow and its libraries comes to."""
    known = {
        r"timed out|Timeout": "does not answer in time",
        r"refused": "refuses connections",
        r"resolve|Name or service|getaddrinfo": "its host is unknown",
        r"\b(5\d\d) (error|Server)": "answers with an error of its own",
    }
    return next((reason for pattern, reason in known.items() if re.search(pattern, text)), _brief(text))


def _brief(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def is_server() -> bool:
    """Return True if the store is a server, False if it is a file."""
    return not mlflow.get_tracking_uri().startswith(("sqlite:", "file:", "/"))


def open_store(wait_s: float = 0.0) -> None:
    """Name the project's own store to MLflow, unless the user named another, and see that it answers.

    The tables of a local database are created or migrated under a file lock: MLflow's own does not stop two processes
    from creating them at the same time.

    Args:
        wait_s: how long to wait for a store that is away.

    Raises:
        StoreError: the store does not answer, or refuses.
    """
    _name_own_store()
    deadline, said = time.monotonic() + wait_s, False
    while True:
        try:
            _ask()
        except StoreAwayError as error:
            if time.monotonic() >= deadline:
                raise
            if not said:
                _log.warning("%s; waiting up to %.0f minutes", error, wait_s / 60)
            said = True
            time.sleep(ASK_AGAIN_S)
        else:
            return


def _name_own_store() -> None:
    """Name the store where MLflow by itself would not find it.

    In a copy that DVC made of the project; and in a folder with blanks or accents in its name, beside which MLflow
    makes an empty folder with the quoted name.
    """
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return
    database = project_folder() / DATABASE
    if database.parent != Path.cwd() or re.search(r"[^\w/.-]", str(database), re.ASCII):
        mlflow.set_tracking_uri(database_address(database.parent))


def database_address(folder: Path) -> str:
    """Return MLflow's address of the database of a project's folder."""
    return _address(folder / DATABASE)


def _address(database: Path) -> str:
    # MLflow makes the folders of an address as it is written: an empty `a%3Fb` beside `a?b`.
    path = os.path.relpath(database) if "?" in str(database) else str(database)
    return "sqlite:///" + path.replace("?", "%3F")


def _ask() -> None:
    address = mlflow.get_tracking_uri()
    parts = urlsplit(address)
    with asking():
        if address.startswith("sqlite:///"):
            database = Path(unquote(address.removeprefix("sqlite:///").partition("?")[0]))
            if not database.exists() and {"'", '"'} <= set(str(Path.cwd())):
                raise StoreError(
                    f"{Path.cwd()}: MLflow makes no database in a folder with both kinds of quotes in its name: rename"
                    " the folder, or set MLFLOW_TRACKING_URI to a server"
                )
            _open_database(database)
        elif parts.hostname and parts.scheme not in {"http", "https"}:
            # MLflow tries a database for two minutes.
            port = parts.port or PORTS.get(parts.scheme.partition("+")[0], 0)
            socket.create_connection((parts.hostname, port), CONNECT_TIMEOUT_S).close()
        else:
            mlflow.search_experiments(max_results=1)


def _open_database(path: Path) -> None:
    """Create or migrate a local database; one whose creation is cut off, which MLflow could never open, is not left."""
    from sqlalchemy.exc import SQLAlchemyError  # mlflow-skinny, which opens no database, has none

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{path}.lock"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unnamed CHECK constraint", UserWarning)  # from alembic, about SQLite
            if not path.exists():
                with atomic_path(path) as temporary:
                    _create_tables(temporary)
            mlflow.search_experiments(max_results=1)
    except SQLAlchemyError as error:
        raise explained(error) from error


def _create_tables(path: Path) -> None:
    from mlflow.store.db import utils

    untyped: Any = utils
    engine = untyped.create_sqlalchemy_engine_with_retry(_address(path))
    try:
        untyped._initialize_tables(engine)  # noqa: SLF001 - the store itself calls it, on the address that it will have
    finally:
        engine.dispose()


def require_store(purpose: str) -> None:
    """Open an existing store; create none.

    Args:
        purpose: start of the error message, such as a model's address.

    Raises:
        ValueError: the project's folder has no store and ``MLFLOW_TRACKING_URI`` is not set; or the store is a database
            and only mlflow-skinny is installed.
        StoreError: the store is a database and does not answer.
    """
    folder = project_folder()
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (folder / DATABASE).is_file():
        raise ValueError(f"{purpose}: no {DATABASE} in {folder} and MLFLOW_TRACKING_URI is not set")
    kind = store_kind()
    if kind.partition("+")[0] in DATABASE_ENGINES and find_spec("sqlalchemy") is None:
        raise ValueError(
            f"{purpose}: the store is a database ({kind}), which mlflow-skinny does not open: pip install mlflow, or"
            " name a tracking server by its http address in MLFLOW_TRACKING_URI"
        )
    if kind not in {"http", "https"}:  # who may read one model only may not be allowed to list experiments
        open_store()


def experiment_id(name: str) -> str:
    """Return the id of an experiment; create the experiment if it does not exist.

    Raises:
        StoreError: the experiment was deleted.
    """
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        local = mlflow.get_tracking_uri().startswith("sqlite:")
        location = _artifact_folder(name) if local else None
        try:
            return str(mlflow.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # created by another process in the meantime
                raise
            found = mlflow.get_experiment_by_name(name)
    assert found is not None
    if found.lifecycle_stage != "active":
        raise StoreError(
            f"experiment {name!r} of MLflow at {shown_store()} is deleted: `mlflow experiments restore -x"
            f" {found.experiment_id}` brings it back with its runs; or name another one in runtime.experiment"
        )
    return str(found.experiment_id)


def _artifact_folder(experiment: str) -> str:
    folder = project_folder() / ARTIFACTS / experiment
    if re.search(r"%[0-9A-Fa-f]{2}", str(folder)):
        raise StoreError(
            f"{folder.parent}: MLflow finds no files below a folder with a percent sign and two digits in its name:"
            " rename the folder, or set MLFLOW_TRACKING_URI to a server"
        )
    return folder.as_uri()
