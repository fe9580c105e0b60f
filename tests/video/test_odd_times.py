from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mme.ingest.transcode import NormalForm, TranscodeJob, transcode
from mme.video import metadata, reader, trim
from mme.video.codec import read_frames
from mme.video.containers import VideoError
from mme.video.reader import open_video
from mme.video.resampling import count_resampled, iter_resampled
from mme.video.timeline import fault_of_clock
from tests import media
from tests.odd_times import CASES, RATE, Shown, leap, write
from tests.reference.sample_and_hold import shown_in_span, shown_pictures

FORM = NormalForm(fps=16, short_side=64, crf=8, gop_frames=8)


def expected_numbers(shown: Shown, fps: int) -> list[int]:
    seconds = [second - shown[0][1] for _, second in shown]
    return [shown[position][0] for position in shown_pictures(seconds, Fraction(0), Fraction(fps))]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shown]:
    return CASES[request.param](tmp_path_factory.mktemp("odd"))


def test_ingest_and_service_show_the_same_pictures(case: tuple[Path, Shown], tmp_path: Path) -> None:
    path, shown = case
    expected = expected_numbers(shown, 16)
    outcome = transcode(TranscodeJob(path, tmp_path / "a.mp4", FORM))
    assert (outcome.reason, outcome.detail) == (None, "")
    assert media.frame_numbers(read_frames(tmp_path / "a.mp4")) == expected
    assert outcome.num_frames == len(expected)
    with open_video(path) as video:
        assert video.num_frames(16) == len(expected)
        assert video.info.num_frames == len(shown)
        assert media.frame_numbers(video.read(range(len(expected)), 16)) == expected


@pytest.mark.parametrize("buffer_bytes", [2**24, 2000])
def test_reading_what_is_needed_equals_decoding_all(
    case: tuple[Path, Shown], monkeypatch: pytest.MonkeyPatch, buffer_bytes: int
) -> None:
    path, _ = case
    monkeypatch.setattr(reader, "MAX_CHECKED_PIXELS", 0)
    monkeypatch.setattr(metadata, "MAX_BUFFER_BYTES", buffer_bytes)
    for fps in (10, 30):
        frames = np.stack(list(iter_resampled(path, fps)))
        with open_video(path) as video:
            assert video.num_frames(fps) == len(frames)
            for indices in (
                [0, 1],
                [len(frames) - 1],
                [3, len(frames) // 2, len(frames) - 3, 3],
                [*range(len(frames))],
            ):
                np.testing.assert_array_equal(video.read(indices, fps), frames[indices])


def check_spans(path: Path, shown: Shown, begins: list[float], length: float) -> None:
    seconds = [second - shown[0][1] for _, second in shown]
    for begin in begins:
        end = begin + length
        if end > seconds[-1] + 1 / RATE:
            continue
        positions = shown_in_span(seconds, Fraction(begin), Fraction(end), Fraction(16))
        frames = np.stack(list(iter_resampled(path, 16, (begin, end))))
        assert media.frame_numbers(frames) == [shown[position][0] for position in positions], begin
        for decode in (True, False):
            assert count_resampled(path, 16, (begin, end), decode) == len(positions)
        read = trim.read_trim_metadata(path, (begin, end))
        assert 0 < read.info.num_frames <= len(seconds)
        if any(end - 0.25 <= second < end for second in seconds):
            assert read.sha256 != trim.read_trim_metadata(path, (begin, end - 0.25)).sha256


def test_a_span_is_part_of_the_whole(case: tuple[Path, Shown]) -> None:
    """Seconds of a list are those of the video that ingest and the service see, whatever its timestamps are."""
    check_spans(*case, [0, 0.5, 0.75, 1, 1.25, 1.5], 0.5)
    check_spans(*case, [0, 0.5], 1)


def test_a_span_of_a_long_file_is_part_of_the_whole(case: tuple[Path, Shown], monkeypatch: pytest.MonkeyPatch) -> None:
    """Long files with an index are not read whole, unless it says that their clock is no clock."""
    monkeypatch.setattr(trim, "MAX_SCANNED_BYTES", 600)
    check_spans(*case, [0, 0.5, 0.75, 1, 1.25, 1.5], 0.5)


@pytest.mark.parametrize("name", ["a.ts", "a.mpg", "a.vob", "a.flv", "a.mkv", "a.mp4", "a.avi"])
def test_spans_of_files_with_and_without_an_index(tmp_path: Path, name: str) -> None:
    mpeg2: dict[str, Any] = {"codec": "mpeg2video"} if name in {"a.mpg", "a.vob"} else {}
    path = write(tmp_path / name, num_frames=240, **mpeg2, options={"bf": "2", "g": "18"})
    check_spans(path, [(number % 64, number / RATE) for number in range(240)], [0, 1.5, 2.25, 3.125, 5, 7.75, 9.5], 0.5)


@pytest.mark.parametrize(("leap_s", "words"), [(1_700_000_000, "53.9 years"), (61 * 86_400, "61 days")])
def test_leap_that_no_clock_takes(tmp_path: Path, leap_s: int, words: str) -> None:
    path, _ = leap(tmp_path, 1000 * leap_s, 1)
    outcome = transcode(TranscodeJob(path, tmp_path / "a.mp4", FORM))
    assert outcome.reason == "undecodable"
    assert outcome.detail.startswith(f"timestamps leap by {words} between two pictures; write them anew")
    with pytest.raises(VideoError) as caught, open_video(path):
        pass
    assert (caught.value.reason, caught.value.detail) == (outcome.reason, outcome.detail)


def test_leap_back_counts_as_well() -> None:
    day = 86_400
    assert fault_of_clock([0, 1, 59 * day, 2], Fraction(1)) is None
    assert "leap by 61 days" in str(fault_of_clock([0, 61 * day], Fraction(1)))
    assert "leap by 61 days" in str(fault_of_clock([61 * 2 * day, 0], Fraction(1, 2)))
    assert fault_of_clock([5], Fraction(1)) is None
