"""Stage ``trajectories``: flow, camera motion and tracks of every video, into shards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mme.config import Params, load_params
from mme.manifest import MANIFEST_FILE, Manifest
from mme.motion.extract import Extraction, Extractor
from mme.motion.store import TrackStore
from mme.system.errors import one_line_errors
from mme.system.files import atomic_path, write_json
from mme.tracking import start_run
from mme.video.codec import read_frames
from mme.viz.tracks import PreviewRow, contact_sheet, encode_png

OUTPUT = Path("data/trajectories")
REPORTS = Path("reports/trajectories")
WORK = Path(".work/trajectories")

NUM_PICTURED = 6
NUM_LOOKED_AT = 8
"""Start frames of a video from which the picture takes the one with the most motion."""


def main() -> None:
    """Extract tracks as ``params.yaml`` says.

    Raises:
        ValueError: no good video, or the share of bad ones is above ``runtime.max_bad_ratio``.
    """
    params = load_params()
    manifest_file = Path(params.pretrain.data, MANIFEST_FILE)
    manifest = Manifest.load(manifest_file)
    extractor = Extractor(manifest, params.trajectories, WORK, params.runtime)
    with start_run("trajectories", params) as run:
        run.log_dataset(manifest_file, manifest.digest, "trajectories")
        begin = time.perf_counter()
        result = extract(extractor, params)
        extractor.finish(OUTPUT, result)
        run.log_metrics({"trajectories/seconds": time.perf_counter() - begin})
        summary = {
            **result.summary(),
            "bytes": sum(file.stat().st_size for file in OUTPUT.glob("*.safetensors")),
        }
        write_json(REPORTS / "summary.json", summary)
        with atomic_path(REPORTS / "preview.png") as temporary:
            temporary.write_bytes(preview(manifest, TrackStore(OUTPUT), sorted(result.entries)))
        run.log_metrics({f"trajectories/{name}": value for name, value in summary.items()})
        run.log_artifact(REPORTS)


def extract(extractor: Extractor, params: Params) -> Extraction:
    """Extract under a progress bar, and name the bad videos."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("trajectories", total=len(extractor.videos))
        result = extractor.run(params.runtime.num_workers, lambda count: progress.advance(task, count))
    for video_id, reason in result.failures.items():
        console.print(f"bad video {video_id}: {reason}", markup=False, highlight=False, soft_wrap=True)
    bad_ratio, limit = len(result.failures) / len(extractor.videos), params.runtime.max_bad_ratio
    if bad_ratio > limit or not result.entries:
        raise ValueError(
            f"{len(result.failures)} of {len(extractor.videos)} videos are bad: {bad_ratio:.1%} is above"
            f" runtime.max_bad_ratio {limit:g}"
        )
    return result


def preview(manifest: Manifest, store: TrackStore, video_ids: Sequence[str]) -> bytes:
    """A PNG with the tracks of a few videos, each from one of its liveliest frames."""
    length, rows = int(store.params["max_length"]), []
    for place in np.unique(np.linspace(0, len(video_ids) - 1, NUM_PICTURED).astype(int)):
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
        main()
