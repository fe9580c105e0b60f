from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from mme.evaluation.classifier import Classifier
from mme.evaluation.windows import classify_windows, follow
from mme.video.codec import write_video
from mme.video.containers import VideoError
from mme.video.live import LiveSource
from tests import media
from tests.evaluation.test_windows import changing_frames
from tests.live import camera
from tests.rtsp import is_installed, rtsp_server
from tests.tiny import save_tiny_folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier.load(save_tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


def large(frames: np.ndarray) -> np.ndarray:
    """Return pictures of four times the size: what the codec loses is small in them."""
    return frames.repeat(4, axis=1).repeat(4, axis=2)


def test_stream_in_real_time_has_the_labels_of_its_file(classifier: Classifier) -> None:
    lines: list[str] = []
    with camera(large(changing_frames(4)), fps=16) as served:
        source, seen_s, windows = LiveSource(served.address, tries=1, first_delay_s=0.05), list[float](), []
        for window in follow(classifier, source, 0.5, 0.25, 4, lines.append):
            seen_s.append(time.monotonic() - served.connected[0])
            windows.append(window)
    expected = classify_windows(classifier, served.sent, 0.5, 0.25, top_k=4).windows
    assert seen_s[-1] >= windows[-1].end_s - 0.25
    assert [(one.start_s, one.end_s) for one in windows] == [(one.start_s, one.end_s) for one in expected]
    for ours, theirs in zip(windows, expected, strict=True):
        assert [one.label for one in ours.predictions] == [one.label for one in theirs.predictions]
        chances = [one.probability for one in ours.predictions]
        assert chances == pytest.approx([one.probability for one in theirs.predictions], abs=1e-5)
    assert lines == [f"{served.address}: the stream has ended; attempt 1 of 1 in 0.05 s"]


@pytest.mark.skipif(not is_installed(), reason="there is no GStreamer with an RTSP server")
def test_rtsp_camera_has_the_labels_of_its_file(classifier: Classifier, tmp_path: Path) -> None:
    path, lines = tmp_path / "clip.mp4", list[str]()
    write_video(path, large(changing_frames(4)), fps=16, crf=10, gop_frames=12)
    expected = classify_windows(classifier, path, 0.5, 0.25, top_k=4).windows
    with rtsp_server(path) as address:
        began_s = time.monotonic()
        windows = list(follow(classifier, LiveSource(address, tries=0), 0.5, 0.25, 4, lines.append))
        assert time.monotonic() - began_s >= expected[-1].end_s - 0.5
    assert [(one.start_s, one.end_s) for one in windows] == [(one.start_s, one.end_s) for one in expected]
    for ours, theirs in zip(windows, expected, strict=True):
        chances = [one.probability for one in ours.predictions]
        assert chances == pytest.approx([one.probability for one in theirs.predictions], abs=1e-5)
    assert lines == []


def test_lost_connection_is_made_again_and_no_window_spans_the_break(classifier: Classifier) -> None:
    frames, lines = large(changing_frames(2)), list[str]()
    with camera(frames, fps=16, breaks=(20, None), speed=4) as served:
        source = LiveSource(served.address, tries=2, first_delay_s=0.2)
        windows = list(follow(classifier, source, 0.5, 0.5, 1, lines.append))
    assert len(served.connected) == 2
    between = served.connected[1] - served.connected[0]
    assert between >= 0.2
    starts = [window.start_s for window in windows]
    assert starts[:2] == [0, 0.5]
    assert starts[2] == pytest.approx(between, abs=2)
    assert [later - starts[2] for later in starts[2:]] == pytest.approx([0, 0.5, 1.0])
    assert sum("attempt 1 of 2" in line for line in lines) == 2


def test_lost_stream_is_an_error_after_its_tries(classifier: Classifier) -> None:
    lines: list[str] = []
    with (
        camera(large(changing_frames(2)), fps=16, breaks=(12,), speed=4) as served,
        pytest.raises(VideoError, match="after 2 attempts"),
    ):
        for _ in follow(classifier, LiveSource(served.address, tries=2, first_delay_s=0.05), 0.5, 0.5, 1, lines.append):
            pass
    assert [line.rpartition("; ")[2] for line in lines] == ["attempt 1 of 2 in 0.05 s", "attempt 2 of 2 in 0.1 s"]


def test_silent_stream_is_lost(classifier: Classifier) -> None:
    frames = large(changing_frames(2))
    with camera(frames, fps=16, speed=0.001) as served, pytest.raises(VideoError, match=r"no data for 0\.3 s"):
        next(follow(classifier, LiveSource(served.address, tries=0, timeout_s=0.3), 0.5, 0.5))


@pytest.mark.parametrize(
    ("address", "options", "words"),
    [
        ("nosuch://camera", {}, "Protocol not found"),
        ("/nowhere/video9", {}, "No such file"),
        ("/nowhere/video9", {"format": "nosuch"}, "no input format nosuch"),
    ],
)
def test_address_that_can_never_be_opened_is_refused_at_once(
    classifier: Classifier, address: str, options: dict[str, str], words: str
) -> None:
    with pytest.raises(VideoError, match=words):
        next(follow(classifier, LiveSource(address, options, tries=100), 1, 1))


def test_file_ends_with_its_last_window(classifier: Classifier, tmp_path: Path) -> None:
    path = media.write(tmp_path / "clip.mkv", num_frames=200)
    expected = classify_windows(classifier, path, 0.5, 0.25).windows
    windows = list(follow(classifier, LiveSource(str(path)), 0.5, 0.25))
    assert [window.start_s for window in windows] == [window.start_s for window in expected]
    assert [w.predictions[0].label for w in windows] == [w.predictions[0].label for w in expected]


def test_slow_model_gets_the_newest_windows(classifier: Classifier) -> None:
    lines: list[str] = []
    with camera(large(changing_frames(12)), fps=16, speed=8) as served:
        source, starts = LiveSource(served.address, tries=0), list[float]()
        for window in follow(classifier, source, 0.25, 0.125, 1, lines.append):
            starts.append(window.start_s)
            time.sleep(0.3)
    assert any("left out" in line for line in lines)
    assert starts == sorted(starts)
    assert max(later - earlier for earlier, later in itertools.pairwise(starts)) > 0.2
    assert starts[-1] == 144 / 16 - 0.25
