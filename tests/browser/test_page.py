from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests import media
from tests.browser.webdriver import Browser

pytestmark = pytest.mark.browser

TAB, ENTER = "\ue004", "\ue007"


def expected(address: str, clip: Path) -> list[str]:
    answer = httpx.post(f"{address}/classify", files={"file": clip.read_bytes()}, timeout=60).json()
    return [item["label"] for item in answer["predictions"]]


def choose(browser: Browser, clip: Path) -> None:
    browser.type("#file", str(clip))


def test_a_clip_is_played_and_its_labels_are_shown(desktop: Browser, address: str, clip: Path) -> None:
    desktop.open(address)
    model = httpx.get(f"{address}/model").json()
    assert model["digest"] in desktop.wait_for("#model", model["name"])
    choose(desktop, clip)
    desktop.wait_for("#labels", "%")
    labels = expected(address, clip)
    assert [text.split()[0] for text in desktop.texts("#labels li")] == labels
    shares = desktop.script(
        "return [...document.querySelectorAll('#labels li')].map((e) => +e.style.getPropertyValue('--share'))"
    )
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0)
    assert "20 frames, 96" in desktop.text("#facts")
    assert model["digest"] in desktop.text("#facts")
    assert desktop.script("return document.querySelector('#player').checkVisibility()")
    assert desktop.texts("#recent li")[0].startswith("clip.mp4")
    assert f"{address}/classify" in desktop.text("#curl")


def test_a_bad_file_is_explained(desktop: Browser, address: str, clip: Path, tmp_path: Path) -> None:
    desktop.open(address)
    choose(desktop, media.text(tmp_path / "notes.mp4"))
    error = desktop.wait_for("#error", "not a video")
    assert "request" in error
    assert desktop.texts("#labels li") == []
    assert desktop.script("return document.querySelector('#error').getAttribute('role')") == "alert"
    choose(desktop, clip)
    desktop.wait_for("#labels", "%")
    assert desktop.text("#error") == ""
    assert [text.split("\n")[0].strip() for text in desktop.texts("#recent li")] == ["clip.mp4", "notes.mp4"]
    desktop.click("#recent li:nth-child(2) button")
    desktop.wait_for("#error", "not a video")


def test_it_works_by_keyboard(desktop: Browser, address: str) -> None:
    desktop.open(address)
    desktop.press(TAB)
    assert desktop.script("return document.activeElement.id") == "drop"
    desktop.script(
        "document.querySelector('#file').addEventListener('click', (e) => { e.preventDefault(); window.asked = true })"
    )
    desktop.press(ENTER)
    assert desktop.script("return window.asked")


def test_a_name_is_never_markup(desktop: Browser, address: str, clip: Path, tmp_path: Path) -> None:
    desktop.open(address)
    evil = tmp_path / "<img src=x onerror=alert(1)>.mp4"
    evil.write_bytes(clip.read_bytes())
    choose(desktop, evil)
    desktop.wait_for("#recent", evil.name)
    assert desktop.script("return document.querySelectorAll('#recent img').length") == 0


def test_nothing_comes_from_elsewhere_and_nothing_complains(desktop: Browser, address: str, clip: Path) -> None:
    desktop.complaints()
    desktop.open(address)
    choose(desktop, clip)
    desktop.wait_for("#labels", "%")
    loaded = desktop.script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert loaded
    assert all(name.startswith((address, f"blob:{address}")) for name in loaded)
    assert desktop.complaints() == []


def test_a_narrow_screen_needs_no_sideways_scrolling(phone: Browser, address: str, clip: Path) -> None:
    phone.open(address)
    choose(phone, clip)
    phone.wait_for("#labels", "%")
    assert phone.script("return innerWidth") == 360
    assert phone.script("return document.documentElement.scrollWidth") <= 360
    buttons = "[...document.querySelectorAll('button')].filter((e) => e.checkVisibility())"
    assert phone.script(f"return {buttons}.every((e) => e.offsetHeight >= 40)")  # a finger's width
