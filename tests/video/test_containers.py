from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mme.video.codec import read_frames
from mme.video.containers import VideoError, check_signature
from mme.video.metadata import read_metadata
from tests import media


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return media.write(tmp_path_factory.mktemp("good") / "a.mp4", num_frames=8, size=(32, 32)).read_bytes()


@pytest.mark.parametrize(
    "text", [b"GET / HTTP/1.1\r\n", b"ffconcat version 1.0\n", b"#EXTM3U\n", b"v=0\n", b"<html>" * 99]
)
def test_text_files_are_refused_by_signature(text: bytes) -> None:
    with pytest.raises(VideoError, match="not-a-video"):
        check_signature(text)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi"])
def test_video_signatures_are_accepted(tmp_path: Path, suffix: str) -> None:
    check_signature(media.write(tmp_path / f"a{suffix}", codec="mpeg4", num_frames=4))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_corrupted_file_is_read_or_raises_video_error(good: bytes, data: st.DataObject) -> None:
    corrupted = bytearray(good)
    for _ in range(data.draw(st.integers(1, 20), "bytes to change")):
        corrupted[data.draw(st.integers(0, len(good) - 1), "position")] = data.draw(st.integers(0, 255), "value")
    length = data.draw(st.integers(0, len(good)), "length")
    for read in (read_metadata, read_frames):
        with contextlib.suppress(VideoError):
            read(bytes(corrupted[:length]))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_tag_that_is_not_utf8_does_not_matter(tmp_path: Path, suffix: str) -> None:
    path = media.write(tmp_path / f"video{suffix}", title="caf_ in Z_rich")
    original = read_frames(path)
    tagged = path.read_bytes().replace(b"caf_ in Z_rich", b"caf\xe9 in Z\xfcrich")
    assert tagged != path.read_bytes()
    assert read_metadata(tagged).num_frames == len(original)
    np.testing.assert_array_equal(read_frames(tagged), original)
