"""Time of each part with the committed parameters on one core: ``python -m benchmarks speed``.

Generates a few motion primitives in a temporary folder and measures rendering, decoding, trajectories, training steps
and classification on them. Medians of wall time.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from benchmarks.report import Row, record
from mme.config import Params, load_params
from mme.data.labelled.clips import LabelledDataset
from mme.evaluation.classifier import Classifier
from mme.ingest.motion_primitives import sample_scene
from mme.manifest import Manifest, Video
from mme.models.checkpoints import FOLDER_FORMAT, FolderConfig, ViewsConfig, save_folder
from mme.models.classifier import MotionClassifier
from mme.models.encoder import model_input
from mme.motion.extract import Extractor
from mme.motion.store import TrackStore
from mme.motion.tracking import extract_tracks
from mme.system.files import sha256_file
from mme.training.finetune import FinetuneModule
from mme.training.loop.loaders import training_loader
from mme.training.pretrain import PretrainModule, pretrain_dataset, target_statistics
from mme.video.codec import GOP_FRAMES, read_frames, write_video

NUM_VIDEOS = 32
REPEATS = 5


def median_ms(action: Callable[[], object]) -> float:
    """Return the median wall time of an action in milliseconds, without the first call."""
    times = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        action()
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times[1:])


def timed(what: str, milliseconds: float, of: str) -> Row:
    """Return a row of the report in milliseconds."""
    return Row(what, milliseconds, "ms", of=of)


def stored(path: Path, frames: NDArray[np.uint8], fps: float, params: Params, label: str | None, split: str) -> Video:
    """Write frames as a file in the normal form and return its row; the id is the file's stem."""
    write_video(path, frames, fps, params.ingest.crf, GOP_FRAMES)
    num_frames, height, width = frames.shape[:3]
    return Video(
        path.stem, path.name, sha256_file(path), label, split, None,
        num_frames, fps, width, height, "ok", None, path.name, fps,
    )  # fmt: skip


def make_videos(params: Params, folder: Path) -> Manifest:
    """Write videos with labels in turn, all in the split ``train``."""
    labels, rows = params.synthesize.classes, []
    for index in range(NUM_VIDEOS):
        label = labels[index % len(labels)]
        frames = sample_scene(label, params.synthesize, (index,)).render()
        path = folder / "videos" / f"{index}.mp4"
        rows.append(stored(path, frames, params.synthesize.fps, params, label, "train"))
    return Manifest(rows, folder)


def step_ms(module: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> float:
    """Measure a training step: forward, backward and update."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return median_ms(step)


def time_videos(params: Params, manifest: Manifest) -> Iterator[Row]:
    """Measure rendering, decoding and tracking."""
    label, (video, *_) = params.synthesize.classes[0], manifest.rows
    path, size = manifest.path_of(video), f"{video.num_frames} frames of {video.width} x {video.height}"
    frames = read_frames(path)
    yield timed("render", median_ms(lambda: sample_scene(label, params.synthesize, (0,)).render()), size)
    yield timed("decode", median_ms(lambda: read_frames(path)), size)
    yield timed("trajectories", median_ms(lambda: extract_tracks(frames, params.trajectories)), size)


def time_pretraining(params: Params, manifest: Manifest, tracks: TrackStore) -> Iterator[Row]:
    """Measure a sample and a step of pretraining."""
    dataset = pretrain_dataset(params, manifest, tracks, ["train"])
    batches = training_loader(dataset, params.pretrain, params.runtime, 0)
    batch = next(iter(batches))
    module = PretrainModule(params, target_statistics(dataset), len(batches))
    sample = median_ms(lambda: [dataset[0, index] for index in range(NUM_VIDEOS)]) / NUM_VIDEOS
    yield timed("pretraining sample", sample, "clip, mask and tracks, frames cached")
    step = step_ms(module, lambda: module.losses(module.prepare(batch))["loss"])
    yield timed("pretraining step, targets included", step, f"batch of {len(batch['hidden'])}")


def time_finetuning(params: Params, manifest: Manifest) -> Iterator[Row]:
    """Measure a step of finetuning."""
    dataset = LabelledDataset(
        manifest, "train", params.clip, params.finetune, seed=params.seed, training=True, cache_mb=512
    )
    batch = next(iter(training_loader(dataset, params.finetune, params.runtime, 0)))
    module = FinetuneModule(params, len(manifest.labels), 1)

    def loss() -> torch.Tensor:
        return cross_entropy(module.model(model_input(batch["clip"], params.clip)), batch["label"])

    yield timed("finetuning step", step_ms(module, loss), f"batch of {len(batch['clip'])}")


def time_classifier(params: Params, manifest: Manifest, folder: Path) -> Iterator[Row]:
    """Measure the classification of a file, from its bytes to labels."""
    config = FolderConfig(
        format=FOLDER_FORMAT, name="speed", model=params.model, clip=params.clip, fps=manifest.fps,
        labels=tuple(manifest.labels),
        views=ViewsConfig(segments=params.evaluate.segments, crops=params.evaluate.crops), provenance={}, metrics={},
    )  # fmt: skip
    save_folder(folder, MotionClassifier(params.model, params.clip, len(manifest.labels)), config)
    classifier = Classifier.load(folder)
    content = manifest.path_of(manifest.rows[0]).read_bytes()
    yield timed("answer", median_ms(lambda: classifier.classify(content)), f"{params.evaluate.segments} clips")


def measure_parts(params: Params, folder: Path) -> Iterator[Row]:
    """Measure every part in turn."""
    manifest = make_videos(params, folder)
    extractor = Extractor(manifest, params.trajectories, folder / "work", params.runtime)
    extractor.finish(folder / "trajectories", extractor.run(1, lambda _: None))
    yield from time_videos(params, manifest)
    yield from time_pretraining(params, manifest, TrackStore(folder / "trajectories"))
    yield from time_finetuning(params, manifest)
    yield from time_classifier(params, manifest, folder / "model")


def main() -> None:
    """Run the benchmark and record it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        record("speed", list(measure_parts(load_params(), Path(name))))


if __name__ == "__main__":
    main()
