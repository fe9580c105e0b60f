"""Stage ``synthesize``: the motion primitives as mp4 files, their list and their truth."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
from rich.console import Console
from rich.progress import track

from mme.config import Params, SynthesizeParams, load_params
from mme.config.paths import MOTION_PRIMITIVES
from mme.ingest.motion_primitives import sample_scene
from mme.system.errors import one_line_errors
from mme.system.executors import open_process_pool
from mme.system.files import atomic_path
from mme.video.codec import GOP_FRAMES, write_video

CRF = 14
"""H.264 quality: artefacts below the sensor noise that is drawn into the frames."""


@dataclass(frozen=True)
class Job:
    """One video: its name in the list, its class, and the seed that decides everything else."""

    path: str
    label: str
    split: str
    seed: tuple[int, ...]


def jobs(params: Params) -> Iterator[Job]:
    """Every video, classes in turn, so that each split is balanced."""
    synthesize, classes = params.synthesize, params.synthesize.classes
    sizes = {
        "pretrain": synthesize.num_pretrain,
        "train": synthesize.train_per_class * len(classes),
        "val": synthesize.val_per_class * len(classes),
        "test": synthesize.test_per_class * len(classes),
    }
    for number, (split, size) in enumerate(sizes.items()):
        for index in range(size):
            label = classes[index % len(classes)]
            yield Job(f"{split}/{index:05d}.mp4", label, split, (params.seed, number, index))


def write_clip(job: Job, params: SynthesizeParams, folder: Path) -> None:
    """Render and encode one video."""
    cv2.setNumThreads(1)  # one process a core is faster than threads within a frame of this size
    frames = sample_scene(job.label, params, job.seed).render()
    write_video(folder / job.path, frames, params.fps, CRF, GOP_FRAMES)


def main() -> None:
    """Write the videos, ``list.csv`` (path, label, split; no label for pretraining) and ``truth.jsonl``.

    ``truth.jsonl`` holds class and seed of every video, from which
    `mme.ingest.motion_primitives.sample_scene` gives the exact motion; nothing but tests and benchmarks reads it.
    """
    params = load_params()
    todo = list(jobs(params))
    with atomic_path(MOTION_PRIMITIVES) as folder:
        for split in {job.split for job in todo}:
            (folder / split).mkdir(parents=True)
        with open_process_pool(params.runtime.num_workers, write_clip.__module__) as pool:
            written = pool.call_all(write_clip, ((job.path, (job, params.synthesize, folder)) for job in todo))
            for _ in track(written, "synthesize", len(todo), console=Console(stderr=True)):
                pass
        write_lists(folder, todo)


def write_lists(folder: Path, todo: list[Job]) -> None:
    """Write ``list.csv`` and ``truth.jsonl``."""
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "split"])
        writer.writerows([job.path, "" if job.split == "pretrain" else job.label, job.split] for job in todo)
    truth = (json.dumps({"path": job.path, "label": job.label, "seed": job.seed}) for job in todo)
    (folder / "truth.jsonl").write_text("\n".join(truth) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors():
        main()
