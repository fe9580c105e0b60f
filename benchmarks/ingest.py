"""Throughput of ingest in videos per core-minute: ``python -m benchmarks ingest``.

Core-minutes are CPU time: load on the machine affects them only through resources that cores share. The speed-up by
two processes is in wall time and needs two idle cores. Ray is measured if it is installed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import cv2

from benchmarks.report import Row, record
from benchmarks.targets import large_frames
from mme.config import Params, RuntimeParams, load_params
from mme.ingest.run import Ingest
from mme.ingest.transcode import NormalForm, Outcome, TranscodeJob, transcode
from mme.ingest.validate import ValidationJob, validate_file
from mme.manifest import MANIFEST_FILE, Manifest
from mme.motion.extract import Extractor
from mme.system.executors import Executor
from mme.video.codec import GOP_FRAMES, write_video

NUM_VIDEOS, NUM_FRAMES, FPS = 4, 150, 30
SHORT_SIDES = (256, 128)
LONG = 10
"""Length of a long video as a multiple of the clip that is cut from it."""

PATIENT = RuntimeParams(deadline_s=600.0)
NUM_COPIES, NUM_WARM = 24, 4
"""Videos given to two workers, and the number of them that are finished before the measurement starts."""


def main() -> None:
    """Measure on synthetic footage of 454 x 256 pixels and 5 s, and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=NUM_VIDEOS)
    num_videos = parser.parse_args().videos
    cv2.setNumThreads(1)
    params = load_params()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = large_frames(params, NUM_FRAMES + num_videos)
        files = [folder / f"raw/{'ab'[number % 2]}/{number}.mp4" for number in range(num_videos)]
        for number, path in enumerate(files):
            write_video(
                path, frames[number : number + NUM_FRAMES], FPS, 20, FPS
            )  # a keyframe per second, as on the web
        long = folder / "long.mp4"
        write_video(long, frames[list(range(NUM_FRAMES)) * LONG], FPS, 20, FPS)
        at = f"videos of 454 x 256, {NUM_FRAMES} frames"
        rows = [per_minute("headers, hash, first frame (mme data check)", files, lambda path: look(path, False), at)]
        rows.append(per_minute("every frame decoded (--decode)", files, lambda path: look(path, True), at))
        for short_side in SHORT_SIDES:
            form = NormalForm(params.ingest.fps, short_side, params.ingest.crf, GOP_FRAMES)
            to = f"{at}, to short side {short_side}"
            rows.append(
                per_minute("ingest", files, lambda path: good(TranscodeJob(path, folder / "out.mp4", form)), to)  # noqa: B023
            )
        begin_s = NUM_FRAMES / FPS * (LONG - 2)
        cut = TranscodeJob(long, folder / "out.mp4", form, (begin_s, begin_s + NUM_FRAMES / FPS))
        rows.append(per_minute("ingest of a clip", [long], lambda _: good(cut), f"in a video {LONG} times as long"))
        changes = {"source": "folder", "root": folder / "raw", "short_side": SHORT_SIDES[0]}
        seconds = []
        for num_workers in (1, 2):
            stage = Ingest(params.ingest.model_copy(update=changes), 0, folder / f"work-{num_workers}", PATIENT)
            begin = time.perf_counter()
            stage.run(num_workers, lambda: None)
            seconds.append(time.perf_counter() - begin)
        how = f"wall time, start of processes included; {num_videos} {at}, to short side {SHORT_SIDES[0]}"
        rows.append(Row("ingest by 2 processes", seconds[0] / seconds[1], "x 1 process", of=how))
        rows += throughput(params, files[0], folder / "engines")
    record("ingest", rows)


def throughput(params: Params, file: Path, folder: Path) -> Iterator[Row]:
    """Measure ingest and extraction of many copies of a video by two workers: local processes, and Ray.

    The CPU time of all processes, including Ray's own, counts from the time when every worker is busy to the last
    video, so start-up is left out.
    """
    for number in range(NUM_COPIES):
        path = folder / f"raw/{'ab'[number % 2]}/{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.read_bytes())
    changes = {"source": "folder", "root": folder / "raw", "short_side": SHORT_SIDES[0]}
    engines: list[Executor] = ["local", "ray"] if find_spec("ray") else ["local"]
    of = f"CPU time of all processes, start-up left out; {NUM_COPIES} videos of 454 x 256, {NUM_FRAMES} frames"
    for engine in engines:
        what = "2-worker Ray" if engine == "ray" else "2 processes"
        output = folder / engine
        runtime = PATIENT.model_copy(update={"executor": engine})
        stage = Ingest(params.ingest.model_copy(update=changes), 0, folder / f"work-{engine}", runtime)
        meter = Meter()
        result = stage.run(2, meter.advance)
        stage.finish(result, output)
        yield Row(f"ingest, {what}", meter.per_minute(), "videos per core-minute", of=of)
        chosen = {"splits": ("train", "val", "test"), "compensate_camera": True}
        tracks = params.trajectories.model_copy(update=chosen)
        meter = Meter()
        manifest = Manifest.load(output / MANIFEST_FILE)
        Extractor(manifest, tracks, folder / f"tracks-{engine}", runtime).run(2, meter.advance)
        yield Row(f"extraction, {what}", meter.per_minute(), "videos per core-minute", of=of)


class Meter:
    """Counter of videos and of the CPU time after the first ones."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def advance(self, count: int = 1) -> None:
        """Record that videos are finished."""
        self._marks += [tree_cpu_s()] * count

    def per_minute(self) -> float:
        """Return videos per minute of CPU time, without the first ones, during which workers start."""
        return 60 * (len(self._marks) - NUM_WARM) / (self._marks[-1] - self._marks[NUM_WARM - 1])


def tree_cpu_s() -> float:
    """Return the CPU time of this process and all its descendants, including those that have ended."""
    seconds, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        process = int(path.parent.name)
        parents[process], seconds[process] = int(fields[1]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    family = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(seconds[process] for process in family)


def look(path: Path, decode: bool) -> Outcome:
    """Check a file as `mme data check` does."""
    outcome = validate_file(ValidationJob(path.name, path, 1, decode))
    assert outcome.reason is None, outcome.detail
    return outcome


def good(job: TranscodeJob) -> Outcome:
    """Transcode a file as ingest does."""
    outcome = transcode(job)
    assert outcome.reason is None, outcome.detail
    return outcome


def per_minute(what: str, files: list[Path], work: Callable[[Path], Outcome], of: str) -> Row:
    """Measure videos per minute of this process's CPU time."""
    begin = time.process_time()
    for path in files:
        work(path)
    return Row(what, 60 * len(files) / (time.process_time() - begin), "videos per core-minute", of=of)


if __name__ == "__main__":
    main()
