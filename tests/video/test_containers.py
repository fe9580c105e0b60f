from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mme.ingest.listing import VIDEO_SUFFIXES
from mme.video.codec import read_frames
from mme.video.containers import VideoError, open_stream
from mme.video.reader import read_metadata
from mme.video.resampling import iter_resampled
from tests import corpus, media


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


def test_suffix_of_every_container_is_that_of_a_video() -> None:
    assert {Path(name).suffix for name in corpus.CONTAINERS} <= VIDEO_SUFFIXES


def numbers_drawn(data: bytes) -> list[int]:
    return media.frame_numbers(read_frames(data))


ALL_NUMBERS = list(range(corpus.NUM_FRAMES))


@pytest.mark.parametrize("name", corpus.CONTAINERS)
def test_every_container_and_codec_is_read(folder: Path, name: str) -> None:
    assert numbers_drawn(corpus.good(folder, name)) == ALL_NUMBERS


@pytest.mark.parametrize("name", corpus.BEGINNINGS)
def test_files_that_begin_otherwise_are_read(folder: Path, name: str) -> None:
    assert numbers_drawn(corpus.BEGINNINGS[name](folder)) == ALL_NUMBERS


@pytest.mark.parametrize("name", ["h264.mp4", "h264.ts", "h264.h264", "mpeg1.mpg", "jpegs.mjpeg"])
@pytest.mark.parametrize("other", ["clip.jpg", "clip%03d.png", "clip.m3u8", "clip.txt", "concat:a.mp4", "clip"])
def test_the_name_of_a_file_does_not_matter(folder: Path, tmp_path: Path, name: str, other: str) -> None:
    path = tmp_path / other
    path.write_bytes(corpus.good(folder, name))
    assert read_metadata(path) == read_metadata(path.read_bytes())


@pytest.mark.parametrize("name", corpus.PHOTOS)
def test_photos_are_no_videos(name: str) -> None:
    with pytest.raises(VideoError, match="not-a-video: a still photo"):
        read_metadata(corpus.PHOTOS[name]())


@pytest.mark.parametrize("padding", [b"", bytes(700)])
def test_row_of_large_jpegs_is_a_video(tmp_path: Path, padding: bytes) -> None:
    data = padding.join(corpus.large_jpeg(index) for index in range(6))
    path = tmp_path / "row"
    path.write_bytes(data)
    info = read_metadata(data)
    assert (info.num_frames, info.fps, info.width) == (6, 25, 900)
    assert info.duration_s == pytest.approx(0.24)
    assert read_metadata(path) == info
    frames = np.stack(list(iter_resampled(path, 25)))
    assert len({frame.tobytes() for frame in frames}) == len(frames) == 6


def test_header_that_asks_for_too_much_memory_is_an_error_of_the_file(folder: Path) -> None:
    data = bytearray(corpus.good(folder, "h264.mp4"))
    at = data.index(b"stts") + 8
    data[at : at + 4] = b"\x7f\xff\xff\xf0"
    with pytest.raises(VideoError, match="too-large: decoding needs more memory than there is") as caught:
        read_metadata(bytes(data))
    assert isinstance(caught.value.__cause__, MemoryError)


def test_animated_webp_is_refused_with_advice() -> None:
    with pytest.raises(VideoError, match="not-a-video: an animated WebP, which FFmpeg cannot decode"):
        read_metadata(corpus.animation("WEBP"))


@pytest.mark.parametrize("suffix", ["", ".mp4", ".ts", ".m3u8", ".sdp", ".mpd"])
@pytest.mark.parametrize("name", corpus.PLAYLISTS)
def test_playlists_are_not_followed(folder: Path, tmp_path: Path, name: str, suffix: str) -> None:
    video = tmp_path / "secret.ts"
    video.write_bytes(corpus.good(folder, "h264.ts"))
    playlist = tmp_path / f"list{suffix}"
    for place in (str(video), video.name, f"file://{video}", f"fd:{video}", f"concat:{video}"):
        playlist.write_text(corpus.PLAYLISTS[name].format(path=place), encoding="utf-8")
        for source in (playlist, playlist.read_bytes()):
            with pytest.raises(VideoError, match="not-a-video: starts with"):
                read_metadata(source)


def test_ffmpeg_alone_follows_the_playlist(folder: Path, tmp_path: Path) -> None:
    """Otherwise the test above would show nothing."""
    (tmp_path / "secret.ts").write_bytes(corpus.good(folder, "h264.ts"))
    (tmp_path / "list.m3u8").write_text(corpus.PLAYLISTS["HLS"].format(path="secret.ts"))
    with av.open(str(tmp_path / "list.m3u8")) as container:
        assert sum(1 for _ in container.decode(video=0)) == corpus.NUM_FRAMES


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_film_with_a_cover_picture(tmp_path: Path, suffix: str) -> None:
    film = media.write(tmp_path / f"film{suffix}", num_frames=corpus.NUM_FRAMES)
    cover = corpus.jpeg(0)
    assert numbers_drawn(corpus.with_cover(film, tmp_path / f"cover{suffix}", cover).read_bytes()) == ALL_NUMBERS
    alone = corpus.with_cover(None, tmp_path / f"sound{suffix}", cover)
    with pytest.raises(VideoError, match="no-video-stream"):
        read_metadata(alone)


