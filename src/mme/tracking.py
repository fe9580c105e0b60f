"""Runs, the model registry and what both record: the only module that speaks to MLflow.

Runs go to ``mlflow.db`` and ``mlartifacts/`` in the working folder, where a bare ``mlflow ui`` looks for them, unless
``MLFLOW_TRACKING_URI`` names another place. One run a stage execution, all in one experiment; every run carries all
parameters, so that any two can be compared by any of them.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

# Read by MLflow when it is imported: nothing phones home, and its first use of a database is no news.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

try:
    import mlflow
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("runs and registered models need MLflow: pip install 'mme[registry]'") from error

from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mme.config import Params
from mme.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
MAX_PARAM_LENGTH = 6000
"""Characters that MLflow keeps of a parameter's value."""

MODEL_LIBRARIES = (
    "av", "decord2", "jaxtyping", "numpy", "opencv-python-headless", "pandas", "pydantic", "pyyaml", "rich",
    "safetensors", "timm", "torch", "torchvision",
)  # fmt: skip
"""What a registered model needs to answer; pinned with it at the versions that made it."""

_SIGNATURE = {
    "inputs": json.dumps([{"name": "video", "type": "string", "required": True}]),
    "outputs": json.dumps(
        [
            {"name": "label", "type": "string", "required": True},
            {"name": "probability", "type": "double", "required": True},
            {"name": "labels", "type": "array", "items": {"type": "string"}, "required": True},
            {"name": "probabilities", "type": "array", "items": {"type": "double"}, "required": True},
        ]
    ),
    "params": json.dumps([{"name": "top_k", "type": "long", "default": 5, "shape": None}]),
}

_ADDRESS = re.compile(r"models:/(?P<name>[^/@:]+)(@(?P<alias>[^/@:]+)|/(?P<version>[0-9]+))")


