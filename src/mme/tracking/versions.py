"""The model registry: versions of a model folder, and addresses that lead back to a folder."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.tracking import MlflowClient

from mme.system.files import atomic_path
from mme.tracking.store import DATABASE, open_store, store_kind

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


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: the registered model.
        number: counts from 1.
        tags: what was recorded with it, such as ``digest``, ``data_digest`` and metrics by name.
        aliases: names that point to it now.
        run_id: the run that registered it, if it was one.
        created: when.
    """

    name: str
    number: int
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    run_id: str | None
    created: datetime

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
    created = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC)
    return Version(
        name, int(found.version), dict(found.tags), tuple(sorted(found.aliases)), found.run_id or None, created
    )


def list_versions(name: str) -> list[Version]:
    """All versions of a registered model, newest first.

    Raises:
        ValueError: there is no store, or no such model in it.
    """
    require_store(name)
    found = MlflowClient().search_model_versions(f"name='{name}'", order_by=["version_number DESC"])
    if not found:
        raise ValueError(f"{name}: no such model in the registry of {mlflow.get_tracking_uri()}")
    return [get_version(name, int(version.version)) for version in found]


def register(name: str, package: Package) -> Version:
    """Log a model folder as an MLflow model of the active run and add it to the registry as a new version.

    The MLflow model holds the package's code, so that ``mlflow models`` can run it where mme is not installed.
    """
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import log_model

    code = Path(__file__).parents[1]
    info = log_model(
        name="classifier",
        python_model=str(code / "registry" / "pyfunc.py"),
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


def registered_metrics(version: Version) -> dict[str, float]:
    """Figures of the run that registered a version."""
    return {} if version.run_id is None else dict(MlflowClient().get_run(version.run_id).data.metrics)


def model_tags(name: str) -> dict[str, str]:
    """Tags of a registered model as a whole."""
    return dict(MlflowClient().get_registered_model(name).tags)


def tag_model(name: str, tags: Mapping[str, str]) -> None:
    """Set or replace tags of a registered model as a whole."""
    for key, value in tags.items():
        MlflowClient().set_registered_model_tag(name, key, value)


def untag_version(version: Version, key: str) -> None:
    """Remove a tag of a version, if it has it."""
    if key in version.tags:
        MlflowClient().delete_model_version_tag(version.name, str(version.number), key)


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
    require_store(address)
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


def require_store(wanted_for: str) -> None:
    """Open the store, but make none.

    Raises:
        ValueError: there is none in the working folder, and no other is named; or it is a database, which only the
            whole of MLflow opens.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI") and not Path(DATABASE).is_file():
        raise ValueError(f"{wanted_for}: no {DATABASE} in {Path.cwd()} and MLFLOW_TRACKING_URI is not set")
    kind = store_kind()
    if kind.partition("+")[0] in DATABASE_ENGINES and find_spec("sqlalchemy") is None:
        raise ValueError(
            f"{wanted_for}: the store is a database ({kind}), which mlflow-skinny does not open: pip install mlflow, or"
            " name a tracking server by its http address in MLFLOW_TRACKING_URI"
        )
    open_store()


def _download(address: str, digest: str) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mme" / digest
    if not folder.is_dir():
        with atomic_path(folder) as temporary, tempfile.TemporaryDirectory() as scratch:
            shutil.move(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=scratch), temporary)
    return folder


def data_uri(video: Path) -> str:
    """A video file as a ``data:`` address: what stands for a file in requests to the MLflow model."""
    return f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode()}"
