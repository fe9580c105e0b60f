"""Labels along a video: one per window, and neighbours of one label joined into segments."""

from __future__ import annotations

import csv
import io
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mme.evaluation.classifier import Classifier, Prediction
from mme.video.live import LiveSource, live_windows
from mme.video.metadata import VideoInfo
from mme.video.reader import open_video
from mme.video.sampling import VideoInput, num_frames_of
from mme.video.windows import Window, WindowPlan, cut_windows

log = logging.getLogger(__name__)

MAX_VIEWS = 32
"""Views in one forward pass."""

CSV_COLUMNS = ("start_s", "end_s", "label", "probability", "segment", "segment_start_s", "segment_end_s")


@dataclass(frozen=True)
class LabelledWindow:
    """Labels of one window: seconds from the beginning of the video, and the most probable labels, best first."""

    start_s: float
    end_s: float
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True)
class Segment:
    """Part of a video with one label.

    Attributes:
        start_s: seconds from the beginning of the video.
        end_s: seconds from the beginning of the video.
        label: the most probable label of all its windows.
        probability: mean of the label's probability over the windows.
        num_windows: windows that were joined.
    """

    start_s: float
    end_s: float
    label: str
    probability: float
    num_windows: int


@dataclass(frozen=True)
class WindowedVideo:
    """Labels of the windows of one video.

    Attributes:
        windows: in temporal order.
        video: metadata of the file; None if decoded frames were given.
    """

    windows: tuple[LabelledWindow, ...]
    video: VideoInfo | None

    @property
    def segments(self) -> list[Segment]:
        """Neighbours of one label, joined."""
        return joined(self.windows)


def windows_document(
    windows: Sequence[LabelledWindow], segments: Sequence[Segment], window_s: float, hop_s: float
) -> dict[str, Any]:
    """Return windows and segments as values for JSON."""
    return {
        "window_s": window_s,
        "hop_s": hop_s,
        "windows": [asdict(window) for window in windows],
        "segments": [asdict(segment) for segment in segments],
    }


def classify_windows(
    classifier: Classifier,
    video: VideoInput,
    window_s: float,
    hop_s: float,
    top_k: int = 1,
    segments: int | None = None,
    crops: int | None = None,
) -> WindowedVideo:
    """Classify windows along a video of any length, decoded once.

    A window has the label that ``Classifier.classify`` gives to a video that begins and ends with it; see
    ``mme.video.windows.WindowPlan`` for where windows begin.

    Args:
        classifier: the model.
        video: as for ``Classifier.classify``.
        window_s: length of a window in seconds.
        hop_s: seconds from the beginning of one window to that of the next.
        top_k: number of labels per window.
        segments: clips along each window; None = the model folder's setting.
        crops: squares per frame, 1 or 3; None = the model folder's setting.

    Raises:
        VideoError: the video cannot be decoded; see its ``reason``.
        ValueError: an argument is out of range.
    """
    config = classifier.config
    plan = WindowPlan(window_s, hop_s, config.fps)
    views = config.views
    taken = (views.segments if segments is None else segments, views.crops if crops is None else crops)
    if isinstance(video, np.ndarray):
        num_frames_of(video)
        windows = cut_windows(video, plan, config.clip, *taken)
        return WindowedVideo(tuple(label_windows(classifier, windows, top_k)), None)
    with open_video(Path(video) if isinstance(video, str) else video) as opened:
        windows = cut_windows(opened.frames(config.fps), plan, config.clip, *taken, opened.info.pixel_aspect)
        return WindowedVideo(tuple(label_windows(classifier, windows, top_k)), opened.info)


