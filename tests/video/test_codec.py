from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from mme.video import codec
from mme.video.codec import iter_frames, read_frames, write_video
from mme.video.containers import VideoError
from mme.video.reader import read_metadata
from tests import media
from tests.media import Spec

KINDS = {
    "h264.mp4": Spec(size=(64, 64)),
    "h264-row-padding.mp4": Spec(size=(96, 64)),  # decord takes the padding of its rows for pixels here
    "h264-bframes.mp4": Spec(size=(128, 64), bframes=2),
    "h264-sound.mkv": Spec(size=(120, 64), bframes=2, audio=True),
    "vp9.webm": Spec(codec="libvpx-vp9", size=(120, 90), fps=Fraction(25)),
    "mpeg4.avi": Spec(codec="mpeg4", size=(100, 64), fps=Fraction(30000, 1001)),
    "mpeg4-bframes.avi": Spec(codec="mpeg4", size=(100, 64), bframes=2),  # no timestamps: decord seeks wrongly
    "mpeg4-bframes.mp4": Spec(codec="mpeg4", size=(100, 64), bframes=2),  # open groups of pictures: likewise
    "variable-rate.mp4": Spec(size=(176, 144), bframes=2, variable_rate=True),
    "variable-rate.mkv": Spec(size=(176, 144), variable_rate=True),
    "rotated-90.mp4": Spec(size=(120, 64), rotation=90),
    "rotated-180.mov": Spec(size=(120, 64), rotation=180),
    "rotated-270.mkv": Spec(size=(120, 64), rotation=270),
    "wide-pixels.mp4": Spec(size=(120, 64), pixel_aspect=Fraction(4, 3)),
}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {name: media.write(folder / name, spec) for name, spec in KINDS.items()}


@pytest.mark.parametrize("name", KINDS)
def test_metadata_is_that_of_the_written_file(files: dict[str, Path], name: str) -> None:
    spec = KINDS[name]
    info = read_metadata(files[name])
    size = spec.size if spec.rotation % 180 == 0 else spec.size[::-1]
    fps = spec.fps * Fraction(3, 5) if spec.variable_rate else spec.fps  # every third frame lasts three times as long
    assert (info.width, info.height) == size
    assert info.num_frames == spec.num_frames
    assert info.fps == pytest.approx(float(fps), rel=0.03)
    last_s = float(
        (spec.num_frames - 1) // 3 * 5 + (spec.num_frames - 1) % 3 if spec.variable_rate else spec.num_frames - 1
    )
    assert info.duration_s == pytest.approx((last_s + 1) / float(spec.fps), abs=0.002)
    assert info.codec == {"libx264": "h264", "libvpx-vp9": "vp9"}.get(spec.codec, spec.codec)
    assert info.pixel_aspect == pytest.approx(float(spec.pixel_aspect))
    assert read_metadata(files[name].read_bytes()) == info


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_upright_and_in_presentation_order(files: dict[str, Path], name: str) -> None:
    spec = KINDS[name]
    frames = read_frames(files[name])
    height, width = frames.shape[1:3]
    assert frames.dtype == np.uint8
    assert frames.shape == (spec.num_frames, height, width, 3)
    assert media.frame_numbers(frames) == list(range(spec.num_frames))
    error = np.abs(frames.astype(int) - media.pictures(spec.num_frames, (width, height))).mean()
    assert error < 6, f"colours are off by {error:.1f} grey levels"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_read_frames_by_index_in_any_order(files: dict[str, Path], name: str, as_bytes: bool) -> None:
    source = files[name].read_bytes() if as_bytes else files[name]
    indices = [31, 3, 3, 17, 0, 30, 12, 11, 13]
    frames = read_frames(source, indices)
    assert media.frame_numbers(frames) == indices
    assert [media.frame_numbers(read_frames(source, [index]))[0] for index in indices] == indices
    np.testing.assert_allclose(frames.astype(int), read_frames(source)[indices].astype(int), atol=2)


