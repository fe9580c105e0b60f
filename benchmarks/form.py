"""Size, quality and decoding speed of the normal form: ``python -m benchmarks.form [CLIP ...] [--short-side 256]``.

Every clip is encoded with several constant rate factors and distances of keyframes, with and without x264's tune
``fastdecode``. Tracks of the decoded frames are compared with those of the frames before encoding. Without clips,
textured frames of 454 x 256 and motion primitives of 64 pixels are rendered. CPU time of one core.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.feed import textured_frames
from benchmarks.report import Row, record
from mme.config import Params, TrajectoriesParams, load_params
from mme.ingest.motion_primitives import CLASSES, sample_scene
from mme.ingest.transcode import normal_size
from mme.motion.tracking import Tracks, extract_tracks
from mme.video.codec import GOP_FRAMES, QUICK_TO_DECODE, VideoWriter, iter_frames, read_frames
from mme.video.colour import luma_of
from mme.video.crop import resize
from mme.video.planes import iter_planes

NUM_FRAMES, FPS = 48, 25
REPEATS = 5


@dataclass(frozen=True)
class Form:
    """Settings of the encoder.

    Attributes:
        crf: constant rate factor.
        gop_frames: distance of keyframes.
        fast: without it CABAC and a deblocking filter, which are x264's default.
        plain: the preset's blocks, search for motion and colour.
    """

    crf: int
    gop_frames: int = GOP_FRAMES
    fast: bool = True
    plain: bool = False

    def __str__(self) -> str:
        kind = "fastdecode" if self.fast else "CABAC, deblocking"
        kind += ", plain blocks" if self.plain else ""
        return f"crf {self.crf}, a keyframe every {self.gop_frames}, {kind}"


FORMS = (
    Form(14, 8, fast=False, plain=True),
    Form(20, 8, fast=False, plain=True),
    Form(14, plain=True),
    Form(20, plain=True),
    *(Form(crf) for crf in (14, 17, 20, 23)),
    *(Form(20, gop_frames) for gop_frames in (4, 8, 24)),
)


class FormWriter(VideoWriter):
    """`VideoWriter` with the settings of a form."""

    def __init__(self, path: Path, size: tuple[int, int], form: Form) -> None:
        super().__init__(path, size, FPS, form.crf, form.gop_frames)
        options = dict(self._stream.options)
        if not form.fast:
            del options["tune"]
        if form.plain:
            options["x264-params"] = str(options["x264-params"]).removesuffix(f":{QUICK_TO_DECODE}")
        self._stream.options = options


@dataclass(frozen=True)
class Measured:
    """Results for one clip in one form; times are CPU milliseconds, errors pixels per step."""

    frame_bytes: float
    psnr_db: float
    luma_ms: float
    sparse_ms: float
    error_px: NDArray[np.float64]


def main() -> None:
    """Run the benchmark and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--short-side", type=int, default=256)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    params = load_params()
    tracking = params.trajectories.model_copy(update={"cell": 8, "max_length": 6, "forward_backward": True})
    groups = {
        f"{len(arguments.clips)} clips of short side {arguments.short_side}": [
            load_clip(path, arguments.short_side) for path in arguments.clips
        ]
    }
    if not arguments.clips:
        groups = {
            "2 textured videos of 454 x 256": [textured_frames(seed, NUM_FRAMES) for seed in range(2)],
            "12 motion primitives of 64 x 64": list(render_primitives(params)),
        }
    with tempfile.TemporaryDirectory() as folder:
        for name, clips in groups.items():
            record(f"form/{name}", list(compare(clips, tracking, Path(folder, "clip.mp4"))))


def load_clip(path: Path, short_side: int) -> NDArray[np.uint8]:
    """Read the first frames of a video, scaled as ingest does."""
    frames = np.stack(list(itertools.islice(iter_frames(path), NUM_FRAMES)))
    width, height = normal_size(frames.shape[2], frames.shape[1], 1.0, short_side)
    return np.asarray(resize(frames, height, width), dtype=np.uint8)


def render_primitives(params: Params) -> Iterator[NDArray[np.uint8]]:
    """Render one motion primitive of every class of ``params.yaml``."""
    for number, label in enumerate(CLASSES[:12]):
        yield sample_scene(label, params.synthesize, (number,)).render()


def compare(clips: Sequence[NDArray[np.uint8]], tracking: TrajectoriesParams, path: Path) -> Iterator[Row]:
    """Measure all forms on all clips."""
    originals = [luma_of(frames) for frames in clips]
    references = [extract_tracks(luma, tracking) for luma in originals]
    for form in FORMS:
        results = []
        for frames, luma, reference in zip(clips, originals, references, strict=True):
            with FormWriter(path, (frames.shape[2], frames.shape[1]), form) as writer:
                for frame in frames:
                    writer.write(frame)
            results.append(measure(path, luma, reference, tracking))
        errors = np.concatenate([result.error_px for result in results])
        frame_ms = statistics.mean(result.luma_ms for result in results)
        yield Row("size", statistics.mean(result.frame_bytes for result in results), "bytes per frame", of=str(form))
        yield Row("luma", statistics.mean(result.psnr_db for result in results), "dB PSNR", of=str(form))
        yield Row("decoding to luma", 1000 / frame_ms, "frames per second", of=str(form))
        yield Row(
            "every fourth frame as RGB", statistics.mean(result.sparse_ms for result in results), "ms", of=str(form)
        )
        yield Row("tracks against the source's, median", float(np.median(errors)), "px per step", of=str(form))
        yield Row("tracks against the source's, mean", float(errors.mean()), "px per step", of=str(form))


def measure(path: Path, original: NDArray[np.uint8], reference: Tracks, tracking: TrajectoriesParams) -> Measured:
    """Measure one file against the frames that were encoded."""
    num_frames = len(original)
    luma = np.stack([planes.y.copy() for planes in iter_planes(path)])
    squared = np.mean(np.square(luma.astype(np.float64) - original))
    tracks = extract_tracks(luma, tracking)
    length = tracks.displacements.shape[3]
    num_valid = np.minimum(tracks.num_valid, reference.num_valid)  # (S, h, w)
    valid = np.arange(length) < num_valid[..., None]  # (S, h, w, L)
    error = np.linalg.norm(tracks.displacements - reference.displacements, axis=-1)  # (S, h, w, L)
    return Measured(
        frame_bytes=path.stat().st_size / num_frames,
        psnr_db=float(10 * np.log10(255**2 / squared)),
        luma_ms=least_ms(lambda: sum(1 for _ in iter_planes(path))) / num_frames,
        sparse_ms=least_ms(lambda: read_frames(path, range(0, num_frames, 4))),
        error_px=error[valid].astype(np.float64),
    )


def least_ms(action: Callable[[], object]) -> float:
    """Return the least CPU time of several runs in milliseconds: other work on the machine only adds to it."""
    times = []
    for _ in range(REPEATS):
        begin = time.process_time_ns()
        action()
        times.append((time.process_time_ns() - begin) / 1e6)
    return min(times)


if __name__ == "__main__":
    main()
