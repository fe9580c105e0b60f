from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mme.config import ClipParams
from mme.video import codec as video
from mme.video.codec import read_frames, write_video
from mme.video.containers import VideoError
from mme.video.reader import OpenVideo
from mme.video.sampling import (
    crop_offsets,
    draw_indices,
    fitted_size,
    sample_views,
    segment_starts,
    square_crops,
    view_indices,
)
from tests.tiny import moving_frames, tiny_config

CLIP = tiny_config().clip  # 4 frames at stride 2: a span of 7


@pytest.mark.parametrize(
    ("num_frames", "segments", "starts"),
    [
        (17, 1, [5]),
        (17, 2, [0, 10]),
        (17, 3, [0, 5, 10]),
        (18, 3, [0, 6, 11]),
        (8, 2, [0, 1]),
        (8, 9, [0, 1]),
        (7, 3, [0]),
        (3, 2, [0]),
        (1, 1, [0]),
    ],
)
def test_segment_starts_are_evenly_spaced(num_frames: int, segments: int, starts: list[int]) -> None:
    assert segment_starts(num_frames, CLIP.span_frames, segments) == starts


def test_segments_cover_first_and_last_frame_and_differ() -> None:
    for num_frames in range(8, 60):
        for segments in range(2, 12):
            starts = segment_starts(num_frames, 7, segments)
            assert starts[0] == 0
            assert starts[-1] + 7 == num_frames
            gaps = np.diff(starts)
            assert gaps.min() >= 1
            assert gaps.max() - gaps.min() <= 1


def test_indices_beyond_the_end_repeat_the_last_frame() -> None:
    assert view_indices(17, CLIP, 2).tolist() == [[0, 2, 4, 6], [10, 12, 14, 16]]
    assert view_indices(4, CLIP, 3).tolist() == [[0, 2, 3, 3]]
    assert view_indices(1, CLIP, 1).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(("segments", "crops"), [(0, 1), (-1, 1), (1, 2), (1, 0)])
def test_invalid_segments_or_crops_are_refused(segments: int, crops: int) -> None:
    with pytest.raises(ValueError, match=r"segments|crops"):
        sample_views(moving_frames(), CLIP, 10, segments, crops)


def test_crop_offsets_along_the_long_side_are_unique() -> None:
    assert crop_offsets(25, 16, 1) == [4]
    assert crop_offsets(25, 16, 3) == [0, 4, 9]
    assert crop_offsets(17, 16, 3) == [0, 1]
    assert crop_offsets(16, 16, 3) == [0]


def test_frames_of_the_target_size_are_not_resampled() -> None:
    wide = moving_frames(height=16, width=25)
    squares = square_crops(wide, 16, 3)
    for square, offset in zip(squares, (0, 4, 9), strict=True):
        assert np.array_equal(square, wide[:, :, offset : offset + 16])
    tall = moving_frames(height=25, width=16)
    squares = square_crops(tall, 16, 3)
    for square, offset in zip(squares, (0, 4, 9), strict=True):
        assert np.array_equal(square, tall[:, offset : offset + 16])


def test_downscaling_averages_areas() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    means = frames.astype(float).reshape(2, 16, 2, 24, 2, 3).mean(axis=(2, 4))
    assert np.abs(square_crops(frames, 16, 1)[0].astype(float) - means[:, :, 4:20]).max() <= 0.5


def test_upscaling_is_bicubic() -> None:
    frames = moving_frames(2, height=8, width=8)
    expected = [cv2.resize(frame, (16, 16), interpolation=cv2.INTER_CUBIC) for frame in frames]
    assert np.array_equal(square_crops(frames, 16, 1)[0], np.stack(expected))


def test_resized_pixels_are_square() -> None:
    assert fitted_size(32, 48, 16) == (16, 24)
    assert fitted_size(32, 48, 16, pixel_aspect=2.0) == (16, 48)
    assert fitted_size(32, 48, 16, pixel_aspect=0.5) == (21, 16)
    circle = np.zeros((1, 32, 16, 3), dtype=np.uint8)  # stored half as wide as shown
    cv2.ellipse(circle[0], (8, 16), (5, 10), 0, 0, 360, (255, 255, 255), -1)
    shown = square_crops(circle, 32, 1, pixel_aspect=2.0)[0, 0, ..., 0] > 127
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 2


def test_views_are_ordered_by_segment_then_crop() -> None:
    frames = moving_frames(17, height=16, width=25)
    prepared = sample_views(frames, CLIP, 10, segments=2, crops=3).frames
    assert prepared.shape == (6, 4, 16, 16, 3)
    assert prepared.dtype == np.uint8
    expected = [frames[start : start + 7 : 2, :, left : left + 16] for start in (0, 10) for left in (0, 4, 9)]
    assert np.array_equal(prepared, np.stack(expected))


def test_path_string_bytes_and_array_give_the_same_views(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, moving_frames(), fps=10, crf=10, gop_frames=4)
    from_path = sample_views(path, CLIP, 10, 2, 3)
    assert from_path.info is not None
    assert (from_path.info.num_frames, from_path.info.width, from_path.info.height) == (20, 48, 32)
    decoded = read_frames(path)
    for source in (str(path), path.read_bytes(), decoded):
        assert np.array_equal(sample_views(source, CLIP, 10, 2, 3).frames, from_path.frames)
    assert sample_views(decoded, CLIP, 10, 2, 3).info is None


