from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mme.ingest.transcode import NormalForm, Outcome, TranscodeJob, normal_size, transcode
from mme.system.files import sha256_file
from mme.video.codec import read_frames, write_video
from mme.video.metadata import read_container_metadata
from mme.video.orientation import UPRIGHT
from tests import media
from tests.media import Spec

FORM = NormalForm(fps=16, short_side=48, crf=8, gop_frames=8)


def run(source: Path, **changes: Any) -> tuple[Outcome, Path]:
    form = NormalForm(**{**vars(FORM), **changes})
    target = source.parent / "out" / f"{source.name}.mp4"
    return transcode(TranscodeJob(source, target, form)), target


KINDS = {
    "h264.mp4": (Spec(size=(96, 64)), (72, 48)),
    "bframes.mkv": (Spec(size=(96, 64), bframes=2, audio=True), (72, 48)),
    "vp9.webm": (Spec(codec="libvpx-vp9", size=(90, 120), fps=Fraction(25)), (48, 64)),
    "mpeg4.avi": (Spec(codec="mpeg4", size=(100, 64), bframes=2, fps=Fraction(30000, 1001)), (76, 48)),
    "small.mp4": (Spec(size=(32, 24)), (64, 48)),
    "same-size.mp4": (Spec(size=(64, 48)), (64, 48)),
    "variable-rate.mp4": (Spec(size=(96, 64), variable_rate=True), (72, 48)),
    "rotated-90.mp4": (Spec(size=(96, 64), rotation=90), (48, 72)),
    "rotated-180.mp4": (Spec(size=(64, 48), rotation=180), (64, 48)),
    "wide-pixels.mp4": (Spec(size=(96, 64), pixel_aspect=Fraction(4, 3)), (96, 48)),
    "wide-pixels-rotated-90.mp4": (Spec(size=(96, 64), pixel_aspect=Fraction(4, 3), rotation=90), (48, 96)),
    "narrow-pixels.mp4": (Spec(size=(96, 64), pixel_aspect=Fraction(1, 2)), (48, 64)),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_codec_is_transcoded_to_the_normal_form(tmp_path: Path, name: str) -> None:
    spec, size = KINDS[name]
    source = media.write(tmp_path / name, spec)
    outcome, target = run(source)
    assert outcome.reason is None
    assert not outcome.copied
    assert outcome.sha256 == sha256_file(source)
    last = spec.num_frames // 3 * 5 + spec.num_frames % 3 if spec.variable_rate else spec.num_frames
    num_frames = round(last / spec.fps * 16)
    assert (outcome.width, outcome.height, outcome.num_frames) == (*size, num_frames)
    facts = read_container_metadata(target)
    assert facts.info.codec == "h264"
    assert facts.pixel_format == "yuv420p"
    assert not facts.has_b_frames
    assert (facts.num_streams, facts.orientation, facts.info.pixel_aspect) == (1, UPRIGHT, 1.0)
    assert facts.keyframe_interval == 8
    assert facts.is_constant_rate
    assert (facts.info.width, facts.info.height) == size
    assert facts.info.fps == pytest.approx(outcome.fps) == 16
    rate = spec.fps * Fraction(3, 5) if spec.variable_rate else spec.fps
    assert outcome.source_fps == pytest.approx(float(rate), rel=0.03)
    frames = read_frames(target)
    shown = [int(number * spec.fps / 16 + Fraction(35, 100)) for number in range(num_frames)]
    if spec.variable_rate:  # the third of three pictures lasts three times as long
        shown = [number // 5 * 3 + min(number % 5, 2) for number in range(num_frames)]
    assert media.frame_numbers(frames) == shown
    error = np.abs(frames.astype(int) - media.pictures(spec.num_frames, size)[shown]).mean()
    assert error < 10, f"pictures are off by {error:.1f} grey levels"


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        media.write(tmp_path / folder / "x.webm", codec="libvpx-vp9")
    targets = [run(tmp_path / folder / "x.webm")[1] for folder in ("a", "b")]
    assert targets[0].read_bytes() == targets[1].read_bytes()


def test_file_in_the_normal_form_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    write_video(source, media.pictures(30, (64, 48)), fps=16, crf=30, gop_frames=4)
    outcome, target = run(source)
    assert outcome == Outcome(sha256_file(source), 30, 16.0, 16.0, 64, 48, copied=True)
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("changes", [{"gop_frames": 3}, {"short_side": 32}, {"fps": 15}])
def test_file_in_another_form_is_not_copied(tmp_path: Path, changes: dict[str, int]) -> None:
    source = tmp_path / "a.mp4"
    write_video(source, media.pictures(30, (64, 48)), fps=16, crf=30, gop_frames=4)
    assert not run(source, **changes)[0].copied


def test_damaged_file_in_the_normal_form_is_not_copied(tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    write_video(source, media.pictures(30, (64, 48)), fps=16, crf=8, gop_frames=4)
    data = bytearray(source.read_bytes())
    middle = data.index(b"mdat") + 4000
    data[middle : middle + 2000] = bytes(2000)
    source.write_bytes(data)
    outcome, target = run(source)
    assert outcome.reason == "truncated"
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".mov"])
@pytest.mark.parametrize("share", [0.5, 0.85])
def test_truncated_in_any_container(tmp_path: Path, suffix: str, share: float) -> None:
    codec = {".webm": "libvpx-vp9", ".avi": "mpeg4"}.get(suffix, "libx264")
    source = media.truncated(tmp_path / f"a{suffix}", share, Spec(codec=codec, num_frames=60))
    outcome, target = run(source)
    assert outcome.reason == "truncated"
    assert outcome.sha256 == sha256_file(source)
    assert not target.exists()


@pytest.mark.parametrize(
    ("make", "reason", "detail"),
    [
        (media.empty, "empty", "0 bytes"),
        (media.text, "not-a-video", "starts with b'label,file"),
        (media.audio_only, "no-video-stream", "none of them video"),
        (media.no_frames, "zero-frames", "holds no picture"),
        (media.damaged, "truncated", "pictures are missing for "),
        (lambda path: path, "undecodable", "cannot be read: No such file"),
    ],
)
def test_unusable_files_have_a_reason(tmp_path: Path, make: Any, reason: str, detail: str) -> None:
    outcome, target = run(make(tmp_path / "a.mp4"))
    assert outcome.reason == reason
    assert detail in outcome.detail
    assert not target.exists()


def test_long_audio_does_not_count_as_truncation(tmp_path: Path) -> None:
    for name in ("a.mkv", "b.mp4", "c.webm"):
        codec = "libvpx-vp9" if name == "c.webm" else "libx264"
        source = media.write(tmp_path / name, codec=codec, audio=True, sound_s=5.0)
        assert run(source)[0].reason is None, name


@given(
    width=st.integers(2, 4000),
    height=st.integers(2, 4000),
    pixel_aspect=st.floats(0.25, 4),
    short_side=st.integers(8, 256).map(lambda half: 2 * half),
)
def test_sizes_are_even_and_keep_the_aspect_ratio(
    width: int, height: int, pixel_aspect: float, short_side: int
) -> None:
    new_width, new_height = normal_size(width, height, pixel_aspect, short_side)
    assert min(new_width, new_height) == short_side
    assert new_width % 2 == new_height % 2 == 0
    scale = short_side / min(width * pixel_aspect, height)
    assert abs(new_width - width * pixel_aspect * scale) <= 1.001
    assert abs(new_height - height * scale) <= 1.001
