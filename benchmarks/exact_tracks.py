"""Pretraining on the true trajectories of the motion primitives, beside trajectories from optical flow.

Run after ``make repro``: ``python -m benchmarks.exact_tracks``. Pretrains, finetunes and evaluates anew for each seed,
with tracks from how the scenes were made in place of those in ``data/trajectories``; the rest is the same,
through the same stages, in a temporary folder. Writes ``reports/exact_tracks.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.progress import track

from benchmarks.pretraining_gain import GAIN_REPORT, ROOT, run_init
from mme.config import Params, load_params
from mme.config.paths import MOTION_PRIMITIVES
from mme.ingest.motion_primitives import Scene, sample_scene
from mme.manifest import Manifest
from mme.motion.camera import CameraMotion
from mme.motion.store import TrackStore, merge_parts, write_index, write_part
from mme.motion.tracking import StartTracks, cell_centres
from mme.system.executors import open_process_pool
from mme.system.files import read_json, write_json, write_text
from tests.reference.primitive_tracks import true_tracks

REPORT = ROOT / "reports" / "exact_tracks"


def true_starts(scene: Scene, cell: int, max_length: int) -> Iterator[StartTracks]:
    """Yield the true tracks from each frame but the last, as the extraction does; the camera stays in them."""
    grid = cell_centres(scene.size, scene.size, cell)  # (h, w, 2)
    points = grid.reshape(-1, 2).astype(np.float64)  # (P, 2)
    last = len(scene.angles) - 1
    for start in range(last):
        length = min(max_length, last - start)
        positions, _, visible = true_tracks(scene, start, points, length)  # (P, L + 1, 2), _, (P, L + 1)
        steps = np.where(visible[:, 1:, None], np.diff(positions, axis=1), 0)  # (P, L, 2)
        displacements = np.zeros((len(points), max_length, 2), np.float32)
        displacements[:, :length] = steps
        yield StartTracks(
            displacements.reshape(*grid.shape[:2], max_length, 2),
            visible[:, 1:].sum(axis=1).astype(np.uint8).reshape(grid.shape[:2]),
            CameraMotion(np.eye(3), False, 0.0),
            length == max_length,
            (scene.size, scene.size),
        )


def write_true_part(folder: Path, label: str, seed: tuple[int, ...], params: Params) -> None:
    """Write the true tracks of one video."""
    scene = sample_scene(label, params.synthesize, seed)
    tracks = params.trajectories
    write_part(folder, true_starts(scene, tracks.cell, tracks.max_length), tracks.cell)


def write_true_store(folder: Path, work: Path, params: Params) -> None:
    """Write a store like that of ``data/trajectories`` with true tracks."""
    extracted = TrackStore(ROOT / "data" / "trajectories")
    lines = (ROOT / MOTION_PRIMITIVES / "truth.jsonl").read_text(encoding="utf-8").splitlines()
    truth = {row["path"]: row for row in map(json.loads, lines)}
    manifest = Manifest.load(ROOT / "data" / "manifest.parquet")
    videos = [manifest[video_id] for video_id in extracted.ids]
    calls = []
    for video in videos:
        row = truth[video.source_path]
        calls.append((video.id, (work / video.id, row["label"], tuple(row["seed"]), params)))
    with open_process_pool(params.runtime.num_workers, __name__) as pool:
        done = pool.call_all(write_true_part, calls)
        for _ in track(done, "true tracks", len(calls), console=Console(stderr=True)):
            pass
    folder.mkdir()
    entries = merge_parts(folder / "tracks-00000.safetensors", {video.id: work / video.id for video in videos})
    write_index(folder, entries, {**extracted.params, "flow": "none: true tracks"})


def table(rows: list[dict[str, float]], flow: dict[float, float]) -> str:
    """Return the report as Markdown; ``flow`` is the accuracy with optical flow by seed."""
    lines = ["| seed | true trajectories, top-1 | optical flow, top-1 |", "| --- | --- | --- |"]
    lines += [f"| {row['seed']} | {row['pretrained/top1']:.1%} | {flow[row['seed']]:.1%} |" for row in rows]
    means = [
        statistics.mean(row["pretrained/top1"] for row in rows),
        statistics.mean(flow[row["seed"]] for row in rows),
    ]
    return "\n".join([*lines, f"| **mean** | **{means[0]:.1%}** | **{means[1]:.1%}** |"]) + "\n"


def main() -> None:
    """Run every seed, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    flow = {row["seed"]: row["pretrained/top1"] for row in read_json(GAIN_REPORT.with_suffix(".json"))}
    if missing := sorted(set(seeds) - flow.keys()):
        parser.error(f"{GAIN_REPORT.with_suffix('.json')} has no seeds {missing}; run benchmarks/pretraining_gain.py")
    raw: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        for item in (ROOT / "data").iterdir():
            if item.name != "trajectories":
                (folder / "data" / item.name).symlink_to(item)
        write_true_store(folder / "data" / "trajectories", folder / "work", load_params())
        for seed in seeds:
            rows.append({"seed": seed, **run_init("pretrained", seed, folder, raw)})
            print(table(rows, flow), flush=True)
    write_json(REPORT.with_suffix(".json"), rows)
    write_text(REPORT.with_suffix(".md"), table(rows, flow))


if __name__ == "__main__":
    main()
