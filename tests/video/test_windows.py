from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mme.video.reader import open_video
from mme.video.resampling import iter_resampled
from mme.video.sampling import sample_views
from mme.video.windows import WindowPlan, cut_windows
from tests import media
from tests.tiny import moving_frames, tiny_config


def listed_spans(num_frames: int, window: Fraction, hop: Fraction) -> list[tuple[int, int]]:
    """List the windows one by one, in frames: the literal rule."""
    length = int(window + Fraction(1, 2))
    if num_frames <= length:
        return [(0, num_frames)]
    spans: list[tuple[int, int]] = []
    number = 0
    while True:
        start = int(number * hop + Fraction(1, 2))
        if start + length > num_frames:
            break
        spans.append((start, start + length))
        number += 1
    if start < num_frames and spans[-1][1] < num_frames:
        spans.append((num_frames - length, num_frames))
    return spans


@pytest.mark.parametrize("num_frames", [1, 7, 8, 9, 31, 32, 33, 40, 41, 47, 48, 49, 100])
@pytest.mark.parametrize(("window_s", "hop_s"), [(2, 1), (1, 1), (0.5, 0.3), (0.25, 1.5), (0.5, 0.0625), (1.3, 0.7)])
def test_windows_are_those_of_the_literal_rule(num_frames: int, window_s: float, hop_s: float) -> None:
    plan = WindowPlan(window_s, hop_s, 16)
    spans = listed_spans(num_frames, Fraction(str(window_s)) * 16, Fraction(str(hop_s)) * 16)
    assert plan.num_windows(num_frames) == len(spans)
    assert [plan.span(number, num_frames) for number in range(len(spans))] == spans
    assert plan.span(len(spans), num_frames) is None
    frames = iter(np.zeros((num_frames, 16, 16, 3), np.uint8))
    windows = list(cut_windows(frames, plan, tiny_config().clip, 1, 1))
    assert [(window.start, window.end) for window in windows] == spans


@pytest.mark.parametrize(("segments", "crops"), [(1, 1), (2, 3), (3, 1)])
@pytest.mark.parametrize("num_frames", [3, 20, 43])
def test_window_sees_what_a_video_of_its_frames_does(num_frames: int, segments: int, crops: int) -> None:
    frames, clip = moving_frames(num_frames), tiny_config().clip
    windows = list(cut_windows(iter(frames), WindowPlan(1.0, 0.4, 16), clip, segments, crops))
    assert len(windows) == len(listed_spans(num_frames, Fraction(16), Fraction(32, 5)))
    for window in windows:
        expected = sample_views(frames[window.start : window.end], clip, 16, segments, crops)
        assert np.array_equal(window.views.frames, expected.frames)


@pytest.mark.parametrize("changes", [{}, {"variable_rate": True}, {"fps": Fraction(30000, 1001)}, {"rotation": 90}])
@pytest.mark.parametrize("is_long", [False, True])
def test_window_of_a_file_sees_what_its_trimmed_span_does(
    tmp_path: Path, changes: dict[str, Any], is_long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = media.write(tmp_path / "clip.mov", num_frames=60, **changes)
    if is_long:
        monkeypatch.setattr("mme.video.reader.MAX_CHECKED_PIXELS", 0)
    plan, clip = WindowPlan(0.75, 0.5, 16), tiny_config().clip
    with open_video(path) as video:
        num_frames = video.num_frames(16)
        windows = list(cut_windows(video.frames(16), plan, clip, 2, 1))
    assert len(windows) == plan.num_windows(num_frames) > 3
    for window in windows:
        trimmed = np.stack(list(iter_resampled(path, 16, (window.start / 16, window.end / 16))))
        assert len(trimmed) == window.end - window.start
        assert np.array_equal(window.views.frames, sample_views(trimmed, clip, 16, 2, 1).frames)


def test_pixels_that_are_not_square_are_shown_square(tmp_path: Path) -> None:
    path = media.write(tmp_path / "clip.mp4", num_frames=20, pixel_aspect=Fraction(4, 3))
    clip = tiny_config().clip
    with open_video(path) as video:
        (window,) = cut_windows(video.frames(16), WindowPlan(5, 5, 16), clip, 2, 1, video.info.pixel_aspect)
    assert np.array_equal(window.views.frames, sample_views(path, clip, 16, 2, 1).frames)


@pytest.mark.parametrize(("window_s", "hop_s", "name"), [(0.01, 1, "window_s"), (1, 0.05, "hop_s"), (1, -1, "hop_s")])
def test_less_than_a_frame_is_refused(window_s: float, hop_s: float, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        WindowPlan(window_s, hop_s, 16)
