from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from serving.app import create_app
from serving.problems import KINDS
from tests import media
from tests.serving.service import BOUNDARY, FORM, RAW, form, is_alive, make_settings

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00\x90wS\xde"


def archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("clip.mp4", b"0" * 1000)
    return path


def playlist(path: Path) -> Path:
    path.write_text("#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", encoding="utf-8")
    return path


def huge_picture(path: Path) -> Path:
    """Write a good file whose header claims another size."""
    data = bytearray(media.write(path).read_bytes())
    at = data.index(b"avc1", data.index(b"stsd"))
    data[at + 28 : at + 32] = struct.pack(">HH", 60_000, 60_000)
    path.write_bytes(data)
    return path


BAD: dict[str, tuple[Callable[[Path], Path], set[str]]] = {
    "empty": (media.empty, {"empty"}),
    "text": (media.text, {"not-a-video"}),
    "playlist": (playlist, {"not-a-video"}),
    "archive": (archive, {"not-a-video"}),
    "audio only": (media.audio_only, {"no-video-stream"}),
    "truncated": (lambda path: media.truncated(path, 0.02), {"truncated"}),
    "no frames": (media.no_frames, {"zero-frames", "truncated", "undecodable"}),
    "header alone": (lambda path: media.truncated(path, 0.005), {"truncated", "no-video-stream"}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_a_client_error(client: TestClient, tmp_path: Path, name: str) -> None:
    make, causes = BAD[name]
    data = make(tmp_path / "clip.mp4").read_bytes()
    for response in (
        client.post("/classify", files={"file": ("clip.mp4", data, "video/mp4")}),
        client.post("/classify", content=data, headers=RAW),
    ):
        problem = response.json()
        cause = problem["type"].removeprefix("/problems/")
        assert cause in causes
        assert response.status_code == problem["status"] == KINDS[cause].status
        assert response.headers["content-type"] == "application/problem+json"
        assert problem["request_id"] == response.headers["x-request-id"]
        assert str(tmp_path) not in response.text
        assert "upload-" not in response.text


@pytest.mark.parametrize("make", [media.damaged, lambda path: media.truncated(path, 0.6), huge_picture])
def test_damaged_file_never_causes_a_server_error(
    client: TestClient, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    response = client.post("/classify", content=make(tmp_path / "clip.mp4").read_bytes(), headers=RAW)
    assert response.status_code in (200, 422), response.text


def test_mutated_files_never_cause_a_server_error(client: TestClient, clip: Path) -> None:
    original, rng = clip.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(original)
        for position in rng.integers(0, len(data) if rng.random() < 0.5 else 1500, rng.integers(1, 30)):
            data[position] = rng.integers(256)
        response = client.post("/classify", content=bytes(data), headers=RAW)
        assert response.status_code in (200, 400, 415, 422), response.text
    assert client.post("/classify", content=original, headers=RAW).status_code == 200


def test_limits_are_checked_against_the_header(folder: Path, tmp_path: Path) -> None:
    path = media.write(tmp_path / "clip.mp4", num_frames=20)
    for limit, text in (("max_frames", "frames"), ("max_pixels", "pixels"), ("max_seconds", "1.25 s")):
        app = create_app(make_settings(folder, tmp_path, **{limit: 1}))
        with TestClient(app) as client:
            response = client.post("/classify", content=path.read_bytes(), headers=RAW)
            assert response.status_code == 422
            assert response.json()["type"] == "/problems/video-too-large"
            assert text in response.json()["detail"]


FORMS = {
    "no file": (form(("other", "a.mp4", b"x")), "no-file"),
    "no part": (f"--{BOUNDARY}--\r\n".encode(), "no-file"),
    "two files": (form(("file", "a.mp4", b"x"), ("file", "b.mp4", b"y")), "too-many-files"),
    "empty file": (form(("file", "a.mp4", b"")), "empty"),
    "cut off": (form(("file", "a.mp4", b"x" * 1000))[:500], "malformed-body"),
    "another boundary": (form(("file", "a.mp4", b"x")).replace(b"b0undary", b"another"), "malformed-body"),
    "garbage": (b"\x00" * 500, "malformed-body"),
    "empty body": (b"", "malformed-body"),
    "many parts": (form(*[("x", None, b"y")] * 100), "malformed-body"),
}


@pytest.mark.parametrize("name", FORMS)
def test_malformed_form_is_a_client_error(client: TestClient, name: str) -> None:
    body, cause = FORMS[name]
    response = client.post("/classify", content=body, headers=FORM)
    assert response.json()["type"] == f"/problems/{cause}"
    assert response.status_code == KINDS[cause].status


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "image/png", "", "multipart/form-data"])
def test_other_content_types_are_refused(client: TestClient, kind: str) -> None:
    response = client.post("/classify", content=b"{}", headers={"content-type": kind})
    assert response.status_code == (400 if kind.startswith("multipart") else 415)


def test_oversized_body_is_refused_with_and_without_content_length(folder: Path, tmp_path: Path) -> None:
    app = create_app(make_settings(folder, tmp_path, max_upload_bytes=100_000))
    with TestClient(app) as client:
        temp_dir = app.state.engine.temp_dir
        for content in (b"x" * 100_001, (b"x" * 1000 for _ in range(101))):
            for headers in (RAW, FORM):
                response = client.post("/classify", content=content, headers=headers)
                if response.json()["type"] == "/problems/malformed-body":
                    continue  # what is no form is refused as such, however large
                assert response.status_code == 413
                assert response.json()["max_bytes"] == 100_000
        big = form(("file", "a.mp4", b"x" * 200_000))
        assert client.post("/classify", content=io.BytesIO(big), headers=FORM).status_code == 413
        assert [path.name for path in temp_dir.iterdir()] == ["warm.mp4"]


def test_temporary_files_are_removed(client: TestClient, clip: Path, tmp_path: Path) -> None:
    temp_dir = client.app.state.engine.temp_dir  # type: ignore[attr-defined]
    for data in (clip.read_bytes(), b"junk"):
        client.post("/classify", files={"file": ("../../evil.mp4", data)})
    assert [path.name for path in temp_dir.iterdir()] == ["warm.mp4"]


def test_shutdown_ends_all_decoding_processes(folder: Path, clip: Path, tmp_path: Path) -> None:
    app = create_app(make_settings(folder, tmp_path))
    with TestClient(app) as client:
        client.post("/classify", content=clip.read_bytes(), headers=RAW)
        client.post("/classify", content=PNG, headers=RAW)
        processes = app.state.engine.decoder_ids
        assert len(processes) == 2
    assert not any(is_alive(process) for process in processes)
    assert list(tmp_path.iterdir()) == []
