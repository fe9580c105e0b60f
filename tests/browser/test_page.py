from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from mme.ingest.feedback import load_record, record_paths
from mme.system.files import sha256_file
from mme.video.codec import read_frames
from mme.video.reader import open_video
from tests import media
from tests.browser.webdriver import Browser
from tests.reference.orientation import TURNS_AND_MIRRORS, matrix_of
from tests.serving.service import wait_until
from tests.tiny import LABELS

pytestmark = pytest.mark.browser

TAB, ENTER, LEFT, RIGHT, END = "\ue004", "\ue007", "\ue012", "\ue014", "\ue010"


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


def test_tracks_follow_what_is_played_of_a_long_clip(desktop: Browser, address: str, scenes: Path) -> None:
    desktop.open(address)
    choose(desktop, scenes)
    wait_until(lambda: painted(desktop) > 50, timeout_s=120)
    desktop.script("const player = document.querySelector('#player'); player.pause(); player.currentTime = 12.4")
    wait_until(lambda: asked(desktop) >= {"12", "18"}, timeout_s=120)  # what is shown, and what comes next
    wait_until(lambda: painted(desktop) > 50, timeout_s=120)  # between two of the places that are known at first
    desktop.script("document.querySelector('#player').currentTime = 23.6")
    wait_until(lambda: painted(desktop) > 50, timeout_s=120)
    assert asked(desktop) <= {"0", "6", "12", "18"}
    assert desktop.text("#motion-state") == ""


def asked(browser: Browser) -> set[str]:
    """Return the seconds from which tracks were asked for, without those of requests that are under way."""
    return set(
        browser.script(
            "return performance.getEntriesByType('resource').map((e) => e.name.split('?start_s=')[1]).filter(Boolean)"
        )
    )


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
    desktop.click("#tab-camera")
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
    assert desktop.script("return document.activeElement.id") == "tab-file"
    desktop.press(RIGHT)
    assert desktop.script("return document.activeElement.id") == "tab-camera"
    assert desktop.script("return document.querySelector('#panel-camera').checkVisibility()")
    assert not desktop.script("return document.querySelector('#panel-file').checkVisibility()")
    desktop.press(LEFT)
    desktop.press(TAB)
    assert desktop.script("return document.activeElement.id") == "drop"
    desktop.script(
        "document.querySelector('#file').addEventListener('click', (e) => { e.preventDefault(); window.asked = true })"
    )
    desktop.press(ENTER)
    assert desktop.script("return window.asked")


def segments_of(address: str, clip: Path) -> list[dict[str, Any]]:
    answer = httpx.post(f"{address}/classify?window_s=2&hop_s=1", files={"file": clip.read_bytes()}, timeout=60).json()
    return list(answer["segments"])


def test_timeline_shows_segments_seeks_and_captions(desktop: Browser, address: str, scenes: Path) -> None:
    desktop.open(address)
    desktop.script(
        "const make = URL.createObjectURL;"
        "URL.createObjectURL = (blob) => { window.blob = blob; return make.call(URL, blob) }"
    )
    choose(desktop, scenes)
    desktop.wait_for("#labels-title", "Share of the time")
    segments = segments_of(address, scenes)
    assert len(segments) > 3
    assert desktop.script("return [...document.querySelectorAll('#timeline .part')].map((e) => e.textContent)") == [
        segment["label"] for segment in segments
    ]
    widths = desktop.script("return [...document.querySelectorAll('#timeline .part')].map((e) => e.offsetWidth)")
    total = desktop.script("return document.querySelector('#timeline').clientWidth")
    shares = [(segment["end_s"] - segment["start_s"]) / 24 for segment in segments]
    assert [width / total for width in widths] == pytest.approx(shares, abs=0.01)
    first = desktop.texts("#labels li")[0].split()
    seconds = sum(segment["end_s"] - segment["start_s"] for segment in segments if segment["label"] == first[0])
    assert float(first[1]) == pytest.approx(100 * seconds / 24, abs=1)

    time = "return document.querySelector('#player').currentTime"
    desktop.script("document.querySelector('#player').pause(); document.querySelector('#timeline').focus()")
    desktop.press(END)
    wait_until(lambda: desktop.script(time) == pytest.approx(segments[-1]["start_s"], abs=0.01))
    desktop.press(LEFT)
    wait_until(lambda: desktop.script(time) == pytest.approx(segments[-2]["start_s"], abs=0.01))
    bar = "const bar = document.querySelector('#timeline'); return bar.getAttribute('{}')"
    wait_until(lambda: segments[-2]["label"] in desktop.script(bar.format("aria-valuetext")))
    assert desktop.script(bar.format("role")) == "slider"
    assert desktop.script(bar.format("aria-valuemax")) == "24"
    desktop.click("#timeline")  # in its middle
    wait_until(lambda: desktop.script(time) == pytest.approx(12, abs=0.2))

    cues = (
        "return [...document.querySelector('#player').textTracks[0].cues].map((c) => [c.startTime, c.endTime, c.text])"
    )
    wait_until(lambda: desktop.script("return document.querySelector('#player').textTracks[0].mode") == "showing")
    wait_until(lambda: len(desktop.script(cues)) == len(segments))
    assert desktop.script(cues) == [[s["start_s"], s["end_s"], s["label"]] for s in segments]
    saved = desktop.script("return window.blob.text()")
    files = {"file": scenes.read_bytes()}
    assert saved == httpx.post(f"{address}/classify?window_s=2&hop_s=1&format=vtt", files=files, timeout=60).text