@pytest.mark.parametrize("num_photos", [1, 8])
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_film_beside_large_photos(tmp_path: Path, suffix: str, num_photos: int) -> None:
    """Cameras store a preview and phones a few photos as a video stream of their own, whose bit rate is higher."""
    film = media.write(tmp_path / "film.mp4", num_frames=48)
    path = tmp_path / f"both{suffix}"
    with av.open(str(film)) as old, av.open(str(path), "w") as new:
        photos = new.add_stream("libx264", rate=16, width=640, height=480, pix_fmt="yuv420p", options={"bf": "0"})
        main = new.add_stream_from_template(old.streams.video[0])
        for index in range(num_photos):
            photo = av.VideoFrame.from_ndarray(np.full((480, 640, 3), 20 * index, np.uint8), format="rgb24")
            photo.pts = index
            new.mux(photos.encode(photo))
        new.mux(photos.encode(None))
        corpus.copy_packets(old, new, main)
    assert media.frame_numbers(np.stack(list(iter_resampled(path, 16)))) == [*range(48)]
    assert media.frame_numbers(read_frames(path, [7])) == [7]  # much is skipped, so that decord is preferred


def test_stream_without_a_decoder_is_left_for_one_that_has_one(folder: Path) -> None:
    data = corpus.good(folder, "h264.mp4").replace(b"avc1", b"zzzz")
    with pytest.raises(VideoError, match="undecodable: no decoder"):
        read_metadata(data)


def test_segment_without_its_beginning_says_so(folder: Path) -> None:
    data = corpus.good(folder, "fragmented.mp4")
    with pytest.raises(VideoError, match="without the initialisation segment"):
        read_metadata(corpus.box(b"styp") + data[data.index(b"moof") - 4 :])


@pytest.mark.parametrize("data", [b"zip", bytes(10_000), b"\x47" * 3, b"<html>" * 99, corpus.noise(5000)])
def test_other_files_are_no_videos(data: bytes) -> None:
    with pytest.raises(VideoError, match="not-a-video: starts with"):
        read_metadata(data)


def test_a_pointer_of_git_lfs_says_what_to_do() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
    with pytest.raises(
        VideoError, match="not-a-video: a pointer of Git LFS: fetch what it stands for by `git lfs pull`"
    ):
        read_metadata(pointer)


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_stream(tmp_path / "none.mp4"):
        pass


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_corrupted_file_is_read_or_raises_video_error(folder: Path, data: st.DataObject) -> None:
    good = corpus.good(folder, data.draw(st.sampled_from(list(corpus.CONTAINERS)), "container"))
    corrupted = bytearray(good)
    for _ in range(data.draw(st.integers(1, 20), "bytes to change")):
        corrupted[data.draw(st.integers(0, len(good) - 1), "position")] = data.draw(st.integers(0, 255), "value")
    length = data.draw(st.integers(0, len(good)), "length")
    for read in (read_metadata, read_frames):
        with contextlib.suppress(VideoError):
            read(bytes(corrupted[:length]))


PLACES = [
    *itertools.product([".mp4", ".mov", ".mkv", ".webm"], ["container", "stream", "chapter"]),
    *itertools.product([".avi"], ["container", "stream"]),
    (".mkv", "attachment"),
]


@pytest.mark.parametrize("title", corpus.TITLES)
@pytest.mark.parametrize(("suffix", "place"), PLACES)
def test_a_tag_that_is_not_utf8_does_not_matter(tmp_path: Path, suffix: str, place: str, title: str) -> None:
    tagged = corpus.tagged(tmp_path, suffix, corpus.TITLES[title], place)
    plain = tmp_path / f"plain{suffix}"
    tagged_info, info = read_metadata(tagged), read_metadata(plain)
    assert tagged_info == replace(info, duration_s=tagged_info.duration_s)
    assert tagged_info.duration_s == pytest.approx(info.duration_s, abs=0.002)  # Matroska rounds
    np.testing.assert_array_equal(read_frames(tagged), read_frames(plain))


@pytest.mark.parametrize("kind", corpus.COMPANIONS)
def test_streams_beside_the_video_do_not_matter(tmp_path: Path, kind: str) -> None:
    assert numbers_drawn(corpus.accompanied(tmp_path, kind)) == ALL_NUMBERS
