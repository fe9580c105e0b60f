"""Pretraining ViT-B/16 on one CUDA device, from files: ``python -m benchmarks.gpu``.

Makes its own videos and tracks, then measures, each by itself and each recorded when it is done:

- losses and targets on the device against those of the CPU;
- the step on batches in the device's memory, and the share of it that targets take;
- one process of torchrun with NCCL;
- the bare decoder and loading, on all cores;
- training end to end from files, by the loop that `mme` trains with, at one and two draws per decoding.

Names of measurements as arguments choose some of them.

Without a device it runs in miniature on the CPU, which says that the script works and nothing of speed.
"""

from __future__ import annotations

import inspect
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import mme  # noqa: F401 - first of all, because it mends what importing torchvision needs

# isort: split
import cv2
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from benchmarks.assembly import changed
from benchmarks.feed import HEIGHT, WIDTH, bare_decoding, make_data, vit_b
from benchmarks.report import REPORT, Row, record
from mme.config import Params, load_params
from mme.data.frames import PlaneCache
from mme.manifest import Manifest
from mme.motion.store import TrackStore
from mme.system.files import write_json
from mme.training.loop import trainer as trainer_module
from mme.training.loop.loaders import training_loader
from mme.training.loop.module import TrainingModule
from mme.training.loop.trainer import build_trainer, fit, rank_of
from mme.training.pretrain import PretrainModule, Statistics, pretrain_dataset, target_statistics
from mme.video.planes import YuvFrame

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
CORES = len(os.sched_getaffinity(0))
BATCH = 64 if ON_GPU else 4
NUM_VIDEOS, NUM_FRAMES = (64, 120) if ON_GPU else (4, 80)
STEPS, WARM = (10, 4) if ON_GPU else (1, 1)
NCCL_STEPS = 4

SMALL: dict[str, dict[str, Any]] = {
    "clip": {"size": 64},
    "model": {"dim": 64, "depth": 2, "num_heads": 2},
    "pretrain": {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 1},
}
"""Instead of ViT-B/16 at 224 pixels, where there is no device."""


def params_of(draws: int = 1, batch_size: int = BATCH, workers: int = CORES, **runtime: Any) -> Params:
    """Return the parameters of a training, of one epoch per draw."""
    params = vit_b(load_params(), draws, num_loader_workers=workers, device=DEVICE, **runtime)
    budget = {
        "batch_size": batch_size,
        "epochs": draws,
        "warmup_epochs": 0,
        "precision": "bf16-mixed" if ON_GPU else "32",
    }
    params = changed(params, {"pretrain": budget})
    return params if ON_GPU else changed(params, SMALL)


