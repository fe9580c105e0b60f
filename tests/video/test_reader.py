from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mme.video import metadata, reader
from mme.video.codec import read_frames
from mme.video.containers import VideoError
from mme.video.decoding import PictureDecoder
from mme.video.reader import open_video, read_metadata
from tests import media
from tests.media import Spec

KINDS = {
    "h264.mp4": Spec(size=(64, 64)),
    "h264-bframes.mp4": Spec(size=(128, 64), bframes=2),
    "h264-sound.mkv": Spec(size=(120, 64), bframes=2, audio=True),
    "vp9.webm": Spec(codec="libvpx-vp9", size=(120, 90), fps=Fraction(25)),
    "mpeg4-bframes.avi": Spec(codec="mpeg4", size=(100, 64), bframes=2),
    "mpeg4-bframes.mp4": Spec(codec="mpeg4", size=(100, 64), bframes=2),
    "variable-rate.mkv": Spec(size=(176, 144), variable_rate=True),
    "rotated-90.mp4": Spec(size=(120, 64), rotation=90),
}
DENSE, SPARSE = [3, 0, 3, 31, 17, 12, 11, 30, 9], [31, 2]
"""Frames for which PyAV, and for which decord is the faster."""


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {name: media.write(folder / name, spec) for name, spec in KINDS.items()}


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Arguments of every call of ``av.open``."""
    seen: list[object] = []
    opened = av.open

    def spy(file: Any, *arguments: Any, **options: Any) -> object:
        seen.append(file)
        return opened(file, *arguments, **options)

    monkeypatch.setattr(av, "open", spy)
    return seen


@pytest.mark.parametrize("name", [name for name in KINDS if not KINDS[name].variable_rate])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_open_video_agrees_with_read_metadata_and_read_frames(
    files: dict[str, Path], name: str, as_bytes: bool
) -> None:
    source = files[name].read_bytes() if as_bytes else files[name]
    with open_video(source) as video:
        assert video.info == read_metadata(files[name])
        for indices in (DENSE, DENSE, SPARSE, [0]):  # from what is open, then anew
            np.testing.assert_array_equal(
                video.read(indices, float(KINDS[name].fps)), read_frames(files[name], indices)
            )


def test_small_file_is_opened_once(files: dict[str, Path], openings: list[object]) -> None:
    with open_video(files["h264.mp4"]) as video:
        for _ in range(2):
            video.read(DENSE, 16)
    assert len(openings) == 1


@pytest.mark.parametrize(("buffer_bytes", "num_openings"), [(2**24, 1), (10_000, 3)])
def test_large_file_is_decoded_where_it_is_needed(
    files: dict[str, Path],
    openings: list[object],
    monkeypatch: pytest.MonkeyPatch,
    buffer_bytes: int,
    num_openings: int,
) -> None:
    monkeypatch.setattr(metadata, "MAX_BUFFER_BYTES", buffer_bytes)
    monkeypatch.setattr(reader, "MAX_CHECKED_PIXELS", 0)
    decoded: list[int] = []
    decode = PictureDecoder.decode

    def spy(decoder: PictureDecoder, packet: Any) -> list[av.VideoFrame]:
        frames = decode(decoder, packet)
        decoded.append(len(frames))
        return frames

    monkeypatch.setattr(PictureDecoder, "decode", spy)
    with open_video(files["h264.mp4"]) as video:
        assert sum(decoded) == 1
        frames = video.read([26, 27], 16)
        assert sum(decoded) == 1 + 4  # from the keyframe 24 on
        assert media.frame_numbers(frames) == [26, 27]
        assert media.frame_numbers(video.read([1, 13], 16)) == [1, 13]
        assert sum(decoded) == 1 + 4 + 2 + 2
    assert len(openings) == num_openings


def test_declared_size_is_checked_before_decoding(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(width: int, height: int) -> None:
        raise VideoError("too-large", "it", f"{width} x {height}")

    monkeypatch.setattr(PictureDecoder, "decode", lambda *arguments: pytest.fail("decoded"))
    with pytest.raises(VideoError, match="64 x 64"), open_video(files["h264.mp4"], too_large):
        pytest.fail("opened")


def test_a_strip_is_refused_by_the_size_at_which_it_is_shown(tmp_path: Path) -> None:
    path = media.write(tmp_path / "a.mp4", pixel_aspect=Fraction(4, 3))
    data = bytearray(path.read_bytes())
    place = data.index(b"pasp") + 4
    data[place : place + 8] = (200).to_bytes(4, "big") + (1).to_bytes(4, "big")
    with pytest.raises(VideoError, match="too-large: 96 x 64 pixels that are 200 times as wide as high: one side is"):
        read_metadata(bytes(data))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (media.empty, "empty"),
        (media.text, "not-a-video"),
        (media.audio_only, "no-video-stream"),
        (media.no_frames, "zero-frames"),
    ],
)
def test_file_without_frames_is_refused_on_opening(tmp_path: Path, make: Any, reason: str) -> None:
    with pytest.raises(VideoError) as caught, open_video(make(tmp_path / "clip.mp4")):
        pytest.fail("opened")
    assert caught.value.reason == reason


@pytest.mark.parametrize("make", [media.truncated, media.damaged])
@pytest.mark.parametrize("checked_pixels", [0, 10**8])
def test_damage_after_the_first_frame_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, checked_pixels: int
) -> None:
    monkeypatch.setattr(reader, "MAX_CHECKED_PIXELS", checked_pixels)
    with pytest.raises(VideoError) as caught, open_video(make(tmp_path / "clip.mp4")) as video:
        video.read([0, *range(20, 32)], 16)
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (av.error.InvalidDataError(1, "invalid data", "/tmp/upload"), "invalid data"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_library_errors_become_video_errors(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, error: Exception, detail: str
) -> None:
    def fail(*arguments: object) -> Iterator[None]:
        raise error

    monkeypatch.setattr(reader, "scan_container", fail)
    opening: AbstractContextManager[object] = open_video(files["h264.mp4"])
    with pytest.raises(VideoError) as caught, opening:
        pytest.fail("opened")
    assert caught.value.reason == "undecodable"
    assert caught.value.detail.startswith(detail)
    assert "/tmp" not in caught.value.detail


def test_open_video_closes_the_file(files: dict[str, Path]) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("counts open files under /proc")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with open_video(files["h264.mp4"]) as video:
            video.read([1], 16)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
