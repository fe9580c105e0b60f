"""Cost and accuracy of the motion targets: ``python -m benchmarks targets``.

Medians of CPU time on one core; ratios are of times measured in turn in one run.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.report import Row, record
from mme.config import Params, TrajectoriesParams, load_params
from mme.ingest.motion_primitives import CLASSES, sample_scene
from mme.motion.camera import estimate_homography
from mme.motion.flow import DenseFlow, gray_frames
from mme.motion.store import TrackStore, merge_parts, write_index, write_part
from mme.motion.tracking import GridTracker, cell_centres, extract_tracks, iter_tracks
from mme.targets.grid import TargetSpec
from mme.targets.hog import hog_at
from mme.video.colour import luma_of
from mme.video.crop import Crop
from tests.reference.primitive_tracks import true_tracks
from tests.targets.cases import compute

HEIGHT, WIDTH, NUM_FRAMES = 256, 454, 24
REPEATS = 5
NUM_STORED, NUM_READS = 1000, 200


def cpu_ms(*actions: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Return median CPU times in milliseconds of actions that take turns; the first turn warms up."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(repeats + 1):
        for action, taken in zip(actions, times, strict=True):
            begin = time.process_time_ns()
            action()
            taken.append((time.process_time_ns() - begin) / 1e6)
    return [statistics.median(taken[1:]) for taken in times]


def large_frames(params: Params, num_frames: int) -> NDArray[np.uint8]:
    """Render two motion primitives side by side, 454 x 256."""
    large = params.synthesize.model_copy(update={"size": HEIGHT, "num_frames": num_frames, "speed_px": (3.0, 6.0)})
    pair = [sample_scene(label, large, (number,)).render() for number, label in enumerate(("right", "clockwise"))]
    return np.concatenate(pair, axis=2)[:, :, :WIDTH]


def time_tracking(frames: NDArray[np.uint8]) -> Iterator[Row]:
    """Measure camera estimation and tracking alone."""
    gray = list(gray_frames(frames[:2]))
    dense = DenseFlow("medium", 3)
    there, back = dense.pair(gray[0], gray[1]), dense.pair(gray[1], gray[0])
    tracker = GridTracker(HEIGHT, WIDTH, 8, 6)
    for _ in range(5):
        tracker.step(there, None)

    def track(backward: NDArray[np.float32] | None) -> Callable[[], object]:
        return lambda: tracker.step(there, backward) and tracker.pop()

    camera, one_way, two_ways = cpu_ms(lambda: estimate_homography(there, 0.5, 0.35, gray[0]), track(None), track(back))
    yield Row("camera", camera, "ms per frame", of=f"{WIDTH} x {HEIGHT}")
    yield Row("tracking, forward only", one_way, "ms per start frame", at_most=2, of="L = 6, cell 8")
    yield Row("tracking, forward-backward", two_ways, "ms per start frame", at_most=2, of="L = 6, cell 8")


def time_store(frames: NDArray[np.uint8], params: TrajectoriesParams, folder: Path) -> Iterator[Row]:
    """Measure reading the tracks of a clip from a shard of 1,000 videos."""
    entry = write_part(folder / "part", iter_tracks(frames, params), params.cell)
    parts = {f"video-{number}": folder / "part" for number in range(NUM_STORED)}
    write_index(folder, merge_parts(folder / "shard.safetensors", parts), {})
    store = TrackStore(folder)
    store.read("video-0", [0], 6)
    times = []
    for number in np.random.default_rng(0).permutation(NUM_STORED)[:NUM_READS]:
        begin = time.perf_counter_ns()
        store.read(f"video-{number}", range(0, 16, 2), 6)
        times.append((time.perf_counter_ns() - begin) / 1e6)
    yield Row(
        "tracks of a clip", statistics.median(times), "ms", at_most=2, of="8 starts, L = 6, a shard of 1,000 videos"
    )
    size = (folder / "shard.safetensors").stat().st_size / NUM_STORED / entry["num_starts"]
    yield Row("stored", size, "bytes per start frame", of=f"cell {params.cell}, {params.max_length} steps")


def time_targets(params: Params) -> Iterator[Row]:
    """Measure HOG and the targets of a clip."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (16, 224, 224, 3), dtype=np.uint8)
    luma = torch.from_numpy(luma_of(frames))
    points = torch.from_numpy(rng.uniform(0, 224, (16, 700, 2)).astype(np.float32))  # of 196 tokens, 90 % hidden
    place = torch.arange(16)[:, None].expand(-1, 700)
    (hog,) = cpu_ms(lambda: hog_at(luma, points, place, 16, params.pretrain.hog_norm_floor))
    yield Row("HOG", hog, "ms", at_most=120, of="16 frames of 224 x 224, 700 points in each")
    scene = sample_scene(CLASSES[0], params.synthesize, (0,)).render()
    spec = TargetSpec.from_params(params.clip, params.model, params.pretrain)
    tracks = extract_tracks(scene, params.trajectories).select(spec.starts(0), spec.length)
    crop = Crop(0, 0, scene.shape[1], scene.shape[2], True)
    view = np.stack([cv2.resize(frame, (spec.width, spec.height)) for frame in scene]).astype(np.uint8)
    positions, both = cpu_ms(lambda: compute(tracks, crop, None, spec), lambda: compute(tracks, crop, view, spec))
    yield Row("target of a clip, positions", positions, "ms", of="as in params.yaml")
    yield Row("target of a clip, positions and shapes", both, "ms", of="as in params.yaml")


def track_errors(params: Params) -> Iterator[Row]:
    """Measure the end-point error per step of tracks of the motion primitives, of all and of valid points."""
    length, start, errors = 6, 4, []
    chosen = params.trajectories.model_copy(update={"max_length": length, "cell": 4})
    size = params.synthesize.size
    points = cell_centres(size, size, chosen.cell).reshape(-1, 2).astype(np.float64)
    for number, label in itertools.product(range(2), CLASSES):
        scene = sample_scene(label, params.synthesize, (number,))
        tracks = extract_tracks(scene.render()[start : start + length + 1], chosen).select([0], length)
        path, on_sprite, visible = true_tracks(scene, start, points, length)
        found = tracks.displacements[0].reshape(len(points), length, 2)
        pixels = np.linalg.norm(np.diff(path, axis=1) - found, axis=-1).mean(axis=1)
        valid = tracks.num_valid[0].reshape(-1) == length
        errors.append(np.stack([pixels, on_sprite, valid], axis=-1)[visible[:, -1]])
    table = np.concatenate(errors)
    for name, wanted in (("sprite", 1), ("background", 0)):
        part = table[table[:, 1] == wanted]
        valid = part[part[:, 2] == 1]
        yield Row(f"{name}, valid points", len(valid) / len(part), "of all")
        for kind, rows in (("all", part), ("valid", valid)):
            for share in (0.5, 0.9):
                title = "median" if share == 0.5 else f"{share:.0%} quantile"
                yield Row(f"{name}, {kind} points, {title}", float(np.quantile(rows[:, 0], share)), "px per step")


def main() -> None:
    """Run the benchmark and record it."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    params = load_params()
    large = params.trajectories.model_copy(update={"cell": 8, "max_length": 8})
    frames = large_frames(params, NUM_FRAMES)
    with tempfile.TemporaryDirectory() as name:
        rows = [*time_tracking(frames), *time_store(frames, large, Path(name)), *time_targets(params)]
    record("targets", rows)
    record("targets/errors", list(track_errors(params)))


if __name__ == "__main__":
    main()