def autocast(precision: str) -> AbstractContextManager[Any]:
    """Return the autocast context that Lightning uses in this precision."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16-mixed")


def synchronise() -> None:
    """Wait for the device."""
    if ON_GPU:
        torch.cuda.synchronize()


def median_ms(action: Callable[[], object], steps: int = STEPS, warm: int = WARM) -> float:
    """Return the median wall time of an action, synchronised with the device."""
    times = []
    for number in range(warm + steps):
        synchronise()
        begin = time.perf_counter()
        action()
        synchronise()
        if number >= warm:
            times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def dataset_of(params: Params, folder: Path) -> Any:
    """Return the clips of the videos in a folder."""
    manifest = Manifest.load(folder / "manifest.parquet")
    return pretrain_dataset(params, manifest, TrackStore(folder / "trajectories"), ["pretrain"])


def moments_of(params: Params, folder: Path) -> Statistics:
    """Return mean and deviation of the targets, which are measured once."""
    path = folder / "statistics.pt"
    if not path.exists():
        torch.save(target_statistics(dataset_of(params, folder)), path)
    statistics_: Statistics = torch.load(path, weights_only=True)
    return statistics_


def compare_with_cpu(folder: Path) -> Iterator[Row]:
    """Compare loss, targets and pixels of the device with those of the CPU, in 32 bits."""
    params = changed(params_of(batch_size=4), {"pretrain": {"precision": "32"}})
    dataset = dataset_of(params, folder)
    batch = default_collate([dataset[0, index % len(dataset)] for index in range(4)])
    moments = moments_of(params, folder)
    losses, prepared = {}, {}
    torch.backends.cuda.matmul.allow_tf32 = False
    for device in ("cpu", DEVICE):
        torch.manual_seed(0)
        module = PretrainModule(params, moments, 1).to(device)
        with torch.no_grad():
            part = module.prepare({name: value.to(device) for name, value in batch.items()})
            losses[device] = {name: float(value) for name, value in module.losses(part).items()}
        prepared[device] = {name: value.float().cpu() for name, value in part.items()}
    for name, value in losses["cpu"].items():
        yield Row(f"{name}, device against CPU", abs(losses[DEVICE][name] / value - 1), "relative", at_most=1e-4)
    hog = moments["hog"][1]
    scale = {"hog": float(hog), "position": float(moments["position"][1]), "tubelets": 1.0}
    for name, unit in (("hog", "of norm 1"), ("position", "px"), ("tubelets", "deviations")):
        error = (prepared["cpu"][name] - prepared[DEVICE][name]).abs().max() * scale[name]
        yield Row(
            f"{name}, device against CPU",
            float(error),
            f"largest error, {unit}",
            at_most=1e-3 if name == "position" else 1e-4,
        )
    yield Row(
        "valid points that differ",
        float((prepared["cpu"]["hog_valid"] != prepared[DEVICE]["hog_valid"]).float().mean()),
        "of all",
        at_most=1e-4,
    )


def time_steps(folder: Path) -> Iterator[Row]:
    """Measure the step on a batch in the device's memory, and its targets."""
    params = params_of()
    dataset = dataset_of(params, folder)
    samples = [dataset[0, index] for index in range(min(BATCH, len(dataset)))]
    batch = {name: value.to(DEVICE) for name, value in default_collate(samples).items()}
    size = len(samples)
    torch.manual_seed(0)
    module = PretrainModule(params, moments_of(params, folder), 1).to(DEVICE)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step(prepare: Callable[[], Mapping[str, Tensor]]) -> None:
        optimizer.zero_grad()
        with autocast(params.pretrain.precision):
            loss = module.losses(prepare())["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), params.pretrain.clip_grad)
        optimizer.step()

    prepared = module.prepare(batch)
    pinned = {name: value.cpu().pin_memory() if ON_GPU else value for name, value in batch.items()}
    of = f"{size} clips, {params.pretrain.precision}, {params.pretrain.mask_ratio:.0%} hidden"
    copy = median_ms(lambda: [value.to(DEVICE, non_blocking=True) for value in pinned.values()])
    pixels = median_ms(lambda: module.visible_pixels(batch))
    targets = median_ms(lambda: module.prepare(batch)) - pixels
    whole = median_ms(lambda: step(lambda: module.prepare(batch)))
    bare = median_ms(lambda: step(lambda: prepared))
    yield Row("copy to the device", copy, "ms", of=of)
    yield Row("pixels", pixels, "ms", of="of visible tokens")
    yield Row("targets", targets, "ms", of=of)
    yield Row("step without targets", bare, "ms", of=of)
    yield Row("step", whole, "ms", of=of)
    yield Row("share of targets", targets / whole, "of the step", at_most=0.15 if ON_GPU else None)
    yield Row("clips per second, bare", size / bare * 1e3, "clips per second", of=of)
    yield Row("clips per second, with targets", size / whole * 1e3, "clips per second", of=of)
    if ON_GPU:
        yield Row("memory", torch.cuda.max_memory_allocated() / 2**30, "GiB", of=of)


class Counted(PlaneCache):
    """Decodes each time, and counts the decodings of all loader processes."""

    def __init__(self) -> None:
        super().__init__(0)
        self.count = multiprocessing.Value("q", 0)

    def read(self, path: Path, start: int, stop: int, video_bytes: int) -> Iterator[YuvFrame]:
        """Decode."""
        yield from super().read(path, start, stop, video_bytes)
        with self.count.get_lock():
            self.count.value += 1


class Steady(Callback):
    """Time and losses of the steps after the first ones, and what loader processes decoded meanwhile."""

    def __init__(self, skip: int, decoded: Counted) -> None:
        self.skip = skip
        self.decoded = decoded
        self.ends: list[float] = []
        self.loaded: list[int] = []
        self.waits: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Note how long the batch was waited for, its copy to the device included."""
        self.waits.append(time.perf_counter() - self.ends[-1] if self.ends else 0.0)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        """Note the end of the step; reading its loss waits for the device."""
        assert isinstance(pl_module, TrainingModule)
        self.losses.append(float(pl_module.step_losses["loss"]))
        self.ends.append(time.perf_counter())
        self.loaded.append(self.decoded.count.value)

    def rates(self, clips: int, draws: int) -> tuple[float, float, float]:
        """Return clips trained and clips loaded per second, and the share of waiting, after the first steps.

        More may be trained than loaded for as long as batches lie ready: the smaller of the two lasts.
        """
        seconds = self.ends[-1] - self.ends[self.skip]
        steps = len(self.ends) - 1 - self.skip
        loaded = draws * (self.loaded[-1] - self.loaded[self.skip])
        return steps * clips / seconds, loaded / seconds, sum(self.waits[self.skip + 1 :]) / seconds


def train(params: Params, folder: Path, work: Path, num_steps: int, skip: int) -> Steady:
    """Train from files for some steps, by the loop of `mme`."""
    dataset, decoded = dataset_of(params, folder), Counted()
    dataset.tracked.cache = decoded
    steady = Steady(skip, decoded)
    trainer = build_trainer(work, params.runtime, params.pretrain, [steady])
    per_pass = len(dataset) * params.pretrain.draws_per_decode
    repeats = -(-num_steps * params.pretrain.batch_size // per_pass)
    batches = training_loader(dataset, params.pretrain, params.runtime, 0, rank_of(trainer), repeats)
    torch.manual_seed(0)
    module = PretrainModule(params, moments_of(params, folder), len(batches))
    trainer.limit_train_batches = num_steps
    fit(trainer, module, batches, None, work)
    return steady


def time_training(folder: Path) -> Iterator[Row]:
    """Measure training end to end from files."""
    workers = CORES if ON_GPU else 1
    # Every worker prepares whole batches: the rate is steady once each has delivered its third.
    skip, measured = (3 * workers, 3 * workers) if ON_GPU else (1, 3)
    for draws, compiled, at_least in ((1, False, 400.0), (2, False, 700.0), (2, True, 700.0)):
        params = params_of(draws, workers=workers, compile=compiled and ON_GPU)
        with tempfile.TemporaryDirectory() as work:
            steady = train(params, folder, Path(work), skip + measured + 1, skip)
        trained, loaded, waiting = steady.rates(params.pretrain.batch_size, draws)
        of = f"{draws} draw{'s' if draws > 1 else ''} per decoding, {workers} loader processes on {CORES} cores"
        of += ", compiled" if params.runtime.compile else ""
        rate = min(trained, loaded)
        yield Row("training from files", rate, "clips per second", at_least=at_least if ON_GPU else None, of=of)
        yield Row("trained", trained, "clips per second", of=f"of the same run, {loaded:.0f} loaded meanwhile")
        yield Row("waiting", waiting, "of the time", of=of)
        yield Row("loss", steady.losses[0], "at first", of=f"{steady.losses[-1]:.3f} after {len(steady.losses)} steps")


def time_loading(folder: Path) -> Iterator[Row]:
    """Measure loading alone: batches are taken and thrown away."""
    if not ON_GPU:
        return
    params = params_of()
    dataset = dataset_of(params, folder)
    skip, measured = 2 * CORES, 2 * CORES
    repeats = -(-(4 * CORES + skip + measured) * BATCH // len(dataset))
    batches = iter(training_loader(dataset, params.pretrain, params.runtime, 0, repeats=repeats))
    for _ in itertools.islice(batches, skip):
        pass
    begin = time.perf_counter()
    for _ in itertools.islice(batches, measured):
        pass
    rate = measured * BATCH / (time.perf_counter() - begin)
    yield Row("loading alone", rate, "clips per second", of=f"{CORES} loader processes")


def time_decoding(folder: Path) -> Iterator[Row]:
    """Measure the bare decoder on all cores, the limit of what loading can reach."""
    dataset = dataset_of(params_of(), folder)
    paths = sorted((folder / "videos").iterdir())
    jobs = [paths[number % len(paths)] for number in range(40 * CORES if ON_GPU else 2)]
    num_frames = dataset.num_frames + 4  # from the keyframe before
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(bare_decoding, paths[:CORES], itertools.repeat(num_frames)))
        begin = time.perf_counter()
        list(pool.map(bare_decoding, jobs, itertools.repeat(num_frames)))
        rate = len(jobs) / (time.perf_counter() - begin)
    yield Row("bare decoder", rate, "clips per second", of=f"{num_frames} frames, {CORES} processes")


def compare_with_torchrun(folder: Path) -> Iterator[Row]:
    """Train the same steps in this process and in one of torchrun."""
    losses = {}
    with tempfile.TemporaryDirectory() as work:
        params = params_of(batch_size=min(8, BATCH), workers=1)
        losses["alone"] = train(params, folder, Path(work), NCCL_STEPS, 0).losses
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    with tempfile.TemporaryDirectory() as work:
        output = Path(work) / "losses.json"
        answer = subprocess.run(
            [*launcher, "-m", "benchmarks.gpu", "process", str(folder), str(output)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if answer.returncode:
            raise RuntimeError(answer.stderr[-4000:])
        found = json.loads(output.read_text(encoding="utf-8"))
    worst = max(abs(a / b - 1) for a, b in zip(found["losses"], losses["alone"], strict=True))
    yield Row(
        f"torchrun, {found['backend']}, against a process alone",
        worst,
        "relative",
        at_most=1e-3,
        of=f"{NCCL_STEPS} steps",
    )


def torchrun_process(folder: Path, output: Path) -> None:
    """Train as one process of torchrun, and write the losses."""
    if "forward_sync_buffers" not in inspect.signature(DistributedDataParallel).parameters:  # PyTorch before 2.13

        def older(forward_sync_buffers: bool, **options: Any) -> DDPStrategy:
            return DDPStrategy(broadcast_buffers=forward_sync_buffers, **options)

        trainer_module.DDPStrategy = older  # type: ignore[assignment,attr-defined]
    params = params_of(batch_size=min(8, BATCH), workers=1)
    with tempfile.TemporaryDirectory() as work:
        steady = train(params, folder, Path(work), NCCL_STEPS, 0)
    write_json(output, {"losses": steady.losses, "backend": torch.distributed.get_backend()})


MEASUREMENTS = (compare_with_cpu, time_steps, compare_with_torchrun, time_decoding, time_loading, time_training)


def main(names: Sequence[str]) -> None:
    """Run every measurement, or those named, and record it; one that fails does not stop the others."""
    cv2.setNumThreads(1)
    begin, failed = time.perf_counter(), []
    section = f"gpu, {torch.cuda.get_device_name()}" if ON_GPU else "gpu, without a device: in miniature"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        manifest = make_data(params_of(), folder, NUM_VIDEOS, (NUM_FRAMES, HEIGHT, WIDTH), CORES)
        manifest.save(folder / "manifest.parquet")
        print(f"{time.perf_counter() - begin:.0f} s: data", flush=True)
        for measure in MEASUREMENTS:
            if names and measure.__name__ not in names:
                continue
            try:
                for row in measure(folder):
                    rows.append(row)
                    print(f"{row.what}: {row.value:.4g} {row.unit} ({row.of})", flush=True)
            except Exception:  # noqa: BLE001 - the device is lent for minutes: the other figures are wanted
                traceback.print_exc()
                failed.append(measure.__name__)
            print(f"{time.perf_counter() - begin:.0f} s: {measure.__name__}", flush=True)
            REPORT.parent.mkdir(exist_ok=True)
            record(section, rows)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["process"]:
        torchrun_process(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(sys.argv[1:])
