from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from mme.evaluation.classifier import Classifier, Prediction
from mme.evaluation.windows import (
    CSV_COLUMNS,
    LabelledWindow,
    Segment,
    classify_windows,
    csv_text,
    joined,
    label_windows,
    vtt_text,
)
from mme.video.codec import write_video
from mme.video.containers import VideoError
from mme.video.resampling import iter_resampled
from mme.video.windows import WindowPlan, cut_windows
from tests import media
from tests.tiny import LABELS, moving_frames, save_tiny_folder

HARD_LABELS = ("-->", "a & b <i>", 'said "no", left', "सरल क्रिया", "左へ回る", "two\n\nlines", "ימינה")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier.load(save_tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


def changing_frames(num_parts: int = 5) -> np.ndarray:
    """Return scenes of 12 frames that follow each other: their labels differ."""
    return np.concatenate([moving_frames(12, seed=seed) for seed in range(num_parts)])


def window(start_s: float, end_s: float, label: str, probability: float = 0.5) -> LabelledWindow:
    return LabelledWindow(start_s, end_s, (Prediction(label, probability),))


def test_windows_are_labelled_as_the_trimmed_video(classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, changing_frames(), fps=16, crf=10, gop_frames=12)
    answer = classify_windows(classifier, path, 1.0, 0.5, top_k=4)
    assert answer.video is not None
    assert [one.start_s for one in answer.windows] == [0, 0.5, 1, 1.5, 2, 2.5, 2.75]
    for one in answer.windows:
        span = np.stack(list(iter_resampled(path, 16, (one.start_s, one.end_s))))
        expected = classifier.classify(span, top_k=4)
        assert [p.label for p in one.predictions] == [p.label for p in expected.predictions]
        chances = [p.probability for p in one.predictions]
        assert chances == pytest.approx([p.probability for p in expected.predictions], abs=1e-5)
    assert len({one.predictions[0].label for one in answer.windows}) > 1


def test_path_bytes_and_frames_have_the_same_windows(classifier: Classifier, tmp_path: Path) -> None:
    path = media.write(tmp_path / "clip.mp4", num_frames=40)
    expected = classify_windows(classifier, path, 1, 0.5)
    frames = np.stack(list(iter_resampled(path, 16)))
    for source in (str(path), path.read_bytes(), frames):
        assert classify_windows(classifier, source, 1, 0.5).windows == expected.windows
    assert classify_windows(classifier, frames, 1, 0.5).video is None


def test_video_shorter_than_a_window_is_classified_whole(classifier: Classifier) -> None:
    frames = moving_frames(10)
    (one,) = classify_windows(classifier, frames, 60, 1, top_k=4).windows
    assert (one.start_s, one.end_s) == (0, 10 / 16)
    assert one.predictions == classifier.classify(frames, top_k=4).predictions


def test_labels_come_as_soon_as_a_batch_is_full(classifier: Classifier) -> None:
    num_read = 0

    def frames() -> object:
        nonlocal num_read
        for frame in moving_frames(160):
            num_read += 1
            yield frame

    plan = WindowPlan(0.5, 0.5, 16)
    labels = label_windows(classifier, cut_windows(frames(), plan, classifier.config.clip, 2, 1), 1, max_views=4)  # type: ignore[arg-type]
    next(labels)
    assert num_read == 16


@pytest.mark.parametrize("content", [b"", b"no video" * 100])
def test_video_errors_pass_through(classifier: Classifier, content: bytes) -> None:
    with pytest.raises(VideoError):
        classify_windows(classifier, content, 1, 1)


@pytest.mark.parametrize(("arguments", "name"), [((0.01, 1), "window_s"), ((1, 0.01), "hop_s"), ((1, 1, 0), "top_k")])
def test_arguments_out_of_range_are_refused(classifier: Classifier, arguments: tuple[float, ...], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        classify_windows(classifier, moving_frames(), *arguments)  # type: ignore[arg-type]


def test_neighbours_of_one_label_are_joined() -> None:
    windows = [
        window(0, 2, "a", 0.25),
        window(1, 3, "a", 0.75),
        window(2, 4, "b"),
        window(3, 5, "a"),
        window(3.5, 5.5, "a"),
    ]
    assert joined(windows) == [
        Segment(0, 2.5, "a", 0.5, 2),
        Segment(2.5, 3.5, "b", 0.5, 1),
        Segment(3.5, 5.5, "a", 0.5, 2),
    ]
    assert joined([window(0, 1, "a"), window(1, 2, "a")]) == [Segment(0, 2, "a", 0.5, 2)]
    assert joined([]) == []


def test_windows_with_a_gap_are_not_joined() -> None:
    assert joined([window(0, 1, "a"), window(5, 6, "a")]) == [Segment(0, 1, "a", 0.5, 1), Segment(5, 6, "a", 0.5, 1)]


def test_csv_holds_any_label() -> None:
    windows = [window(number, number + 1, label, 0.25) for number, label in enumerate(HARD_LABELS)]
    windows.append(window(7, 8, HARD_LABELS[-1]))
    header, *rows = csv.reader(io.StringIO(csv_text(windows), newline=""))
    assert tuple(header) == CSV_COLUMNS
    assert [row[2] for row in rows] == [one.predictions[0].label for one in windows]
    assert rows[0] == ["0.000", "1.000", "-->", "0.2500", "0", "0.000", "1.000"]
    assert [row[4:] for row in rows[-2:]] == [["6", "6.000", "8.000"]] * 2


def test_vtt_holds_any_label() -> None:
    segments = [Segment(number, number + 1, label, 0.5, 1) for number, label in enumerate(HARD_LABELS)]
    header, *cues = vtt_text(segments).split("\n\n")
    assert header == "WEBVTT"
    assert len(cues) == len(HARD_LABELS)
    lines = [cue.rstrip("\n").split("\n") for cue in cues]
    assert all(len(cue) == 2 for cue in lines)
    assert lines[0] == ["00:00:00.000 --> 00:00:01.000", "--&gt;"]
    assert [cue[1] for cue in lines[1:]] == [
        "a &amp; b &lt;i&gt;", 'said "no", left', "सरल क्रिया", "左へ回る", "two lines", "ימינה",
    ]  # fmt: skip


def test_times_of_long_videos_are_written_in_full() -> None:
    assert "\n01:59:59.999 --> 100:00:00.000\n" in vtt_text([Segment(7199.9994, 359_999.9999, "a", 1, 1)])
    assert vtt_text([]) == "WEBVTT\n"


def test_labels_are_those_of_the_model(classifier: Classifier) -> None:
    assert {one.predictions[0].label for one in classify_windows(classifier, changing_frames(), 0.5, 0.25).windows} <= {
        *LABELS
    }
