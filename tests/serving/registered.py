"""A registry with two versions of a small model."""

from __future__ import annotations

from pathlib import Path

from mlflow.tracking import MlflowClient

from mme.models.checkpoints import content_digest
from mme.tracking.store import open_store
from tests.tiny import save_tiny_folder


def register_two_versions(project: Path) -> MlflowClient:
    """Register ``made-1/export`` and ``made-2/export`` below the working folder as versions 1 and 2 of ``tiny``."""
    open_store()
    client = MlflowClient()
    client.create_registered_model("tiny")
    for seed in (1, 2):
        folder = save_tiny_folder(project / f"made-{seed}" / "export", seed=seed)
        tags = {"digest": content_digest(folder), "folder": "export"}
        client.create_model_version("tiny", folder.parent.as_uri(), tags=tags)
    return client
