"""MLflow model registry: versions of a model folder, and addresses that resolve to a folder."""

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
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mme.system.files import atomic_path
from mme.tracking.store import asking, require_store, shown_store

MODEL_LIBRARIES = (
    "av", "decord2", "jaxtyping", "numpy", "opencv-python-headless", "pandas", "pydantic", "pyyaml", "rich",
    "safetensors", "timm", "torch", "torchvision",
)  # fmt: skip
"""Requirements of a registered model, pinned at the versions that produced it."""

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
    """A version of a registered model, as it was when it was read.

    Attributes:
        name: registered model.
        number: counts from 1.
        tags: recorded with it, such as ``digest``, ``data_digest`` and metrics by name.
        aliases: names that point to it.
        run_id: the run that registered it, if there was one.
        created: time of registration.
    """

    name: str
    number: int
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    run_id: str | None
    created: datetime

    @property
    def address(self) -> str:
        """Address for ``resolve`` and MLflow."""
        return f"models:/{self.name}/{self.number}"

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        for key, value in tags.items():
            MlflowClient().set_model_version_tag(self.name, str(self.number), key, value)

    def describe(self, description: str) -> None:
        """Set or replace the paragraph for the registry's page."""
        MlflowClient().update_model_version(self.name, str(self.number), description)

    def remove_tag(self, key: str) -> None:
        """Remove a tag if it is set."""
        if key in self.tags:
            MlflowClient().delete_model_version_tag(self.name, str(self.number), key)

    def set_alias(self, alias: str, among: Iterable[str]) -> None:
        """Point ``alias`` to the version and remove the version's other aliases of ``among``."""
        client = MlflowClient()
        client.set_registered_model_alias(self.name, alias, str(self.number))
        for other in set(among) & set(self.aliases) - {alias}:
            client.delete_registered_model_alias(self.name, other)

    def run_metrics(self) -> dict[str, float]:
        """Return the metrics of the run that registered the version."""
        return {} if self.run_id is None else dict(MlflowClient().get_run(self.run_id).data.metrics)


@dataclass(frozen=True)
class ModelPackage:
    """Content of a new version.

    Attributes:
        folder: model folder with its model card ``README.md``.
        example: video file, kept as the model's input example.
        description: one paragraph for the registry's page.
        tags: recorded with the version; ``digest`` identifies it.
    """

    folder: Path
    example: Path
    description: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class RegisteredModel:
    """A model in the registry, by its name."""

    name: str

    def version(self, number: int) -> Version:
        """Read a version.

        Raises:
            MlflowException: there is no such version.
        """
        found = MlflowClient().get_model_version(self.name, str(number))
        return Version(
            name=self.name,
            number=int(found.version),
            tags=dict(found.tags),
            aliases=tuple(sorted(found.aliases)),
            run_id=found.run_id or None,
            created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        )

    def versions(self) -> list[Version]:
        """Read all versions, newest first.

        Raises:
            ValueError: there is no store, or no such model in it.
        """
        require_store(self.name)
        numbers = self._numbers_by_digest()
        if not numbers:
            raise ValueError(f"{self.name}: no such model in the registry of {shown_store()}")
        return [self.version(number) for number, _ in numbers]

    def find_digest(self, digest: str) -> Version | None:
        """Return the newest version whose tag ``digest`` is ``digest``."""
        number = next((number for number, known in self._numbers_by_digest() if known == digest), None)
        return None if number is None else self.version(number)

    def find_alias(self, alias: str) -> Version | None:
        """Return the version that ``alias`` points to."""
        try:
            number = MlflowClient().get_registered_model(self.name).aliases.get(alias)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return None if number is None else self.version(int(number))

    def tags(self) -> dict[str, str]:
        """Return the tags of the model as a whole."""
        return dict(MlflowClient().get_registered_model(self.name).tags)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags of the model as a whole."""
        for key, value in tags.items():
            MlflowClient().set_registered_model_tag(self.name, key, value)

    def register(self, package: ModelPackage) -> Version:
        """Log a model folder as an MLflow model of the active run and add it as a new version.

        The MLflow model contains the code of ``mme``, so that ``mlflow models`` can run it where mme is not installed.
        """
        from mlflow.models import ModelSignature
        from mlflow.pyfunc import log_model

        code = Path(__file__).parents[1]
        example = base64.b64encode(package.example.read_bytes()).decode()
        pins = [f"{library}=={metadata.version(library).partition('+')[0]}" for library in MODEL_LIBRARIES]
        info = log_model(
            name="classifier",
            python_model=str(code / "registry" / "pyfunc.py"),
            artifacts={"folder": str(package.folder)},
            code_paths=[str(code)],
            signature=ModelSignature.from_dict(_SIGNATURE),
            input_example=[{"video": f"data:video/mp4;base64,{example}"}],
            pip_requirements=pins,
        )
        tags = {**package.tags, "folder": f"artifacts/{package.folder.name}"}
        created = mlflow.register_model(info.model_uri, self.name, tags=tags)
        # MLflow asks once more if an answer is lost; the server may have made a version at the first time too.
        client = MlflowClient()
        found = client.search_model_versions(f"name='{self.name}'")
        first, *twins = sorted(int(version.version) for version in found if version.source == created.source)
        for twin in twins:
            client.delete_model_version(self.name, str(twin))
        version = self.version(first)
        version.describe(package.description)
        return version

    def _numbers_by_digest(self) -> list[tuple[int, str | None]]:
        """Return the number and the content digest of every version, newest first."""
        with asking():
            found = MlflowClient().search_model_versions(f"name='{self.name}'", order_by=["version_number DESC"])
        return [(int(version.version), version.tags.get("digest")) for version in found]


def resolve_version(address: str) -> Version:
    """Return the version at ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    Raises:
        ValueError: the address is malformed, there is no tracking store, or it has no such version of this project.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(f"{address}: is not of the form models:/NAME@ALIAS or models:/NAME/VERSION")
    require_store(address)

    model, alias = RegisteredModel(match["name"]), match["alias"]
    try:
        if alias:
            number = int(MlflowClient().get_model_version_by_alias(model.name, alias).version)
        else:
            number = int(match["version"])
        version = model.version(number)
    except MlflowException as error:
        raise ValueError(f"{address}: {error.message}") from error
    if not {"folder", "digest"} <= version.tags.keys():
        raise ValueError(f"{address}: version {number} was not registered by this project's register stage")
    return version


def resolve(address: str) -> Path:
    """Return the model folder at ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``; raises as ``resolve_version``.

    A folder in a local artifact store is used in place. From a tracking server it is downloaded once, into the user's
    cache folder, under its content digest.
    """
    version = resolve_version(address)
    source = MlflowClient().get_model_version_download_uri(version.name, str(version.number))
    artifact = f"{source}/{version.tags['folder']}"
    if urlsplit(source).scheme in ("", "file"):
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=artifact))
    return _download(artifact, version.tags["digest"])


def _download(address: str, digest: str) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mme" / digest
    if not folder.is_dir():
        with atomic_path(folder) as temporary, tempfile.TemporaryDirectory() as scratch:
            shutil.move(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=scratch), temporary)
    return folder
