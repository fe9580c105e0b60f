from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from mme.models.checkpoints import WEIGHTS_FILE, content_digest
from serving.http.metrics import Metrics
from serving.inference.model_reloader import ModelReloader
from tests.serving.registered import register_two_versions
from tests.tiny import save_tiny_folder

ADDRESS = "models:/tiny@champion"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a registry of two versions; making one takes seconds."""
    project = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register_two_versions(project)
        yield project


@pytest.fixture
def host(store: Path, clip: Path) -> ModelReloader:
    promote(1)
    host = ModelReloader(ADDRESS, clip, Metrics().model)
    assert host.refresh(), host.last_error
    return host


def promote(version: int) -> None:
    MlflowClient().set_registered_model_alias("tiny", "champion", str(version))


def answering(host: ModelReloader) -> tuple[str | None, str]:
    assert host.current is not None
    return host.current.version, host.current.digest


def test_moved_alias_replaces_the_model(host: ModelReloader, store: Path) -> None:
    assert answering(host) == ("1", content_digest(store / "made-1" / "export"))
    assert not host.refresh()
    promote(2)
    assert host.refresh()
    assert answering(host) == ("2", content_digest(store / "made-2" / "export"))


def test_registry_outage_keeps_the_current_model(host: ModelReloader, store: Path) -> None:
    before = host.current
    (store / "mlflow.db").rename(store / "away.db")
    try:
        assert not host.refresh()
    finally:
        (store / "away.db").rename(store / "mlflow.db")
    assert host.current is before
    assert host.last_error is not None
    assert "mlflow.db" in host.last_error
    promote(2)
    assert host.refresh()
    assert host.last_error is None


@pytest.mark.parametrize("address", ["models:/tiny@nobody", "models:/tiny", "models:/other@champion"])
def test_wrong_address_is_named_in_the_error(store: Path, clip: Path, address: str) -> None:
    host = ModelReloader(address, clip, Metrics().model)
    assert not host.refresh()
    assert host.current is None
    assert host.last_error is not None
    assert address in host.last_error


def test_model_with_another_digest_is_refused(host: ModelReloader, store: Path) -> None:
    before = host.current
    weights = store / "made-2" / "export" / WEIGHTS_FILE
    shutil.copy(weights, store / "kept")
    shutil.copy(store / "made-1" / "export" / WEIGHTS_FILE, weights)
    promote(2)
    try:
        assert not host.refresh()
        assert host.current is before
        assert host.last_error is not None
        assert "digest" in host.last_error
        assert weights.is_file()  # the registry's own folder is not ours to remove
    finally:
        shutil.copy(store / "kept", weights)
    assert host.refresh()


def test_damaged_download_is_removed(store: Path, tmp_path: Path, clip: Path) -> None:
    """The folder is named by the digest, as downloads are."""
    good = save_tiny_folder(tmp_path / "good", seed=3)
    digest = content_digest(good)
    copy = tmp_path / digest
    shutil.copytree(good, copy)
    tags = {"digest": digest, "folder": digest}
    version = MlflowClient().create_model_version("tiny", tmp_path.as_uri(), tags=tags).version
    (copy / WEIGHTS_FILE).write_bytes(b"damaged")
    host = ModelReloader(f"models:/tiny/{version}", clip, Metrics().model)
    assert not host.refresh()
    assert not copy.exists()
    good.rename(copy)
    assert host.refresh()
