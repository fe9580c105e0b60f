from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import media
from tests.browser.webdriver import Browser, chrome
from tests.serving.service import server
from tests.tiny import save_tiny_folder


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs Debian's chromium and chromium-driver")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return media.write(tmp_path_factory.mktemp("clips") / "clip.mp4", num_frames=20)


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = save_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")
    with server(folder, tmp_path_factory.mktemp("uploads")) as (address, _):
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
