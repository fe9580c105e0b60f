"""The subset of the WebDriver protocol that the page's tests need."""

from __future__ import annotations

import base64
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The protocol's key of an element reference."""

_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip


class Browser:
    """Session of a browser."""

    def __init__(self, client: httpx.Client, session: str) -> None:
        self._client, self._session = client, session

    def open(self, address: str) -> None:
        self._post("url", url=address)

    def script(self, text: str, *arguments: Any) -> Any:
        """Run JavaScript and return its result."""
        return self._post("execute/sync", script=text, args=list(arguments))

    def text(self, selector: str) -> str:
        """Return the text of the first matching element, if it is visible."""
        shown = "const e = document.querySelector(arguments[0]); return e && e.checkVisibility() ? e.innerText : ''"
        return str(self.script(shown, selector))

    def texts(self, selector: str) -> list[str]:
        every = "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)"
        return list(self.script(every, selector))

    def type(self, selector: str, text: str) -> None:
        """Type into an element; a path typed into a file input chooses that file."""
        found = self._post("element", using="css selector", value=selector)
        self._post(f"element/{found[_ELEMENT]}/value", text=text)

    def click(self, selector: str) -> None:
        found = self._post("element", using="css selector", value=selector)
        self._post(f"element/{found[_ELEMENT]}/click")

    def press(self, key: str) -> None:
        """Press a key on the focused element."""
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._post("actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def wait_for(self, selector: str, part: str, timeout_s: float = 60.0) -> str:
        """Wait until an element contains a text, and return its whole text."""
        deadline = time.monotonic() + timeout_s
        while part not in (text := self.text(selector)):
            assert time.monotonic() < deadline, f"{selector} says {text!r}, not {part!r}"
            time.sleep(0.05)
        return text

    def complaints(self) -> list[str]:
        """Return errors on the console since the last call."""
        entries = self._post("se/log", type="browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def screenshot(self, path: Path) -> None:
        answer = self._client.get(f"/session/{self._session}/screenshot").json()
        path.write_bytes(base64.b64decode(answer["value"]))

    def _post(self, command: str, **body: Any) -> Any:
        answer = self._client.post(f"/session/{self._session}/{command}", json=body).json()["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(f"{command}: {answer['message']}")
        return answer


@contextmanager
def chrome(driver: str, width: int, height: int, *, is_phone: bool = False) -> Iterator[Browser]:
    """Run a headless Chromium with one window of this size."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options: dict[str, Any] = {"args": [*_OPTIONS, f"--window-size={width},{height}"]}
    if is_phone:
        options["mobileEmulation"] = {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 2.0}}
    wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    command = [driver, f"--port={port}", "--log-level=OFF"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                _wait_until_ready(client)
                answer = client.post("/session", json={"capabilities": {"alwaysMatch": wanted}}).json()["value"]
                assert "sessionId" in answer, answer
                try:
                    yield Browser(client, answer["sessionId"])
                finally:
                    client.delete(f"/session/{answer['sessionId']}")
        finally:
            process.terminate()


def _wait_until_ready(client: httpx.Client) -> None:
    for _ in range(600):
        try:
            if client.get("/status").json()["value"]["ready"]:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError("chromedriver did not start")
