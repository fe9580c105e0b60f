"""Stage ``trajectories``: flow, camera motion and tracks of every video, into shards."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mme.config import RuntimeParams, load_params
from mme.config.paths import REPORTS_FOLDER, WORK_FOLDER, tracks_folder
from mme.manifest import Manifest
from mme.motion.extract import Extraction, Extractor
from mme.motion.store import TrackStore
from mme.stages.workspace import load_manifest, recorded_stage, stage_name
from mme.system.errors import one_line_errors
from mme.system.files import atomic_path, write_json
from mme.video.codec import read_frames
from mme.viz.drawing import encode_png
from mme.viz.tracks import PreviewRow, contact_sheet

NUM_PREVIEWED = 6
NUM_LOOKED_AT = 8
"""Start frames of a video from which the picture takes the one with the most motion."""


def main(name: str | None = None) -> None:
    """Extract tracks as ``params.yaml`` says.

    Args:
        name: pretraining of ``warm_starts`` that they are for; None for the section ``pretrain``.

    Raises:
        ValueError: no good video, or the share of bad ones is above ``runtime.max_bad_ratio``.
    """
    params, stage = load_params(warm_start=name), stage_name("trajectories", name)
    folder = tracks_folder(name)
    manifest = load_manifest(params.pretrain.data)
    extractor = Extractor(manifest, params.trajectories, WORK_FOLDER / stage, params.runtime)
    report = REPORTS_FOLDER / stage
    with recorded_stage(stage, params, manifest, "trajectories") as run:
        begin = time.perf_counter()
        result = extract_all(extractor, params.runtime)
        extractor.finish(folder, result)
        run.log_metrics({"trajectories/seconds": time.perf_counter() - begin})
        summary = {
            **result.summary(),
            "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        }
        write_json(report / "summary.json", summary)
        with atomic_path(report / "preview.png") as temporary:
            temporary.write_bytes(preview(manifest, TrackStore(folder), sorted(result.entries)))
        run.log_metrics({f"trajectories/{name}": value for name, value in summary.items()})


def extract_all(extractor: Extractor, runtime: RuntimeParams) -> Extraction:
    """Extract under a progress bar, and name the bad videos."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("trajectories", total=len(extractor.videos))
        result = extractor.run(runtime.num_workers, lambda count: progress.advance(task, count))
    if result.num_still:
        console.print(f"left out: {result.num_still} videos of a single frame, which has no motion", highlight=False)
    for video_id, reason in result.failures.items():
        console.print(f"bad video {video_id}: {reason}", markup=False, highlight=False, soft_wrap=True)
    bad_ratio, limit = len(result.failures) / len(extractor.videos), runtime.max_bad_ratio
    if bad_ratio > limit or not result.entries:
        raise ValueError(
            f"{len(result.failures)} of {len(extractor.videos)} videos are bad: {bad_ratio:.1%} is above"
            f" runtime.max_bad_ratio {limit:g}"
        )
    return result


def preview(manifest: Manifest, store: TrackStore, video_ids: Sequence[str]) -> bytes:
    """A PNG with the tracks of a few videos, each from one of its liveliest frames."""
    length, rows = int(store.params["max_length"]), []
    for place in np.unique(np.linspace(0, len(video_ids) - 1, NUM_PREVIEWED).astype(int)):
        video = manifest[video_ids[place]]
        last = max(store.num_starts(video.id) - length, 0)
        starts = np.unique(np.linspace(0, last, NUM_LOOKED_AT).astype(int)).tolist()
        motion = np.abs(store.read(video.id, starts, length).residuals()).mean(axis=(1, 2, 3, 4))
        start = starts[int(motion.argmax())]
        frame = read_frames(manifest.path_of(video), [start])[0]
        title = f"{video.id}   frame {start}" + (f"   {video.label}" if video.label else "")
        rows.append(PreviewRow(title, frame, store.read(video.id, [start], length)))
    return encode_png(contact_sheet(rows))


if __name__ == "__main__":
    with one_line_errors():
        main(*sys.argv[1:])