class Run:
    """A run that is being recorded. Safe to call from several threads.

    Attributes:
        id: MLflow's id of the run, by which it can be resumed.
    """

    def __init__(self, run_id: str, params: Params) -> None:
        self.id = run_id
        self._params = params
        self._client = MlflowClient()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record figures under names such as ``val/top1``; ``step`` is what the names count in, usually epochs."""
        now_ms = time.time_ns() // 1_000_000
        entries = [Metric(name, float(value), now_ms, step) for name, value in metrics.items()]
        self._client.log_batch(self.id, metrics=entries)

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Record a file, or all files of a folder, under ``folder`` of the run's artifacts."""
        if Path(path).is_dir():
            self._client.log_artifacts(self.id, str(path), folder)
        else:
            self._client.log_artifact(self.id, str(path), folder)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Record a figure as the artifact ``name``, whose suffix tells the format."""
        self._client.log_figure(self.id, figure, name)

    def log_dataset(self, manifest: Path, digest: str, context: str) -> None:
        """Record the data as the run's input.

        Args:
            manifest: the manifest's file; counts of its usable videos by split become the input's profile.
            digest: of the data, also the run's tag ``data_digest``.
            context: what the run does with it: ``training``, ``evaluation`` or the name of a split.
        """
        from mme.data.manifest import Manifest  # answering a video from the registry needs no manifest

        rows = Manifest.load(manifest).rows
        splits = Counter(row.split for row in rows if row.status == "ok")
        dataset = Dataset(
            name=self._params.ingest.root.name or self._params.ingest.source,
            digest=digest,
            source_type="local",
            source=json.dumps({"uri": str(manifest)}),
            profile=json.dumps({"num_rows": splits.total(), "quarantined": len(rows) - splits.total(), **splits}),
        )
        entry = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        self._client.log_inputs(self.id, datasets=[entry])
        self.set_tags({"data_digest": digest})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        for name, value in tags.items():
            self._client.set_tag(self.id, name, value)


@contextmanager
def start_run(
    stage: str, params: Params, *, tags: Mapping[str, str] | None = None, resume_run_id: str | None = None
) -> Iterator[Run]:
    """Record what happens in the block as one run with system metrics.

    The run ends as ``FINISHED``, as ``KILLED`` on Ctrl-C or SIGTERM, which reaches the block as ``KeyboardInterrupt``,
    and as ``FAILED`` with the tag ``error`` on anything else.

    Args:
        stage: name of the run and its tag ``stage``.
        params: recorded flattened, such as ``pretrain.mask_ratio``; their digest is the tag ``params_digest``.
        tags: further tags.
        resume_run_id: continue this run; where the tracking store does not know it, a new run begins.

    Raises:
        RuntimeError: a run is being recorded in this thread already.
    """
    if mlflow.active_run() is not None:
        raise RuntimeError(f"cannot start the run {stage!r} inside another one")
    _open_store()
    commit = git_commit()
    active = mlflow.start_run(
        run_id=resume_run_id if resume_run_id and _run_exists(resume_run_id) else None,
        experiment_id=_experiment_id(params.tracking.experiment),
        run_name=stage,
        tags={
            "stage": stage,
            "params_digest": params.digest(),
            **({"git_commit": commit} if commit else {}),
            **(tags or {}),
        },
        log_system_metrics=True,
    )
    run = Run(active.info.run_id, params)
    try:
        with _sigterm_as_interrupt():
            mlflow.log_params(flatten(params))
            yield run
    except BaseException as error:
        killed = _is_interrupt(error)
        if not killed:
            run.set_tags({"error": f"{type(error).__name__}: {error}"[:MAX_PARAM_LENGTH]})
        mlflow.end_run(RunStatus.to_string(RunStatus.KILLED if killed else RunStatus.FAILED))
        raise
    mlflow.end_run()


def flatten(params: Params) -> dict[str, str]:
    """All parameters as ``section.name`` and text; lists as JSON."""
    sections = params.model_dump(mode="json")
    return {
        f"{section}.{name}": (value if isinstance(value, str) else json.dumps(value))[:MAX_PARAM_LENGTH]
        for section, values in sections.items()
        for name, value in values.items()
    }


def git_commit() -> str | None:
    """The checked-out commit, with ``-dirty`` where tracked files differ from it; None outside a git checkout.

    ``dvc.lock`` does not count: DVC rewrites it while the pipeline runs.
    """

    def git(*arguments: str) -> str:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
        return answer.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)dvc.lock")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: the registered model.
        number: counts from 1.
        tags: what was recorded with it, such as ``digest``, ``data_digest`` and metrics by name.
        aliases: names that point to it now.
    """

    name: str
    number: int
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def address(self) -> str:
        """What ``resolve`` and MLflow take."""
        return f"models:/{self.name}/{self.number}"


@dataclass(frozen=True)
class Package:
    """What is registered.

    Attributes:
        folder: model folder with its model card ``README.md``.
        example: a video file, kept as the model's input example.
        description: one paragraph for the registry's page.
        tags: recorded with the version; ``digest`` identifies it.
    """

    folder: Path
    example: Path
    description: str
    tags: Mapping[str, str]


def find_version(name: str, digest: str) -> Version | None:
    """The newest version whose tag ``digest`` is ``digest``."""
    for found in MlflowClient().search_model_versions(f"name='{name}'", order_by=["version_number DESC"]):
        if found.tags.get("digest") == digest:
            return get_version(name, int(found.version))
    return None


def find_alias(name: str, alias: str) -> Version | None:
    """The version that ``alias`` points to."""
    try:
        number = MlflowClient().get_registered_model(name).aliases.get(alias)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return None if number is None else get_version(name, int(number))


def get_version(name: str, number: int) -> Version:
    """A version by its number.

    Raises:
        MlflowException: there is none.
    """
    found = MlflowClient().get_model_version(name, str(number))
    return Version(name, int(found.version), dict(found.tags), tuple(sorted(found.aliases)))


