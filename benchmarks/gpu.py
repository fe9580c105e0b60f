"""Pretraining ViT-B/16 on one CUDA device: ``python -m benchmarks.gpu``.

Steps on batches in its memory, in each precision and with each memory saver, beside transformers' VideoMAE with pixel
targets in the same sizes; and the clips per second that the CPU cores load from files. Medians of wall time,
synchronised with the device. Without a device nothing is measured.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import default_collate

from benchmarks.assembly import VIT_B, changed
from benchmarks.hf_speed import hf_network
from benchmarks.report import Row, record
from benchmarks.speed import stored
from benchmarks.targets import large_frames
from mme.config import Params, load_params
from mme.data.masked.clips import PretrainDataset
from mme.manifest import Manifest
from mme.motion.extract import Extractor
from mme.motion.store import TrackStore
from mme.training.loop.loaders import training_loader
from mme.training.pretrain import PretrainModule, pretrain_dataset, target_statistics

BATCH, STEPS, WARM = 64, 10, 4
NUM_VIDEOS, NUM_FRAMES = 64, 80
LOADED_BATCH, LOADED_BATCHES = 16, 60

CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("32", "32", {}),
    ("bf16-mixed", "bf16-mixed", {}),
    ("bf16-mixed, compile", "bf16-mixed", {"compile": True}),
    ("bf16-mixed, gradient_checkpointing", "bf16-mixed", {"gradient_checkpointing": True}),
)


def autocast(precision: str) -> AbstractContextManager[Any]:
    """Return the autocast context that Lightning uses in this precision."""
    return torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed")


def measure_steps(step: Callable[[], object], num_clips: int) -> tuple[float, float]:
    """Return clips per second and peak memory in GiB, after warm-up steps that include compilation."""
    for _ in range(WARM):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return num_clips / statistics.median(times), torch.cuda.max_memory_allocated() / 2**30


def step_of(network: torch.nn.Module, loss: Callable[[], Tensor], precision: str, params: Params) -> Callable[[], None]:
    """Return a function that runs forward, backward, clipping and update, without the training loop."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), params.pretrain.clip_grad)
        optimizer.step()

    return step


def mme_step(params: Params, statistics_: dict[str, Any], batch: dict[str, Tensor]) -> Callable[[], None]:
    """Return a step of this project's model with motion targets."""
    torch.manual_seed(0)
    module = PretrainModule(params, statistics_, 1).cuda()
    prepared = module.prepare(batch)
    return step_of(module, lambda: module.losses(prepared)["loss"], params.pretrain.precision, params)


def hf_gpu_step(params: Params, precision: str) -> Callable[[], None]:
    """Return a step of transformers' VideoMAE with pixel targets."""
    network, pixels, hidden = hf_network(params)
    network, pixels, hidden = network.cuda(), pixels.cuda(), hidden.cuda()
    return step_of(network, lambda: network(pixels, bool_masked_pos=hidden).loss, precision, params)


def time_gpu_steps(params: Params, dataset: PretrainDataset) -> Iterator[Row]:
    """Measure steps of this project in every case, then of transformers."""
    statistics_ = target_statistics(dataset)
    samples = [dataset[0, index] for index in range(BATCH)]
    batch = {name: value.cuda() for name, value in default_collate(samples).items()}
    of = f"{BATCH} clips of 16 x 224, {params.pretrain.mask_ratio:.0%} hidden"
    mme = {}
    for name, precision, runtime in CASES:
        case = changed(params, {"pretrain": {"precision": precision}, "runtime": runtime})
        step = mme_step(case, statistics_, batch)
        mme[name], memory = measure_steps(step, BATCH)
        yield Row(f"{name}: clips per second", mme[name], "clips per second", of=of)
        yield Row(f"{name}: memory", memory, "GiB", of=of)
        del step
        torch.compiler.reset()
        torch.cuda.empty_cache()
    for precision in ("32", "bf16-mixed"):
        rival, memory = measure_steps(hf_gpu_step(params, precision), BATCH)
        yield Row(f"transformers, {precision}: clips per second", rival, "clips per second", of=of)
        yield Row(f"transformers, {precision}: memory", memory, "GiB", of=of)
        yield Row(f"{precision}: clips per second", mme[precision] / rival, "x transformers", at_least=1.0, of=of)
        torch.cuda.empty_cache()


