"""The model that answers: loaded, warmed, and swapped when its folder or its alias changes."""

from __future__ import annotations

import logging
import shutil
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mme.evaluation.classifier import Classifier
from mme.models.checkpoints import CONFIG_FILE, WEIGHTS_FILE
from serving.http.metrics import Metrics

log = logging.getLogger(__name__)

REGISTRY_PREFIX = "models:/"


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to answer."""

    classifier: Classifier
    address: str
    version: str | None
    loaded_at: datetime

    @property
    def name(self) -> str:
        """The model's name."""
        return self.classifier.config.name

    @property
    def digest(self) -> str:
        """Names its content."""
        return self.classifier.digest


@dataclass(frozen=True)
class _Found:
    """What the address means now; ``mark`` changes when that does."""

    folder: Path
    mark: str
    version: str | None = None
    digest: str | None = None

    def discard_damaged_copy(self) -> None:
        """Remove a downloaded copy that cannot be right, so that the next look downloads it again.

        Downloads are kept in folders named by their digest; no other folder is ours to remove.
        """
        if self.digest is not None and self.folder.name == self.digest:
            shutil.rmtree(self.folder, ignore_errors=True)


class ModelHost:
    """Holds the current model and looks for another in a thread of its own.

    A model that cannot be found, loaded or warmed changes nothing: the last good one goes on answering, and the next
    look tries again.
    """

    def __init__(self, address: str, warm_clip: Path, metrics: Metrics) -> None:
        """Nothing is loaded before ``start`` or ``refresh``.

        Args:
            address: a model folder, or ``models:/NAME@alias``.
            warm_clip: a video that every model has to answer before it is let in.
            metrics: where loads are counted.
        """
        self.current: LoadedModel | None = None
        self.last_error: str | None = None
        self.warm_clip = warm_clip
        self._address, self._metrics = address, metrics
        self._mark: str | None = None
        self._looked, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, poll_s: float) -> None:
        """Look now and every so often, in a daemon thread: a registry that hangs delays neither start nor shutdown."""
        self._thread = threading.Thread(target=self._poll, args=(poll_s,), name="model-poll", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        """Wait until the first look is over, whatever came of it."""
        self._looked.wait(timeout_s)

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def refresh(self) -> bool:
        """Look once; True if another model answers from now on."""
        try:
            found = self._find()
            if found.mark == self._mark and self.last_error is None:
                return False
            swapped = self._load(found)
        except Exception as error:  # noqa: BLE001 - registry, network, disk, weights: none of it may end the polling
            self._note_failure(error)
            return False
        self._mark, self.last_error = found.mark, None
        return swapped

    def _poll(self, poll_s: float) -> None:
        self.refresh()
        self._looked.set()
        while not self._stop.wait(poll_s):
            self.refresh()

    def _find(self) -> _Found:
        if self._address.startswith(REGISTRY_PREFIX):
            return _find_registered(self._address)
        folder = Path(self._address)
        stats = [(folder / name).stat() for name in (WEIGHTS_FILE, CONFIG_FILE)]
        return _Found(folder, repr([(stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats]))

    def _load(self, found: _Found) -> bool:
        try:
            classifier = _load_registered(found) if found.digest else Classifier.load(found.folder)
        except ValueError:
            found.discard_damaged_copy()
            raise
        if self._find().mark != found.mark:
            raise ValueError(f"{self._address}: changed while it was being read")
        version = found.version or _recorded_version(classifier)
        if self.current is not None and (self.current.digest, self.current.version) == (classifier.digest, version):
            return False
        classifier.classify(self.warm_clip)
        self._swap(LoadedModel(classifier, self._address, version, datetime.now(UTC)))
        return True

    def _swap(self, new: LoadedModel) -> None:
        old, self.current = self.current, new
        self._metrics.model_loads.labels("ok").inc()
        if old is not None:
            self._metrics.model_info.remove(old.name, old.version or "", old.digest)
        self._metrics.model_info.labels(new.name, new.version or "", new.digest).set(1)
        log.info("model loaded", extra={"model": new.name, "version": new.version, "digest": new.digest})

    def _note_failure(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self._metrics.model_loads.labels("failed").inc()
        if text != self.last_error:  # once, not at every look
            log.error("model not loaded", extra={"address": self._address, "cause": text})
        self.last_error = text


def _find_registered(address: str) -> _Found:
    from mme import tracking  # MLflow is needed for registered models only

    found = tracking.resolve_version(address)
    return _Found(tracking.resolve(found.address), found.address, str(found.number), found.tags["digest"])


def _load_registered(found: _Found) -> Classifier:
    classifier = Classifier.load(found.folder)
    if classifier.digest != found.digest:
        raise ValueError(f"{found.folder}: its digest is {classifier.digest}, registered is {found.digest}")
    return classifier


def _recorded_version(classifier: Classifier) -> str | None:
    """A folder that came out of the registry may say which version it is."""
    version = classifier.config.provenance.get("version")
    return None if version is None else str(version)