@pytest.mark.parametrize("name", KINDS)
def test_decord_and_pyav_give_equal_frames(files: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    indices = range(1, 32, 5)
    with_decord = read_frames(files[name], indices)
    monkeypatch.setattr(codec, "decord", None)
    np.testing.assert_allclose(with_decord.astype(int), read_frames(files[name], indices).astype(int), atol=2)


@pytest.mark.parametrize("name", ["h264.mp4", "vp9.webm", "wide-pixels.mp4", "variable-rate.mkv"])
def test_decord_reads_the_files_it_is_used_for(files: dict[str, Path], name: str) -> None:
    pytest.importorskip("decord")
    assert codec._suits_decord(files[name])
    frames = codec._read_decord(files[name], range(32))
    np.testing.assert_allclose(frames.astype(int), codec._read_pyav(files[name], None).astype(int), atol=2)


def test_decoding_is_deterministic_and_equals_streaming(files: dict[str, Path]) -> None:
    path = files["h264-bframes.mp4"]
    first = read_frames(path)
    np.testing.assert_array_equal(first, read_frames(path))
    np.testing.assert_array_equal(first, np.stack(list(iter_frames(path))))


def test_out_of_range_error_names_file_and_index(files: dict[str, Path]) -> None:
    for name in ("h264.mp4", "h264-row-padding.mp4", "mpeg4.avi"):
        with pytest.raises(ValueError, match=rf"{name}: frame 32 is out of range, the video has 32 frames"):
            read_frames(files[name], [0, 32])
        with pytest.raises(ValueError, match=r"frame -1 is out of range"):
            read_frames(files[name], [-1])
        with pytest.raises(ValueError, match=r"no frame asked for"):
            read_frames(files[name], [])


def _pictures() -> np.ndarray:
    return media.pictures(20, (96, 64))


def test_written_videos_are_in_the_normal_form(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", _pictures(), 30000 / 1001, crf=14, gop_frames=8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams[0]
        assert isinstance(stream, VideoStream)
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert not stream.codec_context.has_b_frames
        assert stream.average_rate == Fraction(30000, 1001)
        assert stream.codec_context.color_range == 1  # limited
        assert {stream.codec_context.colorspace, stream.codec_context.color_primaries} == {1}  # BT.709
        assert stream.codec_context.color_trc == 1
        keys = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
    assert keys == [index % 8 == 0 for index in range(20)]


def test_written_videos_are_quick_to_decode(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", _pictures(), 25, crf=30, gop_frames=8)
    picture_parameters = _PictureParameters(tmp_path / "a.mp4")
    assert not picture_parameters.entropy_coding_mode
    assert not picture_parameters.weighted_pred

    # Without a deblocking filter in the stream there is nothing to skip.
    def decode(**options: str) -> np.ndarray:
        with av.open(str(tmp_path / "a.mp4")) as container:
            container.streams.video[0].codec_context.options = options
            return np.stack([frame.to_ndarray() for frame in container.decode(video=0)])

    np.testing.assert_array_equal(decode(), decode(skip_loop_filter="all"))


class _PictureParameters:
    """The first fields of the picture parameter set of an H.264 stream in MP4 (ISO/IEC 14496-10, 7.3.2.2)."""

    def __init__(self, path: Path) -> None:
        with av.open(str(path)) as container:
            extradata = container.streams.video[0].codec_context.extradata
        assert extradata is not None
        after_sps = 8 + int.from_bytes(extradata[6:8])  # ISO/IEC 14496-15, 5.2.4.1: one sequence parameter set
        num_bytes = int.from_bytes(extradata[after_sps + 1 : after_sps + 3])
        unit = extradata[after_sps + 3 : after_sps + 3 + num_bytes]
        assert unit[0] & 31 == 8
        self._bits = "".join(f"{byte:08b}" for byte in unit[1:])
        for _ in ("pic_parameter_set_id", "seq_parameter_set_id"):
            self._exp_golomb()
        self.entropy_coding_mode = bool(self._take(1))
        self._take(1)
        for _ in ("num_slice_groups_minus1", "num_ref_idx_l0", "num_ref_idx_l1"):
            self._exp_golomb()
        self.weighted_pred = bool(self._take(1))

    def _take(self, count: int) -> int:
        taken, self._bits = self._bits[:count], self._bits[count:]
        return int(taken, 2)

    def _exp_golomb(self) -> int:
        num_zeros = len(self._bits) - len(self._bits.lstrip("0"))
        return self._take(2 * num_zeros + 1) - 1


def test_equal_frames_give_equal_bytes(tmp_path: Path) -> None:
    sizes = [(48, 32), (64, 64), (96, 64)]
    seen: dict[tuple[int, int], set[bytes]] = {size: set() for size in sizes}
    for turn in range(15):
        for size in sizes:
            write_video(tmp_path / "a.mp4", media.pictures(24, size), 16, crf=14, gop_frames=8)
            seen[size].add((tmp_path / "a.mp4").read_bytes())
        np.full(10007 * turn + 1, 255, np.uint8).sum()  # memory that the encoder gets next is full of something else
    assert [len(contents) for contents in seen.values()] == [1, 1, 1]
    write_video(tmp_path / "a.mp4", media.pictures(24, sizes[0]), 16, crf=15, gop_frames=8)
    assert (tmp_path / "a.mp4").read_bytes() not in seen[sizes[0]]


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (0, 0, 0), (255, 255, 255)])
def test_colours_survive_the_round_trip(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    frames = np.full((4, 32, 32, 3), colour, dtype=np.uint8)
    write_video(tmp_path / "a.mp4", frames, 16, crf=1, gop_frames=4)
    np.testing.assert_allclose(read_frames(tmp_path / "a.mp4").astype(int), frames, atol=4)


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (np.zeros((2, 64, 63, 3), np.uint8), 16, "63 x 64 px"),
        (np.zeros((2, 63, 64, 3), np.uint8), 16, "64 x 63 px"),
        (np.zeros((0, 64, 64, 3), np.uint8), 16, "T > 0"),
        (np.zeros((2, 64, 64), np.uint8), 16, "T, H, W, 3"),
        (np.zeros((2, 64, 64, 3), np.float32), 16, "float32"),
        (np.zeros((2, 64, 64, 3), np.uint8), 0, "not a frame rate"),
    ],
)
def test_invalid_frames_are_not_written(tmp_path: Path, frames: np.ndarray, fps: float, message: str) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(ValueError, match=message) as caught:
        write_video(path, frames, fps, crf=14, gop_frames=8)
    assert "a.mp4" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("broken")
    whole = media.write(folder / "whole.mp4").read_bytes()
    (folder / "no-index.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "playlist.mp4").write_text(f"#EXTM3U\n#EXTINF:2,\n{folder / 'whole.mp4'}\n#EXT-X-ENDLIST\n", "utf-8")
    return {
        "empty": media.empty(folder / "empty.mp4"),
        "text": media.text(folder / "text.mp4"),
        "playlist": folder / "playlist.mp4",
        "sound": media.audio_only(folder / "sound.mp4"),
        "no-frames": media.no_frames(folder / "no-frames.mp4"),
        "no-index": folder / "no-index.mp4",
        "cut": media.truncated(folder / "cut.mp4"),
        "damaged": media.damaged(folder / "damaged.mp4"),
    }


REASONS = {
    "empty": "empty",
    "text": "not-a-video",
    "playlist": "not-a-video",
    "sound": "no-video-stream",
    "no-frames": "zero-frames",
    "no-index": "truncated",
    "cut": "truncated",
    "damaged": "truncated",
}


@pytest.mark.parametrize("kind", REASONS)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_reading_a_broken_file_gives_the_reason(
    broken: dict[str, Path], kind: str, as_bytes: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    source = broken[kind].read_bytes() if as_bytes else broken[kind]
    for indices in (None, [0, 40]):
        with pytest.raises(VideoError) as caught:
            read_frames(source, indices)
        assert caught.value.reason == REASONS[kind]
        assert ("bytes>" if as_bytes else broken[kind].name) in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [kind for kind in REASONS if kind not in {"cut", "damaged"}])
def test_metadata_of_a_broken_file_gives_the_reason(broken: dict[str, Path], kind: str) -> None:
    with pytest.raises(VideoError) as caught:
        read_metadata(broken[kind])
    assert caught.value.reason == REASONS[kind]


def test_video_error_is_picklable() -> None:
    error = pickle.loads(pickle.dumps(VideoError("truncated", Path("a.mp4"), "3 frames")))
    assert (error.reason, error.source, error.detail, str(error)) == (
        "truncated",
        "a.mp4",
        "3 frames",
        "a.mp4: truncated: 3 frames",
    )


def test_file_name_like_a_protocol_is_opened_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("concat:a.mp4")
    media.write(tmp_path / "a.mp4").rename(path)
    assert media.frame_numbers(read_frames(path, [5])) == [5]


def test_files_are_closed(files: dict[str, Path], broken: dict[str, Path]) -> None:
    def num_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    if not Path("/proc/self/fd").exists():
        pytest.skip("counts open files under /proc")
    before = num_open()
    for _ in range(5):
        read_metadata(files["h264.mp4"])
        read_frames(files["h264.mp4"], [1])
        next(iter_frames(files["h264.mp4"]))
        for path in broken.values():
            with pytest.raises(VideoError):
                read_frames(path, [40])
    assert num_open() <= before