def make_data(params: Params, folder: Path) -> Manifest:
    """Write videos in the normal form with the size and length that clips of Kinetics need."""
    frames = large_frames(params, NUM_FRAMES)
    paths = [folder / "videos" / f"{number}.mp4" for number in range(NUM_VIDEOS)]
    return Manifest([stored(path, frames, 30.0, params, None, "pretrain") for path in paths], folder)


def time_extraction(params: Params, manifest: Manifest, cores: int) -> Row:
    """Measure the extraction of tracks on all cores."""
    folder = manifest.folder
    extractor = Extractor(manifest, params.trajectories, folder / "work", params.runtime)
    begin = time.perf_counter()
    extraction = extractor.run(cores, lambda _: None)
    minutes = (time.perf_counter() - begin) / 60
    extractor.finish(folder / "trajectories", extraction)
    of = f"{cores} processes, {NUM_FRAMES} frames of 454 x 256, start-up included"
    return Row("trajectories", NUM_VIDEOS / minutes / cores, "videos per core-minute", of=of)


def time_loading(params: Params, manifest: Manifest, cores: int) -> Iterator[Row]:
    """Measure loading batches from files on all cores but the one that trains."""
    tracks = TrackStore(manifest.folder / "trajectories")
    cases = (
        ("mme, hog_steps: all", "mme", "all"),
        ("mme, hog_steps: first", "mme", "first"),
        ("pixel", "pixel", "all"),
    )
    for name, objective, hog_steps in cases:
        changes = {
            "objective": objective, "hog_steps": hog_steps,
            "batch_size": LOADED_BATCH,
        }  # fmt: skip
        runtime = {"num_loader_workers": cores - 1, "frame_cache_mb": 0}
        case = changed(params, {"pretrain": changes, "runtime": runtime})
        dataset = pretrain_dataset(case, manifest, tracks, ["pretrain"])
        num_batches = LOADED_BATCHES + 3 * cores
        repeats = -(-num_batches * LOADED_BATCH // NUM_VIDEOS)
        batches = iter(training_loader(dataset, case.pretrain, case.runtime, 0, repeats=repeats))
        for _ in itertools.islice(batches, 2 * cores):  # each worker has begun its third
            pass
        begin = time.perf_counter()
        for _ in itertools.islice(batches, LOADED_BATCHES):
            pass
        rate = LOADED_BATCHES * LOADED_BATCH / (time.perf_counter() - begin)
        yield Row(f"loading, {name}", rate, "clips per second", of=f"{cores - 1} loader processes on {cores} cores")


def main() -> None:
    """Run the benchmark and record it."""
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: nothing measured")
    cv2.setNumThreads(1)
    cores = os.cpu_count() or 1
    data: dict[str, dict[str, Any]] = {
        "trajectories": {"splits": ("pretrain",)},
        "runtime": {"videos_per_shard": max(1, NUM_VIDEOS // cores)},
        "pretrain": {"splits": ("pretrain",), "batch_size": BATCH, "min_scale": 0.66},
    }
    params = changed(changed(load_params(), VIT_B), data)
    card = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as name:
        manifest = make_data(params, Path(name))
        rows = [time_extraction(params, manifest, cores)]
        dataset = pretrain_dataset(params, manifest, TrackStore(Path(name) / "trajectories"), ["pretrain"])
        for row in itertools.chain(time_gpu_steps(params, dataset), time_loading(params, manifest, cores)):
            rows.append(row)
            print(f"{row.what}: {row.value:.4g} {row.unit}", flush=True)
    record(f"gpu, {card}", rows)


if __name__ == "__main__":
    main()
