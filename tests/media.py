"""Media files for tests, written by PyAV: valid ones of many kinds, and broken ones.

Every frame carries its number as a row of black and white blocks, so that a test can identify a frame after any codec,
scaling and rotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

NUM_BITS = 6
"""Frames are numbered modulo 2 ** NUM_BITS."""

_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi"}
"""Containers by suffix, unless ``Spec.container`` names another."""


@dataclass(frozen=True)
class Spec:
    """Properties of a valid video file.

    ``rotation`` is the counter-clockwise angle in degrees by which a player rotates the stored picture; ``size`` is
    (width, height) as stored. ``matrix`` is a display matrix in FFmpeg's order, of pictures that are stored as they are
    drawn. ``variable_rate`` gives every third frame three times its duration. ``pixel_aspect`` is a pixel's width over
    its height. ``sound_s`` is the length of the sound, by default that of the video. ``container`` and ``pixel_format``
    are FFmpeg's names.
    """

    codec: str = "libx264"
    container: str | None = None
    container_options: tuple[tuple[str, str], ...] = ()
    pixel_format: str = "yuv420p"
    size: tuple[int, int] = (96, 64)
    num_frames: int = 32
    fps: Fraction = Fraction(16)
    rotation: int = 0
    matrix: tuple[int, ...] | None = None
    variable_rate: bool = False
    pixel_aspect: Fraction = Fraction(1)
    bframes: int = 0
    audio: bool = False
    sound_s: float | None = None
    title: str | None = None
    seed: int = 0


def pictures(num_frames: int, size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Draw a square moving over a gradient with each frame's number at the top: upright RGB uint8 ``[T, H, W, 3]``."""
    width, height = size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    tint = rng.uniform(60, 180, 3)
    ground = (tint + 40 * np.stack([x / width, y / height, (x + y) / (width + height)], axis=-1)).clip(0, 255)
    frames = np.repeat(ground[None], num_frames, axis=0)
    side = max(min(width, height) // 4, 2)
    step = rng.uniform(0.5, 1.5, 2)
    for index, frame in enumerate(frames):
        left = int(index * step[0]) % max(width - side, 1)
        top = height // 4 + int(index * step[1]) % max(height - height // 4 - side, 1)
        frame[top : top + side, left : left + side] = (230, 60, 40)
        for bit in range(NUM_BITS):
            frame[: height // 6, width * bit // NUM_BITS : width * (bit + 1) // NUM_BITS] = 255 * (index >> bit & 1)
    return frames.astype(np.uint8)


def frame_numbers(frames: NDArray[np.uint8]) -> list[int]:
    """Read the numbers that ``pictures`` drew from upright RGB frames ``[T, H, W, 3]`` of any size."""
    height, width = frames.shape[1:3]
    strip = frames[:, height // 18 : height // 18 * 2 + 1].mean(axis=(1, 3))  # (T, W)
    numbers = []
    for row in strip:
        bits = [row[width * bit // NUM_BITS : width * (bit + 1) // NUM_BITS] for bit in range(NUM_BITS)]
        bright = [block[len(block) // 4 : len(block) - len(block) // 4].mean() > 127 for block in bits]
        numbers.append(sum(int(on) << bit for bit, on in enumerate(bright)))
    return numbers


def write(path: Path, spec: Spec | None = None, **changes: Any) -> Path:
    """Write a valid video in the container of ``path``'s suffix. Keyword arguments change ``spec``."""
    spec = replace(spec or Spec(), **changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = spec.size
    turned = spec.rotation % 180 != 0
    upright = pictures(spec.num_frames, (height, width) if turned else (width, height), spec.seed)
    container_name = spec.container or _FORMATS[path.suffix]
    with av.open(str(path), "w", format=container_name, container_options=dict(spec.container_options)) as container:
        if spec.title is not None:
            container.metadata["title"] = spec.title
        stream = container.add_stream(spec.codec, rate=spec.fps)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, spec.pixel_format
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = 12
        stream.codec_context.max_b_frames = spec.bframes
        stream.codec_context.sample_aspect_ratio = spec.pixel_aspect
        stream.codec_context.time_base = 1 / spec.fps
        stream.options = _options(spec)
        if spec.rotation:
            stream.set_display_rotation(spec.rotation)
        if spec.matrix is not None:
            stream.set_display_matrix(spec.matrix)
        sound = _add_sound(container) if spec.audio else None
        time = 0
        for index, picture in enumerate(upright):
            stored = np.ascontiguousarray(np.rot90(picture, -(spec.rotation // 90)))
            frame = VideoFrame.from_ndarray(stored, format="rgb24").reformat(format=spec.pixel_format)
            frame.pts, frame.time_base = time, stream.codec_context.time_base
            frame.duration = 3 if spec.variable_rate and index % 3 == 2 else 1
            time += frame.duration
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            write_tone(container, sound, spec.sound_s or float(spec.num_frames / spec.fps))
    return path


def truncated(path: Path, share: float = 0.5, spec: Spec | None = None) -> Path:
    """Write the first part of a valid file whose index is at the front, so that it opens but ends too early."""
    spec = spec or Spec(num_frames=48)
    whole = path.with_name(f".whole{path.suffix}")
    write(whole, spec)
    if path.suffix in {".mp4", ".mov"}:
        _index_first(whole)
    data = whole.read_bytes()
    whole.unlink()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def audio_only(path: Path, seconds: float = 1.0) -> Path:
    """Write a tone without a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=_FORMATS[path.suffix]) as container:
        write_tone(container, _add_sound(container), seconds)
    return path


def no_frames(path: Path) -> Path:
    """Write a file whose video stream has no frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, str] = {"movflags": "empty_moov+frag_keyframe"} if path.suffix == ".mp4" else {}
    with av.open(str(path), mode="w", format=_FORMATS[path.suffix], options=options) as container:
        stream = container.add_stream("libx264", rate=16)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    return path


def damaged(path: Path, spec: Spec | None = None) -> Path:
    """Write a valid file whose encoded pictures, from one third on, are overwritten with noise."""
    write(path, spec or Spec(num_frames=48))
    _index_first(path)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 3
    data[start:] = np.random.default_rng(0).integers(0, 256, len(data) - start, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    return path


def text(path: Path) -> Path:
    """Write text into a file with a video's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("label,file\nwave,1.mp4\n" * 20, encoding="utf-8")
    return path


def empty(path: Path) -> Path:
    """Write an empty file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def _options(spec: Spec) -> dict[str, object]:
    if spec.codec == "libx264":
        return {"preset": "ultrafast", "crf": "12", "bf": str(spec.bframes)}
    if spec.codec == "libvpx-vp9":
        return {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"}
    if spec.codec == "libvpx":
        return {"deadline": "realtime", "crf": "10", "b": "1M", "auto-alt-ref": "0"}
    if spec.codec == "libx265":
        return {"preset": "ultrafast", "crf": "12", "x265-params": "log-level=none:pools=1"}
    if spec.codec == "libsvtav1":
        return {"preset": "12", "crf": "20", "svtav1-params": "lp=1"}
    return {"qscale": "3", "flags": "+qscale"}


def _add_sound(container: av.container.OutputContainer) -> AudioStream:
    codec = "libopus" if container.format.name == "webm" else "aac"
    stream = container.add_stream(codec, rate=48000)
    assert isinstance(stream, AudioStream)
    return stream


def write_tone(container: av.container.OutputContainer, stream: AudioStream, seconds: float) -> None:
    """Encode a tone into an open file."""
    wave = 0.2 * np.sin(np.arange(int(48000 * seconds)) * 0.05, dtype=np.float32)
    for start in range(0, len(wave), 960):
        block = np.repeat(wave[None, start : start + 960], 2, axis=0)
        frame = AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _index_first(path: Path) -> None:
    """Move the index of an MP4 file to its front, as in files for the web."""
    moved = path.with_name(f".moved{path.suffix}")
    options = {"movflags": "+faststart"}
    with (
        av.open(str(path)) as source,
        av.open(str(moved), "w", format=_FORMATS[path.suffix], options=options) as target,
    ):
        streams: Sequence[Any] = source.streams.video
        copies = {stream.index: target.add_stream_from_template(stream) for stream in streams}
        for packet in source.demux(streams[0]):
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
    moved.replace(path)
