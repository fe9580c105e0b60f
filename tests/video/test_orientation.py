from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from hypothesis import given
from hypothesis import strategies as st

from mme.video.codec import iter_frames, read_frames
from mme.video.orientation import UPRIGHT, nearest_orientation
from mme.video.reader import open_video, read_metadata
from mme.video.resampling import iter_resampled
from tests import media
from tests.odd_times import copied
from tests.reference.orientation import TURNS_AND_MIRRORS, matrix_of, nearest, shown

SIZE = (48, 32)


def stored_frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return media.write(tmp_path_factory.mktemp("plain") / "a.mp4", num_frames=12, size=SIZE)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        *((suffix, "libx264") for suffix in (".mp4", ".mov", ".mkv")),
        (".mov", "libx265"),
        (".webm", "libvpx-vp9"),
    ],
)
@pytest.mark.parametrize("numbers", TURNS_AND_MIRRORS)
def test_container_says_how_the_picture_is_shown(
    tmp_path: Path, suffix: str, codec: str, numbers: tuple[int, int, int, int]
) -> None:
    size = (96, 64) if codec == "libx265" else SIZE  # x265 ends the process at less
    path = media.write(tmp_path / f"a{suffix}", num_frames=12, size=size, codec=codec, matrix=matrix_of(*numbers))
    expected = [shown(frame, matrix_of(*numbers)) for frame in stored_frames(path)]
    info = read_metadata(path)
    assert (info.height, info.width) == expected[0].shape[:2]
    np.testing.assert_array_equal(read_frames(path), expected)
    np.testing.assert_array_equal(np.stack(list(iter_frames(path))), expected)
    np.testing.assert_array_equal(np.stack(list(iter_resampled(path, 16, (0.25, 0.75)))), expected[4:])
    with open_video(path) as video:
        np.testing.assert_allclose(video.read([2, 11], 16).astype(int), np.stack([expected[2], expected[11]]), atol=2)


@pytest.mark.parametrize("numbers", TURNS_AND_MIRRORS)
def test_single_frames_by_index_are_upright(tmp_path: Path, numbers: tuple[int, int, int, int]) -> None:
    path = media.write(tmp_path / "a.mp4", num_frames=30, size=(64, 64), matrix=matrix_of(*numbers))
    expected = shown(stored_frames(path)[29], matrix_of(*numbers))
    np.testing.assert_allclose(read_frames(path, [29])[0].astype(int), expected, atol=2)  # decord, if it can


