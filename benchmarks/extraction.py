"""Cost of extracting tracks: ``python -m benchmarks extraction``.

CPU time against that of the flow alone on the same frames; two workers against one; memory of a worker on 60 s of
1080p; and an estimate for Kinetics-400 from this run.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Row, record
from benchmarks.targets import cpu_ms, large_frames
from mme.config import DEFAULT_RUNTIME, TrajectoriesParams, load_params
from mme.manifest import Manifest, Video
from mme.motion.extract import Extractor, extract_part
from mme.motion.store import read_part
from mme.motion.tracking import iter_tracks
from mme.system.files import sha256_file
from mme.video.codec import GOP_FRAMES, VideoWriter, write_video
from mme.video.planes import iter_planes

NUM_FRAMES, FPS = 48, 25
NUM_VIDEOS = 8
LONG, SHORT = 1500, 150
"""Lengths of the 1080p videos in frames: a minute, and a tenth of it."""

_WORKER = """
import re, sys, tempfile
from pathlib import Path
from mme.config import TrajectoriesParams
from mme.motion.extract import extract_part

path, num_frames, params = Path(sys.argv[1]), int(sys.argv[2]), TrajectoriesParams.model_validate_json(sys.argv[3])
with tempfile.TemporaryDirectory() as folder:
    assert extract_part(path, num_frames, Path(folder, "part"), params) is None
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
"""A process that imports what a worker does and prints its peak memory in KiB. ``getrusage`` would return the peak of
the parent process if that is larger."""

KINETICS_VIDEOS, KINETICS_FRAMES = 240_000, 300
"""Videos of ten seconds at 30 frames per second."""


def read_luma(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Decode the luma of a file as the stage does."""
    return (planes.y.copy() for planes in iter_planes(path))


def time_against_flow(path: Path, params: TrajectoriesParams) -> tuple[list[Row], dict[str, float]]:
    """Compare tracking a whole video with DIS's preset on the same decoded frames; also return CPU ms per frame."""
    luma = list(read_luma(path))
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow() -> None:
        for first, second in itertools.pairwise(luma):
            dis.calc(first, second, None)  # type: ignore[call-overload]

    def whole(both_ways: bool) -> Callable[[], object]:
        chosen = params.model_copy(update={"forward_backward": both_ways})
        return lambda: list(iter_tracks(read_luma(path), chosen))

    alone, forward, both = cpu_ms(flow, whole(False), whole(True))
    steps = len(luma) - 1
    of = f"{len(luma)} frames of {luma[0].shape[1]} x {luma[0].shape[0]}, decode and camera included"
    rows = [
        Row("DIS alone, preset medium", alone / steps, "ms per frame", of="decoded frames"),
        Row("extraction, forward only", forward / alone, "x DIS", at_most=1.0, of=of),
        Row("extraction, forward-backward", both / alone, "x DIS", at_most=1.7, of=of),
    ]
    return rows, {"forward": forward / steps, "both": both / steps}


def time_workers(path: Path, params: TrajectoriesParams, folder: Path) -> Iterator[Row]:
    """Compare two workers with one in wall time on eight copies of a video; each run starts its own processes."""
    copies = folder / "videos"
    copies.mkdir()
    videos = []
    for number in range(NUM_VIDEOS):
        (copies / f"{number}.mp4").write_bytes(path.read_bytes())
        videos.append(
            Video(
                str(number), f"{number}.mp4", sha256_file(path), None, "train", None,
                NUM_FRAMES, FPS, 454, 256, "ok", None, path.name, FPS,
            )
        )  # fmt: skip
    seconds = []
    for num_workers in (1, 2):
        extractor = Extractor(Manifest(videos, folder), params, folder / f"work-{num_workers}")
        begin = time.perf_counter()
        extractor.run(num_workers, lambda _: None)
        seconds.append(time.perf_counter() - begin)
    yield Row("two workers", seconds[0] / seconds[1], "x one", at_least=1.8, of=f"{NUM_VIDEOS} videos, an idle machine")


def measure_memory(params: TrajectoriesParams, folder: Path) -> Iterator[Row]:
    """Measure the peak memory of a worker on both 1080p videos, with the fast flow, whose buffers are as large."""
    fast = params.model_copy(update={"flow": "ultrafast"})
    peaks = []
    for num_frames in (SHORT, LONG):
        path = folder / f"{num_frames}.mp4"
        write_long_video(path, num_frames)
        command = [sys.executable, "-c", _WORKER, str(path), str(num_frames), fast.model_dump_json()]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024)
        of = f"{num_frames} frames of 1920 x 1080, {path.stat().st_size / 2**20:.0f} MiB of H.264"
        yield Row("peak memory of a worker", peaks[-1], "MiB", at_most=1024, of=of)
    yield Row("growth for ten times the length", peaks[1] / peaks[0], "x", at_most=1.1)


