"""The current model: loaded, warmed up, and replaced when its folder or its alias changes."""

from __future__ import annotations

import logging
import shutil
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mme.config import ModelPrecision
from mme.evaluation.answers import Answers, load_answers
from mme.evaluation.classifier import Classifier
from mme.models.checkpoints import CONFIG_FILE, WEIGHTS_FILE
from serving.http.metrics import ModelSeries

log = logging.getLogger(__name__)

REGISTRY_PREFIX = "models:/"


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to answer."""

    classifier: Classifier
    address: str
    version: str | None
    loaded_at: datetime
    answers: Answers | None = None  # on the videos of the evaluation, if the folder has them

    @property
    def name(self) -> str:
        """The model's name."""
        return self.classifier.config.name

    @property
    def digest(self) -> str:
        """Digest of the model's content."""
        return self.classifier.digest

    @property
    def label(self) -> str:
        """Name and version, or digest, as in series of metrics."""
        return f"{self.name}/{self.version or self.digest}"


@dataclass(frozen=True)
class _Resolved:
    """Model folder that the address resolves to now; ``mark`` differs if that, or its content, has changed.

    A registered model also has its version and digest.
    """

    folder: Path
    mark: str
    version: str | None = None
    digest: str | None = None

    def load(self, precision: ModelPrecision) -> Classifier:
        """Load the model, and check it against the registered digest.

        A downloaded copy that is damaged is removed, so that the next poll downloads it again. Downloads lie in
        folders named by their digest; no other folder may be removed.
        """
        try:
            classifier = Classifier.load(self.folder, precision=precision)
            if self.digest not in (None, classifier.digest):
                detail = f"its digest is {classifier.digest}, registered is {self.digest}"
                raise ValueError(f"{self.folder}: {detail}")
        except ValueError:
            if self.digest is not None and self.folder.name == self.digest:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return classifier


class ModelReloader:
    """Hold the current model and poll for another in a thread.

    If a model cannot be found, loaded or warmed up, the current one stays in use and the next poll tries again.
    """

    def __init__(self, address: str, warm_up_clip: Path, series: ModelSeries, precision: ModelPrecision = "32") -> None:
        """Load nothing yet: ``start`` or ``refresh`` does.

        Args:
            address: a model folder, or ``models:/NAME@alias``.
            warm_up_clip: a video that every model has to classify before it answers requests.
            series: attempts to load, and the current model.
            precision: of the model.
        """
        self.current: LoadedModel | None = None
        self.last_error: str | None = None
        self.warm_up_clip = warm_up_clip
        self._address = address
        self._series = series
        self._precision: ModelPrecision = precision
        self._mark: str | None = None
        self._polled = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, poll_s: float) -> None:
        """Poll now and every ``poll_s`` in a daemon thread: a registry that hangs delays neither start nor shutdown."""
        self._thread = threading.Thread(target=self._poll, args=(poll_s,), name="model-poll", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        """Wait until the first poll is over, successful or not."""
        self._polled.wait(timeout_s)

    def close(self) -> None:
        """Stop polling."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def refresh(self) -> bool:
        """Poll once; return True if the model was replaced."""
        try:
            resolved = self._resolve()
            if resolved.mark == self._mark and self.last_error is None:
                return False
            replaced = self._load(resolved)
        except Exception as error:  # noqa: BLE001 - no failure of registry, network, disk or weights may end the polling
            text = f"{type(error).__name__}: {error}"
            self._series.loads.labels("failed").inc()
            if text != self.last_error:  # logged once, not at every poll
                log.error("model not loaded", extra={"address": self._address, "cause": text})
            self.last_error = text
            return False

        self._mark = resolved.mark
        self.last_error = None
        return replaced

    def _poll(self, poll_s: float) -> None:
        self.refresh()
        self._polled.set()
        while not self._stop.wait(poll_s):
            self.refresh()

    def _resolve(self) -> _Resolved:
        if self._address.startswith(REGISTRY_PREFIX):
            return _resolve_registered(self._address)
        folder = Path(self._address)
        stats = [(folder / name).stat() for name in (WEIGHTS_FILE, CONFIG_FILE)]
        return _Resolved(folder, repr([(stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats]))

    def _load(self, resolved: _Resolved) -> bool:
        classifier = resolved.load(self._precision)
        if self._resolve().mark != resolved.mark:
            raise ValueError(f"{self._address}: changed while it was being read")

        # A folder exported from the registry may record its version.
        recorded = classifier.config.provenance.get("version")
        version = resolved.version or (None if recorded is None else str(recorded))
        if self.current is not None and (self.current.digest, self.current.version) == (classifier.digest, version):
            return False

        classifier.classify(self.warm_up_clip)
        answers = load_answers(resolved.folder, classifier.labels)
        self._replace(LoadedModel(classifier, self._address, version, datetime.now(UTC), answers))
        return True

    def _replace(self, new: LoadedModel) -> None:
        old, self.current = self.current, new
        self._series.loads.labels("ok").inc()
        if old is not None:
            self._series.info.remove(old.name, old.version or "", old.digest)
        self._series.info.labels(new.name, new.version or "", new.digest).set(1)
        log.info("model loaded", extra={"model": new.name, "version": new.version, "digest": new.digest})


def _resolve_registered(address: str) -> _Resolved:
    from mme import tracking  # MLflow is needed for registered models only

    found = tracking.resolve_version(address)
    return _Resolved(tracking.resolve(found.address), found.address, str(found.number), found.tags["digest"])
