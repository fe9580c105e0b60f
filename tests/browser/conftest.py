from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mme.video.codec import write_video
from tests import media
from tests.browser.webdriver import Browser, chrome
from tests.serving.service import server
from tests.tiny import moving_frames, save_tiny_folder

ROOT = Path(__file__).parents[2]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs Debian's chromium and chromium-driver")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return media.write(tmp_path_factory.mktemp("clips") / "clip.mp4", num_frames=20)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a clip of 24 seconds whose label changes: long enough to have no labels but those along it."""
    path = tmp_path_factory.mktemp("clips") / "scenes.mp4"
    frames = np.concatenate([moving_frames(64, 96, 128, seed=seed) for seed in range(6)])
    write_video(path, frames, fps=16, crf=20, gop_frames=16)
    return path


@pytest.fixture(scope="session")
def axe() -> str:
    """Return the source of axe-core, which `.ci/run` installs."""
    path = Path(os.environ.get("MME_AXE", ROOT / "node_modules/axe-core/axe.min.js"))
    if not path.is_file():
        pytest.skip("there is no axe-core: npm install --no-save axe-core")
    return path.read_text()


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback")


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory, kept: Path) -> Iterator[str]:
    folder = save_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")
    log = tmp_path_factory.mktemp("log") / "log"
    with server(folder, tmp_path_factory.mktemp("uploads"), log=log, MME_FEEDBACK_DIR=str(kept)) as (address, _):
        yield address


@pytest.fixture(scope="session")
def driver() -> str:
    found = shutil.which("chromedriver")
    if found is None:
        pytest.skip("there is no chromedriver")
    return found


@pytest.fixture(scope="module")
def desktop(driver: str) -> Iterator[Browser]:
    with chrome(driver, width=1200, height=800) as browser:
        yield browser


@pytest.fixture(scope="module")
def phone(driver: str) -> Iterator[Browser]:
    with chrome(driver, width=360, height=740, is_phone=True) as browser:
        yield browser