def write_long_video(path: Path, num_frames: int) -> None:
    """Write a video of a texture that moves back and forth."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (40, 70, 3), dtype=np.uint8)
    texture: NDArray[np.uint8] = cv2.resize(coarse, (2040, 1200), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    with VideoWriter(path, (1920, 1080), FPS, 23, 50) as writer:
        for number in range(num_frames):
            x, y = (round(50 + 45 * np.sin(number / period)) for period in (17.0, 29.0))
            writer.write(texture[y : y + 1080, x : x + 1920])


def stored_bytes(path: Path, params: TrajectoriesParams, folder: Path) -> float:
    """Return the bytes on disk per frame."""
    part = folder / f"part-{params.cell}-{params.max_length}"
    assert extract_part(path, NUM_FRAMES, part, params) is None
    entry = read_part(part)
    assert entry is not None
    return sum(file.stat().st_size for file in part.iterdir() if file.suffix != ".json") / float(entry["num_starts"])


def cost_model(path: Path, params: TrajectoriesParams, cpu: dict[str, float], folder: Path) -> Iterator[Row]:
    """Estimate the cost of Kinetics-400 at this size from this run."""
    frames = KINETICS_VIDEOS * KINETICS_FRAMES
    of = f"{KINETICS_VIDEOS:,} videos of {KINETICS_FRAMES} frames, 454 x 256"
    for name, what in (("both", "forward-backward"), ("forward", "forward only")):
        yield Row(f"Kinetics-400, {what}", frames * cpu[name] / 3.6e6, "core-hours", of=of)
    for cell, max_length in ((8, 8), (8, 6), (16, 6)):
        size = stored_bytes(path, params.model_copy(update={"cell": cell, "max_length": max_length}), folder)
        kind = f"cell {cell}, max_length {max_length}"
        yield Row("stored", size * 30 / 2**20, "MiB per video-second", of=f"{kind}, 30 frames per second, 454 x 256")
        yield Row("Kinetics-400", frames * size / 1e12, "TB", of=kind)
    shards = -(-KINETICS_VIDEOS // DEFAULT_RUNTIME.videos_per_shard)
    yield Row("Kinetics-400", shards, "shards", of=f"{DEFAULT_RUNTIME.videos_per_shard} videos per shard")


def main() -> None:
    """Run the benchmark and record it."""
    cv2.setNumThreads(1)
    params = load_params()
    chosen = params.trajectories.model_copy(
        update={"cell": 8, "max_length": 8, "compensate_camera": True, "splits": ("train",), "forward_backward": True}
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "video.mp4"
        write_video(path, large_frames(params, NUM_FRAMES), FPS, 20, GOP_FRAMES)
        rows, cpu = time_against_flow(path, chosen)
        record("targets/extraction", [*rows, *time_workers(path, chosen, folder)])
        record("targets/cost model", list(cost_model(path, chosen, cpu, folder)))
        record("targets/memory", list(measure_memory(chosen, folder)))


if __name__ == "__main__":
    main()
