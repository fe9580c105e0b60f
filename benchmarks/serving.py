"""Load test of the service: ``python -m benchmarks.serving [--model FOLDER | --large] [--quick]``.

Throughput is compared with the bare model, with a plain FastAPI handler and, if it is installed, with LitServe, in
rounds that take turns, so that other load on the machine affects all alike. The bare model gets decoded views from
memory; everything else decodes a file per request on the same cores: "one after the other" is the upper limit of that
without any service.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from benchmarks.report import Row, record
from benchmarks.serving_load import (
    Outcome,
    body,
    clip_files,
    closed_loop,
    cpu_seconds,
    free_port,
    memory_mb,
    open_loop,
    started,
)
from mme.config import Params, load_params
from mme.evaluation.classifier import Classifier
from mme.ingest.motion_primitives import sample_scene
from mme.models.checkpoints import FOLDER_FORMAT, FolderConfig, ViewsConfig, load_config, save_folder
from mme.models.classifier import MotionClassifier
from mme.video.codec import write_video
from mme.video.sampling import sample_views

NUM_CLIPS = 24
DEADLINE_S = 30.0
OVERLOAD = 10


@dataclass(frozen=True)
class Size:
    """Numbers of rounds, requests and clients, and batch sizes of the model alone; 0 leaves a part out."""

    rounds: int
    requests: int
    memory_requests: int
    overload_s: float
    clients: tuple[int, ...] = (8, 32)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    deadline_s: float = DEADLINE_S
    repeats: int = 20


FULL, QUICK = Size(5, 300, 2000, 30.0), Size(1, 64, 128, 5.0)
LARGE = Size(3, 16, 0, 0.0, clients=(4, 8), batches=(1, 2, 4), deadline_s=300.0, repeats=2)


def large(params: Params) -> Params:
    """Return parameters of ViT-S on 16 frames of 224 pixels, beside which decoding takes almost no time."""
    model = params.model.model_copy(update={"dim": 384, "depth": 12, "num_heads": 6})
    clip = params.clip.model_copy(update={"num_frames": 16, "size": 224})
    return params.model_copy(update={"model": model, "clip": clip})


def make_clips(params: Params, folder: Path) -> None:
    """Write motion primitives, one file per clip."""
    for index in range(NUM_CLIPS):
        label = params.synthesize.classes[index % len(params.synthesize.classes)]
        frames = sample_scene(label, params.synthesize, (index,)).render()
        write_video(folder / f"{index:02}.mp4", frames, params.synthesize.fps, params.ingest.crf, 8)


def make_model(params: Params, folder: Path) -> Path:
    """Write a model with random weights, which is as fast as a trained one."""
    labels = tuple(sorted(params.synthesize.classes))
    config = FolderConfig(
        format=FOLDER_FORMAT, name="bench", model=params.model, clip=params.clip, fps=params.ingest.fps, labels=labels,
        provenance={}, metrics={}, views=ViewsConfig(segments=params.evaluate.segments, crops=params.evaluate.crops),
    )  # fmt: skip
    save_folder(folder, MotionClassifier(params.model, params.clip, len(labels)), config)
    return folder


def processor_ms(action: Callable[[], object], repeats: int) -> float:
    """Return the processor time of an action in this process, which other load on the machine hardly changes."""
    action()
    begun = time.process_time()
    for _ in range(repeats):
        action()
    return 1000 * (time.process_time() - begun) / repeats


def processor_times(folder: Path, clips: Path, size: Size) -> Iterator[Row]:
    """Measure the processor time of decoding and model on one thread."""
    classifier, files, threads = Classifier.load(folder), clip_files(clips), torch.get_num_threads()
    views = [classifier.prepare(clip) for clip in files]
    torch.set_num_threads(1)
    yield Row(
        "decoding, processor time",
        processor_ms(lambda: classifier.prepare(files[0]), size.repeats),
        "ms",
        of="one video",
    )
    for count in (count for count in (1, 8, 16) if count <= max(size.batches)):
        taken = processor_ms(lambda count=count: classifier.predict(views[:count]), size.repeats) / count  # type: ignore[misc]
        yield Row("model, processor time", taken, "ms a video", of=f"{count} in a batch, one thread")
    torch.set_num_threads(threads)


def bare_rates(folder: Path, clips: Path, batches: Sequence[int]) -> dict[int, float]:
    """Return videos per second of the model alone by batch size; the views are in memory."""
    classifier = Classifier.load(folder)
    views = [classifier.prepare(clip) for clip in clip_files(clips)]
    rates = {}
    for num_videos in batches:
        batch = [views[index % len(views)] for index in range(num_videos)]
        classifier.predict(batch)
        begun, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - begun) < 0.5:
            classifier.predict(batch)
            count += num_videos
        rates[num_videos] = count / spent
    return rates


def _decode(folder: Path, clips: list[bytes]) -> int:
    config = load_config(folder)
    for clip in clips:
        sample_views(clip, config.clip, config.fps, config.views.segments, config.views.crops)
    return len(clips)


def decode_rate(folder: Path, clips: Path, pool: ProcessPoolExecutor) -> float:
    """Return videos per second of decoding alone on all cores."""
    files, begun = clip_files(clips) * 4, time.perf_counter()
    cores = len(psutil.Process().cpu_affinity())
    count = sum(pool.map(_decode, [folder] * cores, [files] * cores))
    return count / (time.perf_counter() - begun)


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    port: int
    process: psutil.Process


def start_servers(stack: ExitStack, folder: Path, temp: Path, deadline_s: float) -> list[Server]:
    """Start the service, then its rivals; all are idle until the first request."""
    servers = []
    names = ["service", "plain", *(["litserve"] if importlib.util.find_spec("litserve") else [])]
    for name in names:
        port = free_port()
        environment = {
            "MME_MODEL": str(folder), "MME_PORT": str(port), "MME_TEMP_DIR": str(temp), "MME_POLL_S": "3600",
            "MME_DEADLINE_S": str(deadline_s),
        }  # fmt: skip
        command = ["serving"] if name == "service" else [f"benchmarks.serving_{name}", str(folder), str(port)]
        servers.append(Server(name, port, stack.enter_context(started(command, port, environment))))
    return servers


def compare_servers(servers: list[Server], folder: Path, clips: Path, size: Size) -> Iterator[Row]:
    """Measure throughput and latency, round by round in turn."""
    bodies = [body(clip) for clip in clip_files(clips)]
    for server in servers:
        closed_loop(server.port, bodies, 8, min(NUM_CLIPS, size.requests))  # warm
    bare: list[float] = []
    decode: list[float] = []
    seen: dict[tuple[str, int], list[Outcome]] = {}
    with ProcessPoolExecutor(len(psutil.Process().cpu_affinity())) as pool:
        for _ in range(size.rounds):
            bare.append(max(bare_rates(folder, clips, size.batches).values()))
            decode.append(decode_rate(folder, clips, pool))
            for clients in size.clients:
                for server in servers:
                    before = cpu_seconds(server.process)
                    outcome = closed_loop(server.port, bodies, clients, size.requests)
                    outcome = replace(outcome, cpu_s=cpu_seconds(server.process) - before)
                    if set(outcome.statuses) != {200}:
                        raise RuntimeError(f"{server.name}: {dict(outcome.statuses)}")
                    seen.setdefault((server.name, clients), []).append(outcome)
    yield Row("model alone", statistics.median(bare), "videos/s", of="best batch size, views in memory")
    yield Row("decoding alone", statistics.median(decode), "videos/s", of="all cores")
    both = [1 / (1 / model + 1 / decoding) for model, decoding in zip(bare, decode, strict=True)]
    yield Row("one after the other", statistics.median(both), "videos/s", of="decoding and model share the cores")
    for clients in size.clients:
        of = f"{clients} clients"
        service = [outcome.rate for outcome in seen["service", clients]]
        yield from _per_server(seen, clients)
        yield _ratio("service / model alone", service, bare, of, 0.85)
        yield _ratio("service / one after the other", service, both, of, 0.85)
        for name in dict.fromkeys(name for name, _ in seen if name != "service"):
            rival = [outcome.rate for outcome in seen[name, clients]]
            yield _ratio(f"service / {name}", service, rival, of, 1.0)


def _per_server(seen: dict[tuple[str, int], list[Outcome]], clients: int) -> Iterator[Row]:
    for (name, number), outcomes in seen.items():
        if number == clients:
            of = f"{clients} clients"
            yield Row(name, statistics.median(item.rate for item in outcomes), "videos/s", of=of)
            cpu_ms = statistics.median(1000 * item.cpu_s / len(item.seconds) for item in outcomes)
            yield Row(f"{name}, processor time", cpu_ms, "ms per request", of=of)
            for share in (0.5, 0.99):
                value = statistics.median(item.quantile_ms(share) for item in outcomes)
                yield Row(f"{name}, p{round(100 * share)}", value, "ms", of=of)


def _ratio(what: str, service: list[float], rival: list[float], of: str, at_least: float) -> Row:
    ratios = [first / second for first, second in zip(service, rival, strict=True)]
    return Row(what, statistics.median(ratios), "x", at_least=at_least, of=f"{of}, median of {len(ratios)} rounds")


def memory_growth(server: Server, clips: Path, num_requests: int) -> Iterator[Row]:
    """Compare memory after many requests with memory after a few."""
    bodies = [body(clip) for clip in clip_files(clips)]
    closed_loop(server.port, bodies, 8, num_requests // 4)
    before = memory_mb(server.process)
    closed_loop(server.port, bodies, 8, num_requests)
    after = memory_mb(server.process)
    yield Row("memory", after, "MiB", of="service and its decoders")
    yield Row("memory growth", 100 * (after / before - 1), "%", at_most=5.0, of=f"over {num_requests} requests")


def overload(server: Server, clips: Path, rate: float, duration_s: float) -> Iterator[Row]:
    """Send ten times the sustained rate; count accepted and rejected requests and measure the recovery."""
    clip = clip_files(clips)[0]
    before = memory_mb(server.process)
    outcome, admitted = asyncio.run(open_loop(server.port, clip, OVERLOAD * rate, duration_s))
    begun = time.perf_counter()
    while closed_loop(server.port, [body(clip)], 1, 1).statuses[200] != 1:
        pass
    recovery_s = time.perf_counter() - begun
    others = sum(outcome.statuses.values()) - outcome.statuses[200] - outcome.statuses[503]
    of = f"{sum(outcome.statuses.values())} requests, {sum(outcome.statuses.values()) / outcome.wall_s:.0f} per second"
    yield Row("overload: answered", outcome.statuses[200], "requests", of=of)
    yield Row("overload: refused with 503", outcome.statuses[503], "requests", of=of)
    yield Row("overload: anything else", others, "requests", at_most=0, of=of)
    p99 = sorted(admitted)[int(0.99 * (len(admitted) - 1))]
    yield Row("overload: p99 of answered", 1000 * p99, "ms", at_most=1000 * DEADLINE_S, of=of)
    yield Row("overload: first answer after it", recovery_s, "s", at_most=2.0)
    growth = 100 * (memory_mb(server.process) / before - 1)
    yield Row("overload: memory growth", growth, "%", at_most=5.0)


def measure_service(name: str, folder: Path, clips: Path, temp: Path, size: Size) -> None:
    """Run every part and record it under ``name``."""
    with ExitStack() as stack:
        servers = start_servers(stack, folder, temp, size.deadline_s)
        rows = list(compare_servers(servers, folder, clips, size))
        record(f"{name}/throughput", rows)
        record(f"{name}/parts", list(processor_times(folder, clips, size)))
        if size.memory_requests:
            record(f"{name}/memory", list(memory_growth(servers[0], clips, size.memory_requests)))
        if size.overload_s:
            most = f"{max(size.clients)} clients"
            sustained = next(row.value for row in rows if row.what == "service" and row.of == most)
            record(f"{name}/overload", list(overload(servers[0], clips, sustained, size.overload_s)))


def main() -> None:
    """Run the benchmark and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--model", type=Path, help="a model folder; default: the default model with random weights")
    chosen.add_argument("--large", action="store_true", help="a model that takes a hundred times as long, a few times")
    parser.add_argument("--quick", action="store_true", help="few requests, to see that it works")
    options = parser.parse_args()
    params = load_params()
    size = QUICK if options.quick else FULL
    if options.large:
        size = replace(LARGE, rounds=1) if options.quick else LARGE
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for part in ("clips", "uploads"):
            (root / part).mkdir()
        make_clips(params, root / "clips")
        folder = options.model or make_model(large(params) if options.large else params, root / "model")
        measure_service("serving_large" if options.large else "serving", folder, root / "clips", root / "uploads", size)


if __name__ == "__main__":
    torch.set_num_threads(len(psutil.Process().cpu_affinity()))
    main()