@pytest.mark.parametrize("flip", ["", "horizontal"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_orientation_in_the_coded_stream_holds_until_the_next(
    plain: Path, tmp_path: Path, suffix: str, degrees: int, flip: str
) -> None:
    path = tmp_path / f"a{suffix}"
    options = f"display_orientation=insert:rotate={degrees}" + (f":flip={flip}" if flip else "")
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        (stream,) = source.streams.video
        copy = target.add_stream_from_template(stream)
        insert = BitStreamFilterContext(f"h264_metadata={options}", stream)
        for packet in [*(packet for packet in source.demux(stream) if packet.size), None]:
            for changed in insert.filter(packet):
                changed.stream = copy
                target.mux(changed)
    turn = {0: (1, 0, 0, 1), 90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), 270: (0, 1, -1, 0)}[degrees]
    a, b, c, d = turn
    mirror = (-a, -b, c, d) if flip else turn  # the stored picture is mirrored, then turned counter-clockwise
    expected = [shown(frame, matrix_of(*mirror)) for frame in stored_frames(plain)]
    np.testing.assert_array_equal(read_frames(path), expected)
    np.testing.assert_array_equal(read_frames(path, [11, 3]), [expected[11], expected[3]])
    np.testing.assert_array_equal(np.stack(list(iter_resampled(path, 16, (0.25, 0.75)))), expected[4:])


def hevc_orientation(degrees: int, flip_x: bool, flip_y: bool) -> bytes:
    """Return an SEI unit of HEVC: the picture is flipped, then turned counter-clockwise."""
    bits = f"0{flip_x:d}{flip_y:d}{degrees * 2**16 // 360:016b}1" + "1000"  # not cancelled ... persistent, alignment
    unit = bytes([39 << 1, 1, 47, 3]) + int(bits, 2).to_bytes(3, "big") + b"\x80"
    return re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\x00\x00\x03", unit)


@pytest.mark.parametrize("numbers", TURNS_AND_MIRRORS)
@pytest.mark.parametrize("suffix", [".mp4", ".hevc"])
def test_orientation_in_the_stream_of_hevc(tmp_path: Path, suffix: str, numbers: tuple[int, int, int, int]) -> None:
    plain = media.write(tmp_path / "plain.mp4", num_frames=12, size=(96, 64), codec="libx265")
    stored = stored_frames(plain)
    matrix = matrix_of(*numbers)
    degrees, flip_x = next(
        (degrees, flip)
        for degrees, (a, b, c, d) in {
            0: (1, 0, 0, 1),
            90: (0, -1, 1, 0),
            180: (-1, 0, 0, -1),
            270: (0, 1, -1, 0),
        }.items()
        for flip in (False, True)
        if numbers == ((-a, -b, c, d) if flip else (a, b, c, d))
    )
    path = tmp_path / f"a{suffix}"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        (stream,) = source.streams.video
        copy = target.add_stream_from_template(stream)
        unit = hevc_orientation(degrees, flip_x, flip_y=False)
        for number, packet in enumerate(packet for packet in source.demux(stream) if packet.size):
            told = len(unit).to_bytes(4, "big") + unit if number == 0 else b""
            changed = copied(packet, data=told + bytes(packet))
            changed.stream = copy
            target.mux(changed)
    expected = [shown(frame, matrix) for frame in stored]
    info = read_metadata(path)
    assert (info.height, info.width) == expected[0].shape[:2]
    np.testing.assert_array_equal(read_frames(path), expected)
    with open_video(path) as video:
        np.testing.assert_array_equal(video.read([0, 11], info.fps), [expected[0], expected[11]])
    frames = np.stack(list(iter_resampled(path, info.fps)))
    np.testing.assert_array_equal(frames, expected)


@given(st.floats(0, 360), st.booleans(), st.floats(0.01, 100), st.integers(-(2**31), 2**31 - 1))
def test_other_angles_are_the_nearest_of_eight(degrees: float, mirrored: bool, scale: float, shift: int) -> None:
    angle = math.radians(degrees)
    a, b, c, d = math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
    if abs(degrees % 90 - 45) < 0.1:
        return
    if mirrored:
        a, b = -a, -b
    found = nearest_orientation(
        (*matrix_of(scale * a, scale * b, scale * c, scale * d)[:6], shift, -shift - 1, 1 << 30)
    )
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    np.testing.assert_array_equal(found.apply(picture), shown(picture, matrix_of(*nearest(a, b, c, d))))


@pytest.mark.parametrize("numbers", [(0, 0, 0, 0), (1, 0, 1, 0), (1, 1, 1, 1), (0, 0, 0, 1), (-1, 0, 0, 0)])
def test_matrix_without_an_area_is_upright(numbers: tuple[int, int, int, int]) -> None:
    assert nearest_orientation(matrix_of(*numbers)) == UPRIGHT


def patch_matrix(data: bytes, numbers: tuple[int, ...], box: bytes, offset: int) -> bytes:
    at = data.index(box) + 4 + offset
    return data[:at] + b"".join(number.to_bytes(4, "big", signed=True) for number in numbers) + data[at + 36 :]


def in_track(data: bytes, numbers: tuple[int, ...]) -> bytes:
    return patch_matrix(data, numbers, b"tkhd", 40)


def in_movie(data: bytes, numbers: tuple[int, ...]) -> bytes:
    return patch_matrix(data, numbers, b"mvhd", 36)


@pytest.mark.parametrize("place", [in_track, in_movie])
@pytest.mark.parametrize("numbers", TURNS_AND_MIRRORS)
@pytest.mark.parametrize("shift", [0, 77])
def test_matrix_of_track_or_movie_with_any_translation(
    plain: Path, place: Callable[[bytes, tuple[int, ...]], bytes], numbers: tuple[int, int, int, int], shift: int
) -> None:
    matrix = matrix_of(*numbers, x=shift, y=-shift)
    expected = [shown(frame, matrix) for frame in stored_frames(plain)]
    np.testing.assert_array_equal(read_frames(place(plain.read_bytes(), matrix)), expected)


@pytest.mark.parametrize("numbers", [(0,) * 9, (-1,) * 9, (2**31 - 1,) * 9, (-(2**31),) * 9])
def test_garbage_in_the_matrix_leaves_the_picture(plain: Path, numbers: tuple[int, ...]) -> None:
    data = in_track(plain.read_bytes(), numbers)
    np.testing.assert_array_equal(read_frames(data), stored_frames(plain))


def test_movie_and_track_are_combined(plain: Path) -> None:
    turned = matrix_of(0, 1, -1, 0)
    data = in_movie(in_track(plain.read_bytes(), turned), turned)
    np.testing.assert_array_equal(read_frames(data), [frame[::-1, ::-1] for frame in stored_frames(plain)])
