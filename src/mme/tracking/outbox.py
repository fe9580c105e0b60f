"""What runs record, on its way to the store: sent at once, or kept on disk while the store is away and sent later."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mme.config.paths import project_folder
from mme.system.files import write_text
from mme.tracking.store import StoreError, asking, explained, shown_store

UNSENT_FOLDER = "mlflow-unsent"
"""In the project's folder: one folder per run with records that could not be sent."""

RECORDS_FILE, STORE_FILE = "records.jsonl", "store.txt"

PATIENCE = 10
"""A store that is away is asked so seldom that waiting for it takes at most one second of this many."""

REFUSALS = {"INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"}
"""Codes of errors that trying again does not mend: the run was deleted, or it cannot hold the record."""

Record = dict[str, Any]
"""JSON-able: ``kind``, and what `deliver` reads of that kind."""

_log = logging.getLogger(__name__)


class Outbox:
    """Records of one run. Losing the store loses no record and raises nothing. Safe to call from several threads."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.folder = project_folder() / UNSENT_FOLDER / run_id
        self._lock = threading.RLock()
        self._ask_next = 0.0

    def put(self, record: Record) -> None:
        """Send a record after those kept, or keep it."""
        with self._lock:
            if self.folder.exists() and time.monotonic() < self._ask_next:
                self._keep(record)
                return
            begin = time.monotonic()
            try:
                self.send()
                self._deliver(record, Path())
            except Exception as error:  # noqa: BLE001 - each kind of store and of artifact store has errors of its own
                self._ask_next = time.monotonic() + PATIENCE * max(1.0, time.monotonic() - begin)
                if not self.folder.exists():
                    reason = error if isinstance(error, StoreError) else explained(error)
                    _log.warning("%s; the run goes on, and what it records is kept in %s", reason, self.folder)
                self._keep(record)

    def send(self, timeout_s: float = -1) -> int:
        """Send what was kept and return the number of records.

        Args:
            timeout_s: how long to wait while another process sends it; negative for ever.

        Raises:
            Timeout: another process is sending it.
            Exception: the store is away; what it has not taken is kept.
        """
        with self._lock:
            if not self.folder.exists():
                return 0
            with FileLock(self.folder / "lock", timeout=timeout_s):
                return self._send_kept()

    def close(self, unsent: Record | None) -> None:
        """Keep a last record that could not be sent, or else send what was kept; say what the run lacks."""
        with self._lock:
            if unsent is not None:
                self._keep(unsent)
            else:
                with suppress(Exception):
                    self.send()
            if self.folder.exists():
                _log.warning(
                    "run %s is not complete at MLflow's %s: the rest is in %s, sent by the next run or by `mme send`",
                    *(self.run_id, shown_store(), self.folder),
                )

    def _send_kept(self) -> int:
        path = self.folder / RECORDS_FILE
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        for number, record in enumerate(records):
            try:
                self._deliver(record, self.folder)
            except BaseException:
                write_text(path, "".join(f"{json.dumps(rest)}\n" for rest in records[number:]))
                raise
        shutil.rmtree(self.folder)
        if records:
            _log.warning("run %s: %d records that were kept are sent to %s", self.run_id, len(records), shown_store())
        return len(records)

    def _deliver(self, record: Record, folder: Path) -> None:
        try:
            with asking():
                deliver(MlflowClient(), self.run_id, record, folder)
        except Exception as error:
            cause = error.__cause__
            if not isinstance(cause, MlflowException) or cause.error_code not in REFUSALS:
                raise
            _log.warning("run %s lacks %s: %s", self.run_id, _described(record), cause.message)

    def _keep(self, record: Record) -> None:
        """Keep a record on disk, and the files that it names, which may be replaced before they are sent."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "lock"):
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / STORE_FILE).write_text(shown_store(), encoding="utf-8")
                if record["kind"] == "artifact":
                    record = {**record, "path": self._copy(Path(record["path"]))}
                with (self.folder / RECORDS_FILE).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
        except OSError as error:
            _log.warning("run %s lacks %s: it can be neither sent nor kept: %s", self.run_id, _described(record), error)

    def _copy(self, path: Path) -> str:
        folder = Path("files", str(time.time_ns()))
        if path.is_dir():
            shutil.copytree(path, self.folder / folder / path.name)
        else:
            (self.folder / folder).mkdir(parents=True)
            shutil.copyfile(path, self.folder / folder / path.name)
        return str(folder / path.name)


def deliver(client: MlflowClient, run_id: str, record: Record, folder: Path) -> None:
    """Send a record to the store; files that it names are relative to ``folder``."""
    match record["kind"]:
        case "metrics":
            client.log_batch(run_id, metrics=[Metric(*entry) for entry in record["entries"]])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(name, value) for name, value in record["tags"].items()])
        case "artifact":
            path = folder / record["path"]
            (client.log_artifacts if path.is_dir() else client.log_artifact)(run_id, str(path), record["folder"])
        case "dataset":
            tags = [InputTag("mlflow.data.context", record["context"])]
            client.log_inputs(run_id, datasets=[DatasetInput(Dataset(**record["dataset"]), tags)])
        case "name":
            client.update_run(run_id, name=record["name"])
        case "end":
            client.set_terminated(run_id, record["status"], record["time_ms"])
        case kind:
            raise AssertionError(kind)


def send_unsent() -> int:
    """Send what runs of this project could not send to the current store, and return the number of records.

    What is meant for another store is left, and so is what another process is sending.

    Raises:
        StoreError: the store is away.
    """
    sent = 0
    for path in sorted((project_folder() / UNSENT_FOLDER).glob(f"*/{STORE_FILE}")):
        if path.read_text(encoding="utf-8") == shown_store():
            try:
                sent += Outbox(path.parent.name).send(timeout_s=0)
            except Timeout:
                continue
    return sent


def _described(record: Record) -> str:
    match record["kind"]:
        case "metrics":
            return f"metrics {', '.join(entry[0] for entry in record['entries'])}"
        case "artifact":
            return f"the file {Path(record['path']).name}"
        case kind:
            return f"its {kind}"
