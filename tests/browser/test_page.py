from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest

from mme.video.codec import read_frames
from tests import media
from tests.browser.webdriver import Browser
from tests.reference.orientation import TURNS_AND_MIRRORS, matrix_of
from tests.serving.service import wait_until

pytestmark = pytest.mark.browser

TAB, ENTER = "\ue004", "\ue007"


def expected(address: str, clip: Path) -> list[str]:
    answer = httpx.post(f"{address}/classify", files={"file": clip.read_bytes()}, timeout=60).json()
    return [item["label"] for item in answer["predictions"]]


def choose(browser: Browser, clip: Path) -> None:
    browser.type("#file", str(clip))


def test_clip_is_played_and_its_labels_are_shown(desktop: Browser, address: str, clip: Path) -> None:
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


def painted(browser: Browser) -> int:
    """Return the number of overlay pixels that are not transparent."""
    return int(
        browser.script(
            "const c = document.querySelector('#overlay');"
            "if (!c.width || !c.height) return 0;"
            "const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "let n = 0; for (let i = 3; i < pixels.length; i += 4) n += pixels[i] > 0; return n"
        )
    )


def test_tracks_are_drawn_over_the_clip(desktop: Browser, address: str, clip: Path, tmp_path: Path) -> None:
    desktop.open(address)
    choose(desktop, clip)
    wait_until(lambda: painted(desktop) > 50, timeout_s=60)
    box = "const r = document.querySelector('#{}').getBoundingClientRect(); return [r.left, r.top, r.width, r.height]"
    assert desktop.script(box.format("overlay")) == pytest.approx(desktop.script(box.format("player")), abs=1)
    desktop.click("#motion")
    wait_until(lambda: painted(desktop) == 0, timeout_s=60)
    desktop.click("#motion")
    wait_until(lambda: painted(desktop) > 50, timeout_s=60)
    choose(desktop, media.write(tmp_path / "still.mp4", num_frames=1))
    desktop.wait_for("#motion-state", "too short")
    wait_until(lambda: painted(desktop) == 0, timeout_s=60)
    desktop.click("#recent li:nth-child(2) button")
    wait_until(lambda: painted(desktop) > 50, timeout_s=60)


@pytest.mark.parametrize("numbers", TURNS_AND_MIRRORS)
def test_clip_is_played_as_it_is_tracked(
    desktop: Browser, address: str, tmp_path: Path, numbers: tuple[int, int, int, int]
) -> None:
    clip = media.write(tmp_path / "clip.mp4", num_frames=2, matrix=matrix_of(*numbers))
    upright = read_frames(clip)[0]
    desktop.open(address)
    choose(desktop, clip)
    desktop.wait_for("#labels", "%")
    desktop.script("const player = document.querySelector('#player'); player.pause(); player.currentTime = 0")
    wait_until(
        lambda: bool(
            desktop.script("const p = document.querySelector('#player'); return p.readyState > 1 && !p.seeking")
        )
    )
    played = desktop.script(
        "const player = document.querySelector('#player'), canvas = document.createElement('canvas');"
        "[canvas.width, canvas.height] = [player.videoWidth, player.videoHeight];"
        "const pen = canvas.getContext('2d'); pen.drawImage(player, 0, 0);"
        "return [canvas.height, canvas.width, [...pen.getImageData(0, 0, canvas.width, canvas.height).data]]"
    )
    assert tuple(played[:2]) == upright.shape[:2]
    picture = np.array(played[2]).reshape(*played[:2], 4)[..., :3]
    assert np.abs(picture - upright).mean() < 10


def test_camera_clip_is_recorded_and_classified(desktop: Browser, address: str) -> None:
    """Uses Chromium's fake camera: a green frame with a moving pie and a beep."""
    desktop.open(address)
    desktop.click("#record")
    desktop.wait_for("#record", "Recording")
    desktop.wait_for("#labels", "%")
    assert desktop.texts("#recent li")[0].startswith("recorded at")
    assert "320" in desktop.text("#facts")
    wait_until(lambda: painted(desktop) > 50, timeout_s=60)


def test_problem_of_a_bad_file_is_shown(desktop: Browser, address: str, clip: Path, tmp_path: Path) -> None:
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


def test_file_chooser_opens_by_keyboard(desktop: Browser, address: str) -> None:
    desktop.open(address)
    desktop.press(TAB)
    assert desktop.script("return document.activeElement.id") == "drop"
    desktop.script(
        "document.querySelector('#file').addEventListener('click', (e) => { e.preventDefault(); window.asked = true })"
    )
    desktop.press(ENTER)
    assert desktop.script("return window.asked")


def test_file_name_is_not_interpreted_as_markup(desktop: Browser, address: str, clip: Path, tmp_path: Path) -> None:
    desktop.open(address)
    evil = tmp_path / "<img src=x onerror=alert(1)>.mp4"
    evil.write_bytes(clip.read_bytes())
    choose(desktop, evil)
    desktop.wait_for("#recent", evil.name)
    assert desktop.script("return document.querySelectorAll('#recent img').length") == 0


def test_page_loads_nothing_from_other_hosts_and_logs_no_errors(desktop: Browser, address: str, clip: Path) -> None:
    desktop.complaints()
    desktop.open(address)
    choose(desktop, clip)
    desktop.wait_for("#labels", "%")
    loaded = desktop.script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert loaded
    assert all(name.startswith((address, f"blob:{address}")) for name in loaded)
    assert desktop.complaints() == []


def test_narrow_screen_needs_no_horizontal_scrolling(phone: Browser, address: str, clip: Path) -> None:
    phone.open(address)
    choose(phone, clip)
    phone.wait_for("#labels", "%")
    assert phone.script("return innerWidth") == 360
    assert phone.script("return document.documentElement.scrollWidth") <= 360
    buttons = "[...document.querySelectorAll('button')].filter((e) => e.checkVisibility())"
    assert phone.script(f"return {buttons}.every((e) => e.offsetHeight >= 40)")  # a finger's width