def test_only_needed_frames_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, moving_frames(), fps=10, crf=10, gop_frames=4)
    asked: list[list[int]] = []
    read = OpenVideo.read

    def spy(video: OpenVideo, indices: list[int], fps: float) -> object:
        asked.append(indices)
        return read(video, indices, fps)

    monkeypatch.setattr(OpenVideo, "read", spy)
    sample_views(path, CLIP, 10, segments=2, crops=3)
    assert asked == [[0, 2, 4, 6, 13, 15, 17, 19]]


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 16, 16, 3), dtype=np.float32),
        np.zeros((4, 3, 16, 16), dtype=np.uint8),
        np.zeros((16, 16, 3), dtype=np.uint8),
        np.zeros((0, 16, 16, 3), dtype=np.uint8),
    ],
)
def test_arrays_other_than_rgb_frames_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected RGB uint8 \[T, H, W, 3\]"):
        sample_views(frames, CLIP, 10, 1, 1)


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"no video" * 100, "not-a-video")])
def test_unreadable_file_is_a_video_error(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(VideoError) as error:
            sample_views(source, CLIP, 10, 1, 1)
        assert error.value.reason == reason


def test_truncated_file_gives_views_or_a_video_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "decord", None)  # it can crash the process on damaged files
    path = tmp_path / "video.mp4"
    write_video(path, moving_frames(), fps=10, crf=10, gop_frames=4)
    content = path.read_bytes()
    for length in range(1, len(content), max(1, len(content) // 40)):
        try:
            prepared = sample_views(content[:length], CLIP, 10, 2, 1)
        except VideoError:
            continue
        assert prepared.frames.shape[1:] == (4, 16, 16, 3)


def test_views_are_picklable() -> None:
    prepared = sample_views(moving_frames(), CLIP, 10, 1, 1)
    copy = pickle.loads(pickle.dumps(prepared))
    assert np.array_equal(copy.frames, prepared.frames)
    assert pickle.loads(pickle.dumps(CLIP)) == CLIP
    assert isinstance(CLIP, ClipParams)


def test_sampling_imports_no_model() -> None:
    """The module itself and what it imports load neither timm nor the model code."""
    heavy = ("timm", "mme.models", "mme.evaluation.classifier")
    code = f"import sys, mme.video.sampling; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    assert done.stdout.strip() == "[]"


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


SEGMENTS = CLIP.model_copy(update={"sampling": "segments"})


def test_segment_sampling_takes_one_frame_of_each_part() -> None:
    assert view_indices(8, SEGMENTS, 1).tolist() == [[1, 3, 5, 7]]
    assert view_indices(16, SEGMENTS, 2).tolist() == [[1, 5, 9, 13], [3, 7, 11, 15]]
    assert view_indices(4, SEGMENTS, 5).tolist() == [[0, 1, 2, 3]]
    assert view_indices(2, SEGMENTS, 2).tolist() == [[0, 0, 1, 1]]
    with pytest.raises(ValueError, match="segments: 0"):
        view_indices(8, SEGMENTS, 0)


def test_drawn_frames_lie_in_their_parts_and_reach_every_frame() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_indices(rng, 21, SEGMENTS) for _ in range(500)])
    parts = np.arange(5) * 21 / 4
    assert (drawn >= np.floor(parts[:-1])).all()
    assert (drawn <= np.ceil(parts[1:])).all()
    assert set(drawn.ravel()) == set(range(21))
    strided = np.stack([draw_indices(rng, 9, CLIP) for _ in range(100)])
    assert set(map(tuple, strided)) == {(start, start + 2, start + 4, start + 6) for start in range(3)}
    assert draw_indices(rng, 5, CLIP).tolist() == [0, 2, 4, 4]


SNIPPETS = CLIP.model_copy(update={"snippets": 3, "stride_frames": 1})  # of 4 frames each


def test_snippets_lie_in_the_middle_of_equal_parts() -> None:
    """Of 30 frames in three parts, the middles are frames 5, 15 and 25; two clips are a quarter before and after."""
    assert view_indices(30, SNIPPETS, 1).tolist() == [[3, 4, 5, 6, 13, 14, 15, 16, 23, 24, 25, 26]]
    assert view_indices(30, SNIPPETS, 2)[:, ::4].tolist() == [[1, 11, 21], [6, 16, 26]]


def test_snippets_of_short_videos_overlap_and_end_with_the_video() -> None:
    assert view_indices(6, SNIPPETS, 1).tolist() == [[0, 1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5]]
    assert view_indices(3, SNIPPETS, 4).tolist() == [[0, 1, 2, 2] * 3]
    assert view_indices(1, SNIPPETS, 1).tolist() == [[0] * 12]


def test_drawn_snippets_keep_their_order_and_reach_every_frame() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_indices(rng, 30, SNIPPETS) for _ in range(500)]).reshape(500, 3, 4)
    assert (np.diff(drawn, axis=2) == 1).all()
    assert (np.diff(drawn[:, :, 0], axis=1) >= 0).all()
    assert set(drawn.ravel()) == set(range(30))
    middles = drawn[:, :, 0] + 1.5
    assert (np.abs(middles - [5, 15, 25]) <= 5.5).all()


def test_frames_of_segments_are_no_snippets() -> None:
    with pytest.raises(ValueError, match="snippets: 3 snippets need sampling: stride"):
        ClipParams.model_validate(SNIPPETS.model_dump() | {"sampling": "segments"})