def register(name: str, package: Package) -> Version:
    """Log a model folder as an MLflow model of the active run and add it to the registry as a new version.

    The MLflow model holds the package's code, so that ``mlflow models`` can run it where mme is not installed.
    """
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import log_model

    code = Path(__file__).parent
    info = log_model(
        name="classifier",
        python_model=str(code / "pyfunc_model.py"),
        artifacts={"folder": str(package.folder)},
        code_paths=[str(code)],
        signature=ModelSignature.from_dict(_SIGNATURE),
        input_example=[{"video": data_uri(package.example)}],
        pip_requirements=[f"{library}=={metadata.version(library).partition('+')[0]}" for library in MODEL_LIBRARIES],
    )
    tags = {**package.tags, "folder": f"artifacts/{package.folder.name}"}
    created = mlflow.register_model(info.model_uri, name, tags=tags)
    MlflowClient().update_model_version(name, created.version, package.description)
    return get_version(name, int(created.version))


def tag_version(version: Version, tags: Mapping[str, str]) -> None:
    """Set or replace tags of a version."""
    for key, value in tags.items():
        MlflowClient().set_model_version_tag(version.name, str(version.number), key, value)


def set_alias(version: Version, alias: str | None, among: Iterable[str]) -> None:
    """Let ``alias`` point to the version, and no other of ``among``."""
    client = MlflowClient()
    if alias is not None:
        client.set_registered_model_alias(version.name, alias, str(version.number))
    for other in set(among) & set(version.aliases) - {alias}:
        client.delete_registered_model_alias(version.name, other)


def resolve(address: str) -> Path:
    """The model folder behind ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    A folder in a local artifact store is used where it lies; from a tracking server it is downloaded once, to the
    user's cache folder, under its content digest.

    Raises:
        ValueError: the address is malformed, there is no tracking store, or it holds no such version of ours.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(f"{address}: is not of the form models:/NAME@ALIAS or models:/NAME/VERSION")
    if not os.environ.get("MLFLOW_TRACKING_URI") and not Path(DATABASE).is_file():
        raise ValueError(f"{address}: no {DATABASE} in {Path.cwd()} and MLFLOW_TRACKING_URI is not set")
    _open_store()
    client = MlflowClient()
    name, alias = match["name"], match["alias"]
    try:
        found = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, match["version"])
        )
        source = client.get_model_version_download_uri(name, found.version)
    except MlflowException as error:
        raise ValueError(f"{address}: {error.message}") from error
    if "folder" not in found.tags or "digest" not in found.tags:
        raise ValueError(f"{address}: version {found.version} was not registered by this project's register stage")
    part = f"{source}/{found.tags['folder']}"
    if urlsplit(source).scheme in ("", "file"):
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=part))
    return _download(part, found.tags["digest"])


def _download(address: str, digest: str) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mme" / digest
    if not folder.is_dir():
        with atomic_path(folder) as temporary, tempfile.TemporaryDirectory() as scratch:
            shutil.move(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=scratch), temporary)
    return folder


def data_uri(video: Path) -> str:
    """A video file as a ``data:`` address: what stands for a file in requests to the MLflow model."""
    return f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode()}"


def _open_store() -> None:
    """Let one process at a time make or migrate the tables of a local database: MLflow's own lock does not hold."""
    address = mlflow.get_tracking_uri()
    if not address.startswith("sqlite:///"):
        return
    database = Path(unquote(address.removeprefix("sqlite:///")))
    with FileLock(f"{database}.lock"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unnamed CHECK constraint", UserWarning)  # of alembic, about SQLite
        mlflow.search_experiments(max_results=1)


def _experiment_id(name: str) -> str:
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        local = mlflow.get_tracking_uri().startswith("sqlite:")
        location = (Path(ARTIFACTS).resolve() / name).as_uri() if local else None
        try:
            return str(mlflow.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another stage may have made it just now
                raise
            found = mlflow.get_experiment_by_name(name)
    assert found is not None
    return str(found.experiment_id)


def _run_exists(run_id: str) -> bool:
    try:
        return bool(MlflowClient().get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C or SIGTERM is behind an exception: Lightning turns it into a ``SystemExit``."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind the block as Ctrl-C does, in this process only: forked workers die of it as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if os.getpid() == owner:
            raise KeyboardInterrupt("SIGTERM")
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
