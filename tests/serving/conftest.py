from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serving.app import create_app
from tests import media
from tests.serving.service import make_settings
from tests.tiny import save_tiny_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return media.write(tmp_path_factory.mktemp("clips") / "clip.mp4", num_frames=20)


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a video that takes some 200 ms to decode."""
    return media.write(tmp_path_factory.mktemp("slow") / "slow.mp4", size=(1280, 720), num_frames=40)


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = make_settings(folder, tmp_path_factory.mktemp("uploads"))
    with TestClient(create_app(settings)) as client:
        yield client