def test_upload_shows_its_progress(desktop: Browser, address: str, scenes: Path) -> None:
    desktop.open(address)
    desktop.script(
        "const send = XMLHttpRequest.prototype.send; XMLHttpRequest.prototype.send = function (form) {"
        "  window.tell = (loaded) => this.upload.dispatchEvent(new ProgressEvent('progress', { loaded, total: 200 }));"
        "  window.goOn = () => { XMLHttpRequest.prototype.send = send; send.call(this, form) } }"
    )
    choose(desktop, scenes)
    wait_until(lambda: desktop.script("return Boolean(window.goOn)"))
    assert desktop.text("#busy-text") == "Uploading, 0.0 %"
    desktop.script("tell(86)")
    assert desktop.text("#busy-text") == "Uploading, 43 %"
    assert desktop.script("return document.querySelector('#progress').value") == 0.43
    desktop.script("tell(200)")
    assert desktop.text("#busy-text") == "Classifying …"
    assert not desktop.script("return document.querySelector('#progress').checkVisibility()")
    desktop.script("goOn()")
    desktop.wait_for("#labels", "%")
    assert desktop.text("#busy") == ""


def test_camera_is_labelled_every_second_by_windows_of_their_own(desktop: Browser, address: str, scenes: Path) -> None:
    desktop.open(address)
    choose(desktop, scenes)
    desktop.wait_for("#legend", ":")
    desktop.script(
        "window.sent = []; const send = XMLHttpRequest.prototype.send;"
        "XMLHttpRequest.prototype.send = function (form) {"
        "  window.last = form.get('file'); sent.push([performance.now(), last.size]); return send.call(this, form) }"
    )
    desktop.click("#tab-camera")
    desktop.click("#live")
    desktop.wait_for("#facts", "KiB")
    assert not desktop.script("return document.querySelector('#along').checkVisibility()")
    assert desktop.script("return [...document.querySelector('#player').textTracks].length") == 0
    wait_until(lambda: desktop.script("return sent.length") >= 4)
    assert desktop.text("#labels").count("%") == 4
    assert desktop.script("return document.querySelector('#live').getAttribute('aria-pressed')") == "true"
    desktop.click("#live")
    assert desktop.script("return document.querySelector('#player').srcObject") is None
    (first, *_, last), number = desktop.script("return sent"), desktop.script("return sent.length")
    assert (last[0] - first[0]) / (number - 1) > 900
    # Each window is a file that begins with a header and lasts two seconds.
    piece = bytes(desktop.script("return window.last.arrayBuffer().then((bytes) => [...new Uint8Array(bytes)])"))
    with open_video(piece) as video:
        assert video.info.duration_s == pytest.approx(2, abs=0.7)


def test_right_label_is_sent_by_keyboard_and_its_outcome_is_read_out(
    desktop: Browser, address: str, clip: Path, scenes: Path, kept: Path, tmp_path: Path
) -> None:
    desktop.open(address)
    visible = "return document.querySelector('#feedback').checkVisibility()"
    assert not desktop.script(visible)
    choose(desktop, clip)
    desktop.wait_for("#labels", "%")
    wait_until(lambda: bool(desktop.script(visible)))
    options = "return [...document.querySelectorAll('#right-label option')].map((e) => e.value)"
    assert desktop.script(options) == ["", *LABELS]

    desktop.script("document.querySelector('#right-label').focus()")
    desktop.press("r")  # chooses the label that begins so
    desktop.press(TAB)
    desktop.press(ENTER)
    assert "kept as right" in desktop.wait_for("#feedback-state", "Thank you")
    assert desktop.script("return document.querySelector('#feedback-state').getAttribute('role')") == "status"
    (record,) = map(load_record, record_paths(kept))
    assert record.last.label == "right"
    assert record.sha256 == sha256_file(clip)

    choose(desktop, scenes)  # has labels along it, not one
    desktop.wait_for("#labels-title", "Share")
    assert not desktop.script(visible)
    desktop.click("#recent li:nth-child(2) button")
    wait_until(lambda: bool(desktop.script(visible)))
    assert desktop.text("#feedback-state") == ""
    choose(desktop, media.text(tmp_path / "notes.mp4"))
    desktop.wait_for("#error", "not a video")
    assert not desktop.script(visible)


@pytest.mark.parametrize("is_phone", [False, True])
@pytest.mark.parametrize("state", ["empty", "answer", "timeline", "camera", "problem"])
def test_axe_finds_no_serious_fault(
    desktop: Browser, phone: Browser, address: str, scenes: Path, tmp_path: Path, axe: str, state: str, is_phone: bool
) -> None:
    browser = phone if is_phone else desktop
    browser.open(address)
    if state == "timeline":
        choose(browser, scenes)
        browser.wait_for("#legend", ":")
    elif state == "answer":
        choose(browser, media.write(tmp_path / "clip.mp4", num_frames=20))
        browser.wait_for("#feedback", "The right label is")
    elif state == "camera":
        browser.click("#tab-camera")
    elif state == "problem":
        choose(browser, media.text(tmp_path / "notes.mp4"))
        browser.wait_for("#error", "not a video")
    browser.script(axe)
    faults = browser.script("return axe.run().then(({ violations }) => violations)")
    assert [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in faults] == []


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


def test_narrow_screen_needs_no_horizontal_scrolling(phone: Browser, address: str, clip: Path, scenes: Path) -> None:
    phone.open(address)
    choose(phone, clip)
    phone.wait_for("#labels", "%")
    choose(phone, scenes)
    phone.wait_for("#legend", ":")
    assert phone.script("return innerWidth") == 360
    assert phone.script("return document.documentElement.scrollWidth") <= 360
    buttons = "[...document.querySelectorAll('button')].filter((e) => e.checkVisibility())"
    assert phone.script(f"return {buttons}.every((e) => e.offsetHeight >= 40)")  # a finger's width
