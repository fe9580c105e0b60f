from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mme.ingest.transcode import NormalForm, TranscodeJob, transcode
from mme.video import trim
from mme.video.codec import read_frames
from mme.video.containers import VideoError
from mme.video.resampling import iter_resampled
from mme.video.trim import read_trim_metadata
from tests import media

KINDS: dict[str, dict[str, Any]] = {
    "a.mp4": {},
    "bframes.mp4": {"bframes": 2},
    "sound.mkv": {"bframes": 2, "audio": True},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "rotated.mp4": {"rotation": 90},
}


@pytest.mark.parametrize("name", KINDS)
def test_trimmed_frames_lie_in_the_span(tmp_path: Path, name: str) -> None:
    path = media.write(tmp_path / name, num_frames=62, **KINDS[name])
    for begin, end in ((0.0, 1.0), (0.5, 1.5), (1.3, 2.3), (2.9, 3.875)):
        # Picture k is what is on screen at begin + k / 16 s, 0.35 of a picture later.
        expected = [math.floor(begin * 16 + index + 0.35) for index in range(round((end - begin) * 16))]
        frames = np.stack(list(iter_resampled(path, 16, (begin, end))))
        assert media.frame_numbers(frames) == expected, (begin, end)
        part = read_trim_metadata(path, (begin, end))
        assert part.info.num_frames == sum(begin <= index / 16 < end for index in range(62))
        assert part.info.fps == pytest.approx(16)
        assert (part.info.width, part.info.height) == frames.shape[2:0:-1]


def test_frame_rate_is_measured_within_the_span(tmp_path: Path) -> None:
    path = media.write(tmp_path / "a.mp4", num_frames=60, variable_rate=True)
    assert read_trim_metadata(path, (1.0, 3.0)).info.fps == pytest.approx(16 * 3 / 5, rel=0.1)


def test_digest_of_a_span_is_independent_of_the_file(tmp_path: Path) -> None:
    path = media.write(tmp_path / "a.mp4", num_frames=60)
    twin = media.write(tmp_path / "b.mp4", num_frames=60)
    digests = [read_trim_metadata(path, span).sha256 for span in ((1.0, 2.0), (1.0, 2.1), (2.0, 3.0))]
    assert len(set(digests)) == 3
    assert read_trim_metadata(twin, (1.0, 2.0)).sha256 == digests[0]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what a process reads")
def test_trimming_a_long_file_reads_little_outside_the_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trim, "MAX_SCANNED_BYTES", 2**16)
    path = media.write(tmp_path / "long.mp4", num_frames=3000, size=(320, 240), seed=1)
    before = _bytes_read()
    frames = list(iter_resampled(path, 16, (90.0, 91.0)))
    assert len(frames) == 16
    assert _bytes_read() - before < os.path.getsize(path) / 4


def _bytes_read() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def test_span_without_frames_is_a_video_error(tmp_path: Path) -> None:
    path = media.write(tmp_path / "a.mp4", num_frames=48)
    with pytest.raises(VideoError, match="truncated: no frame between 7 and 8 s"):
        read_trim_metadata(path, (7.0, 8.0))
    with pytest.raises(VideoError, match="not-a-video"):
        read_trim_metadata(media.text(tmp_path / "b.mp4"), (0.0, 1.0))


FORM = NormalForm(fps=16, short_side=48, crf=8, gop_frames=8)


def test_trimmed_span_is_transcoded_to_the_normal_form(tmp_path: Path) -> None:
    source = media.write(tmp_path / "a.mkv", num_frames=62, size=(96, 64), bframes=2)
    outcome = transcode(TranscodeJob(source, tmp_path / "out.mp4", FORM, (1.0, 2.0)))
    assert outcome.reason is None
    assert (outcome.width, outcome.height, outcome.num_frames, outcome.fps) == (72, 48, 16, 16.0)
    assert media.frame_numbers(read_frames(tmp_path / "out.mp4")) == list(range(16, 32))
    assert outcome.sha256 == read_trim_metadata(source, (1.0, 2.0)).sha256


@pytest.mark.parametrize(
    ("span", "reason", "detail"),
    [
        ((3.0, 5.0), "truncated", "pictures are missing for 1.12 of 2 s between 3 and 5 s"),
        ((9.0, 10.0), "truncated", "no frame between 9 and 10 s"),
    ],
)
def test_unusable_spans_give_the_reason(tmp_path: Path, span: tuple[float, float], reason: str, detail: str) -> None:
    source = media.write(tmp_path / "a.mp4", num_frames=62)
    outcome = transcode(TranscodeJob(source, tmp_path / "out.mp4", FORM, span))
    assert (outcome.reason, outcome.detail) == (reason, detail)
    assert not (tmp_path / "out.mp4").exists()


def test_damage_after_a_span_does_not_affect_it(tmp_path: Path) -> None:
    source = media.damaged(tmp_path / "a.mp4")  # 3 s, of which two thirds are noise
    assert transcode(TranscodeJob(source, tmp_path / "1.mp4", FORM, (0.0, 0.75))).reason is None
    assert transcode(TranscodeJob(source, tmp_path / "2.mp4", FORM, (1.5, 2.5))).reason in {"truncated", "undecodable"}