def follow(
    classifier: Classifier,
    source: LiveSource,
    window_s: float,
    hop_s: float,
    top_k: int = 1,
    report: Callable[[str], None] = log.warning,
) -> Iterator[LabelledWindow]:
    """Label the windows of a live stream as they come, in seconds from its first picture.

    Args:
        classifier: the model.
        source: address of the stream, and what to do when it is lost.
        window_s: length of a window in seconds.
        hop_s: seconds from the beginning of one window to that of the next.
        top_k: number of labels per window.
        report: called with a line about every lost connection and every window that was left out.

    Raises:
        VideoError: the stream cannot be opened, or was lost for good.
        ValueError: an argument is out of range.
    """
    config = classifier.config
    plan = WindowPlan(window_s, hop_s, config.fps)
    for live in live_windows(source, plan, config.clip, config.views.segments, config.views.crops, report):
        (one,) = label_windows(classifier, [live.window], top_k)
        yield LabelledWindow(live.since_s + one.start_s, live.since_s + one.end_s, one.predictions)


def label_windows(
    classifier: Classifier, windows: Iterable[Window], top_k: int, max_views: int = MAX_VIEWS
) -> Iterator[LabelledWindow]:
    """Label windows as they come, up to ``max_views`` views in one forward pass.

    Raises:
        ValueError: ``top_k`` is below 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k: {top_k} must be at least 1")
    waiting: list[Window] = []
    for window in itertools.chain(windows, [None]):
        if window is not None:
            waiting.append(window)
        if window is None or sum(len(one.views.frames) for one in waiting) >= max_views:
            for one, logits in zip(waiting, classifier.predict([one.views for one in waiting], max_views), strict=True):
                yield LabelledWindow(*window_times(one, classifier.config.fps), classifier.rank(logits, top_k))
            waiting = []


def window_times(window: Window, fps: float) -> tuple[float, float]:
    """Return start and end of a window in seconds from the beginning of the video."""
    return window.start / fps, window.end / fps


def joined(windows: Sequence[LabelledWindow]) -> list[Segment]:
    """Join neighbouring windows of one label.

    Where two windows overlap, the first has the time up to the middle of the overlap. Windows with a gap between them
    are not joined: nothing was seen there.
    """
    edges = [(a.end_s, b.start_s) if b.start_s > a.end_s else _middle(a, b) for a, b in itertools.pairwise(windows)]
    starts = [window.start_s for window in windows[:1]] + [start for _, start in edges]
    ends = [end for end, _ in edges] + [window.end_s for window in windows[-1:]]
    segments: list[Segment] = []
    for start_s, end_s, window in zip(starts, ends, windows, strict=True):
        best, last = window.predictions[0], segments[-1] if segments else None
        if last is not None and last.label == best.label and last.end_s == start_s:
            count = last.num_windows + 1
            mean = last.probability + (best.probability - last.probability) / count
            segments[-1] = Segment(last.start_s, end_s, best.label, mean, count)
        else:
            segments.append(Segment(start_s, end_s, best.label, best.probability, 1))
    return segments


def _middle(first: LabelledWindow, second: LabelledWindow) -> tuple[float, float]:
    middle = (first.end_s + second.start_s) / 2
    return middle, middle


def csv_text(windows: Sequence[LabelledWindow]) -> str:
    """Return one row per window with the segment that it belongs to, as CSV (RFC 4180) with a header."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    rest = iter(windows)
    for number, segment in enumerate(joined(windows)):
        for window in itertools.islice(rest, segment.num_windows):
            best = window.predictions[0]
            times = (_decimal(window.start_s), _decimal(window.end_s), best.label, f"{best.probability:.4f}")
            writer.writerow([*times, number, _decimal(segment.start_s), _decimal(segment.end_s)])
    return text.getvalue()


def vtt_text(segments: Sequence[Segment]) -> str:
    """Return one cue per segment, as WebVTT: captions that a player shows."""
    cues = [
        f"{_clock(segment.start_s)} --> {_clock(segment.end_s)}\n{_cue_text(segment.label)}\n" for segment in segments
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _decimal(seconds: float) -> str:
    return f"{seconds:.3f}"


def _clock(seconds: float) -> str:
    minutes, milliseconds = divmod(round(1000 * seconds), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}.{milliseconds % 1000:03}"


def _cue_text(label: str) -> str:
    """Return a label as the text of a cue: an empty line would end it, and `-->` begin another."""
    escaped = label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\0", "\ufffd")
    return re.sub(r"[\r\n]+", " ", escaped)
