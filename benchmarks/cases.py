"""What ingest and the service say of odd inputs, before and after a change: ``python -m benchmarks.cases SCRIPTS``.

SCRIPTS is a folder of scripts that make inputs, each with a line ``usage: python NAME.py FOLDER`` in its docstring.
Each script runs into a folder of its own; the files that it makes go through the stage ingest in a subprocess, beside
good videos, and through a running service. Folders of the scripts in ``LAYOUTS`` are sources of their own.

``--repo`` also runs another checkout, whose outcomes are shown first; ``--corpus`` adds folders of files.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow.parquet as pq
import yaml
from jaxtyping import UInt8
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.serving_load import cpu_seconds, free_port, started
from mme.video.codec import read_frames, write_video

HERE = Path(__file__).resolve().parents[1]

LAYOUTS = {
    "layouts": "folder",
    "one_kills_all": "folder",
    "latin1_title/hmdb51": "hmdb51",
    "layouts/kinetics": "kinetics",
}
"""Scripts, or folders of theirs, whose outcome is that of a whole source, and the source's layout."""

REFUSED = ("*.avif", "*.webp", "*.m4a", "*ticker.mkv", "*epoch.mkv")
"""Files that are no videos, or none that can be used; every other file can."""

SHOWN = {
    "hflip.mp4": "bar right, square top",
    "rotate180.mp4": "bar right, square bottom",
    "plain.mp4": "bar left, square top",
}
"""What files show whose orientation matters."""

TIMEOUT_S = 600.0

_MODEL = "import sys, pathlib; from tests.tiny import save_tiny_folder; save_tiny_folder(pathlib.Path(sys.argv[1]))"


@dataclass(frozen=True)
class Input:
    """A file or a source that a case made.

    Attributes:
        case: name of the script, or of a folder of files.
        name: path in the case's folder.
        path: the file, or the folder of a source.
        layout: ``ingest.source`` of a source; None for a file.
    """

    case: str
    name: str
    path: Path
    layout: str | None = None

    @property
    def usable(self) -> bool:
        """Whether it is expected to be used."""
        return not any(fnmatch.fnmatch(self.name.lower(), pattern) for pattern in REFUSED)


@dataclass
class Outcome:
    """What one checkout says of one input.

    Attributes:
        ingest: ``ok`` and what the transcoded video shows, or why it is refused; ``ENDED`` if the stage ended.
        service: status of the answer, best label, or cause of the error; wall and processor time.
        ingested: whether it can be used; None if the stage ended.
        answered: likewise by the service; None for a status of 500 and above, or if it was not asked.
    """

    ingest: str = ""
    service: str = ""
    ingested: bool | None = None
    answered: bool | None = None


@dataclass(frozen=True)
class Checkout:
    """A checkout of this repository, run in subprocesses with this environment's packages."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which its modules are imported."""
        paths = os.pathsep.join([str(self.root / "src"), str(self.root)])
        return {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1", "MME_TRACEBACK": "0", "CUDA_VISIBLE_DEVICES": ""}

    def run(self, arguments: Iterable[str], folder: Path) -> tuple[int, str]:
        """Run Python in a folder; return the exit status and its last line, of stderr if it failed."""
        command = [sys.executable, *arguments]
        environ = os.environ | self.environment
        try:
            done = subprocess.run(
                command, cwd=folder, env=environ, capture_output=True, text=True, errors="replace", check=False,
                timeout=TIMEOUT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return 124, f"ran longer than {TIMEOUT_S:g} s"
        shown = done.stderr if done.returncode and not done.stdout.startswith("{") else done.stdout
        lines = [line.strip() for line in shown.splitlines() if line.strip()]
        return done.returncode, lines[-1] if lines else ""

    def project(self, folder: Path, **ingest: object) -> Path:
        """Write ``params.yaml`` with another source into a folder."""
        folder.mkdir(parents=True)
        params = yaml.safe_load((self.root / "params.yaml").read_text(encoding="utf-8"))
        params["ingest"] |= ingest
        params["runtime"] |= {"max_bad_ratio": 1.0, "deadline_s": 120.0}
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        return folder


def main() -> None:
    """Make the inputs, run them through one or two checkouts, and print a table; exit with 1 if the last one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", type=Path, nargs="?", help="folder of scripts that make inputs")
    parser.add_argument("--repo", type=Path, help="another checkout, run first")
    parser.add_argument("--corpus", type=Path, action="append", default=[], help="folder of files")
    parser.add_argument("--only", nargs="*", default=[], help="names of scripts")
    parser.add_argument("--json", type=Path, help="write the outcomes into this file, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = write_clip(folder / "clip.mp4")
        inputs = list(corpus(options.corpus))
        if options.scripts is not None:
            inputs += made(options.scripts, folder / "made", clip, options.only)
        roots = [*([options.repo.resolve()] if options.repo else []), HERE]
        outcomes = [
            examine(Checkout(root), inputs, folder / f"run-{number}", clip) for number, root in enumerate(roots)
        ]
    wrong = show(inputs, outcomes)
    if options.json:
        rows = [
            {"case": item.case, "name": item.name, "outcomes": [vars(found[item]) for found in outcomes]}
            for item in inputs
        ]
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(wrong))


def write_clip(path: Path) -> Path:
    """Write a good clip: a bright square that moves to the right over a gradient, 32 pictures at 16 per second."""
    y, x = np.mgrid[:64, :96]
    frames = np.repeat((40 + x + y).astype(np.uint8)[None, :, :, None], 32, axis=0).repeat(3, axis=-1)
    for index, frame in enumerate(frames):
        frame[20:40, 2 * index : 2 * index + 20] = (230, 60, 40)
    write_video(path, frames, 16, 10, 8)
    return path


def made(scripts: Path, folder: Path, clip: Path, only: list[str]) -> Iterator[Input]:
    """Run the scripts and list what they make."""
    for script in sorted(scripts.glob("*.py")):
        usage = re.search(rf"usage.*python {script.name}([^\n]*)", script.read_text(encoding="utf-8"))
        if usage is None or (only and script.stem not in only):
            continue
        case = folder / script.stem
        case.mkdir(parents=True)
        if "params.yaml" in usage[1]:
            yield Input(script.stem, script.name, script.resolve(), "script")
            continue
        words = re.split(r"\s{2,}|\s->|\[", usage[1])[0].split()
        arguments = [str({"VIDEO": clip, "FOLDER": case}.get(word, case / "clip.mp4")) for word in words]
        subprocess.run([sys.executable, script.name, *arguments], cwd=scripts, check=True, timeout=TIMEOUT_S)
        yield from inputs_in(script.stem, case)


def inputs_in(case: str, folder: Path) -> Iterator[Input]:
    """Yield the sources of a case's folder and the files outside of them."""
    if case in LAYOUTS:
        for part in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield Input(case, part.name, part, LAYOUTS.get(f"{case}/{part.name}", LAYOUTS[case]))
    if case == "layouts":
        return
    sources = [folder / name.partition("/")[2] for name in LAYOUTS if name.startswith(f"{case}/")]
    yield from (Input(case, source.name, source, LAYOUTS[f"{case}/{source.name}"]) for source in sources)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in {".txt", ".csv"} and not any(path.is_relative_to(s) for s in sources):
            yield Input(case, path.relative_to(folder).as_posix(), path)


def corpus(folders: Iterable[Path]) -> Iterator[Input]:
    """Yield the files of folders, of which nothing is known."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield Input(f"corpus {folder.name}", path.relative_to(folder).as_posix(), path)


def examine(checkout: Checkout, inputs: list[Input], folder: Path, clip: Path) -> dict[Input, Outcome]:
    """Run inputs through a checkout's ingest and service."""
    outcomes = {item: Outcome() for item in inputs}
    for case in dict.fromkeys(item.case for item in inputs):
        members = [item for item in inputs if item.case == case]
        for number, item in enumerate(member for member in members if member.layout is not None):
            look_at_source(checkout, item, outcomes[item], folder / f"source-{case}-{number}")
        files = [item for item in members if item.layout is None]
        if files:
            ingest_files(checkout, files, outcomes, folder / f"ingest-{case.replace(' ', '-')}", clip)
    with service(checkout, folder) as (address, process):
        for item in inputs:
            if item.layout is None:
                ask(address, process, item, outcomes[item])
    return outcomes


def look_at_source(checkout: Checkout, item: Input, outcome: Outcome, folder: Path) -> None:
    """Run ``mme data check`` on a source, or a script that takes ``params.yaml``."""
    checkout.project(folder)
    if item.layout == "script":
        status, line = checkout.run([str(item.path), str(folder / "params.yaml")], folder)
        outcome.ingest = f"status {status}: {line}"
        return
    arguments = ["-m", "mme.commands.app", "data", "check", str(item.layout), str(item.path), "--json", "-S"]
    status, line = checkout.run([*arguments, "runtime.max_bad_ratio=1.0"], folder)
    outcome.ingested = status == 0
    try:
        report = json.loads(line)
    except ValueError:
        outcome.ingest = f"status {status}: {line.replace(str(item.path), item.name)}"
        return
    parts = [f"{report['videos']} videos", f"{len(report['bad'])} bad"]
    parts += [f"{split} {sum(counts.values())}" for split, counts in report.get("labels", {}).items() if counts]
    outcome.ingest = ", ".join([*parts, *report["warnings"], *report["faults"]])


def ingest_files(
    checkout: Checkout, files: list[Input], outcomes: dict[Input, Outcome], folder: Path, clip: Path
) -> None:
    """Run the stage ingest on files as one class among two, beside good videos."""
    raw = folder / "raw"
    names: dict[str, Input] = {}
    for number, item in enumerate(files):
        names[f"a/{number:03d}{item.path.suffix}"] = item
    for label in "ab":
        (raw / label).mkdir(parents=True)
        for number in range(4):  # of other contents each
            (raw / label / f"good{number}.mp4").write_bytes(
                clip.read_bytes() + b"\0\0\0\x0cfree" + label.encode() * 3 + bytes([number])
            )
    for name, item in names.items():
        shutil.copyfile(item.path, raw / name)
    project = checkout.project(folder / "project", source="folder", root=str(raw))
    status, line = checkout.run(["-m", "mme.stages.ingest"], project)
    if status:
        for item in files:
            outcomes[item].ingest = f"ENDED: {line}"
        return
    with (project / "data/quarantine.csv").open(encoding="utf-8", newline="") as file:
        refused = {row["path"]: row for row in csv.DictReader(file)}
    taken = {row["source_path"]: row for row in pq.read_table(project / "data/manifest.parquet").to_pylist()}
    for name, item in names.items():
        outcome = outcomes[item]
        if name in refused:
            outcome.ingest, outcome.ingested = f"{refused[name]['reason']}: {refused[name]['detail']}", False
        elif name in taken:
            frames = read_frames(project / "data/videos" / taken[name]["path"])
            outcome.ingest = f"ok, {len(frames)} at {taken[name]['fps']:.4g}/s, {layout_of(frames[0])}"
            outcome.ingested = True
        else:
            outcome.ingest, outcome.ingested = "not listed", False


def layout_of(frame: UInt8[np.ndarray, "H W 3"]) -> str:
    """Say where the white bar and the red square are that the scripts draw, from which the orientation follows."""
    height, width = frame.shape[:2]
    edges = {"left": frame[:, :2], "right": frame[:, -2:], "top": frame[:2], "bottom": frame[-2:]}
    bars = [name for name, edge in edges.items() if np.median(edge) > 180]
    red = (frame[..., 0] > 150) & (frame[..., 1] < 110)
    words = [f"{width} x {height}", *(f"bar {name}" for name in bars[:1])]
    if bars and red.any():
        y, x = np.argwhere(red).mean(axis=0)
        words.append(
            "square "
            + (
                ("top" if y < height / 2 else "bottom")
                if bars[0] in {"left", "right"}
                else ("left" if x < width / 2 else "right")
            )
        )
    return ", ".join(words)


@contextmanager
def service(checkout: Checkout, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run a checkout's service with a small model of random weights."""
    status, line = checkout.run(["-c", _MODEL, str(folder / "model")], folder)
    if status:
        raise RuntimeError(f"{checkout.root}: no model: {line}")
    (folder / "uploads").mkdir()
    port = free_port()
    environment = {"MME_MODEL": str(folder / "model"), "MME_PORT": str(port), "MME_TEMP_DIR": str(folder / "uploads")}
    with started(["serving"], port, checkout.environment | environment) as process:
        address = f"http://127.0.0.1:{port}"
        while httpx.get(f"{address}/ready").status_code != httpx.codes.OK:
            time.sleep(0.2)
        yield address, process


def ask(address: str, process: psutil.Process, item: Input, outcome: Outcome) -> None:
    """Post one file and note status, answer and times."""
    before, begin = cpu_seconds(process), time.perf_counter()
    try:
        response = httpx.post(
            f"{address}/classify", content=item.path.read_bytes(), headers={"content-type": "video/mp4"}, timeout=120
        )
    except httpx.TransportError as error:
        outcome.service = f"no answer: {type(error).__name__}"
        return
    wall = time.perf_counter() - begin
    processor = cpu_seconds(process) - before
    body = response.json()
    if response.status_code == httpx.codes.OK:
        best, video = body["predictions"][0], body["video"]
        what = f"{video['num_frames']} pictures, {best['label']} {best['probability']:.4f}"
    else:
        what = f"{body['type'].rpartition('/')[2]}: {body['detail']}"
    cpu = f", CPU {processor:.1f} s" if processor > 0 else ""  # below 0: a process that was killed took its time along
    times = f", {wall:.1f} s{cpu}" if wall > 1 else ""
    outcome.service = f"{response.status_code} {what}{times}"
    outcome.answered = (
        response.status_code == httpx.codes.OK if response.status_code < httpx.codes.INTERNAL_SERVER_ERROR else None
    )


def faults_of(item: Input, outcome: Outcome) -> list[str]:
    """Say what is wrong with an outcome."""
    if item.layout is not None:
        return []
    faults = ["stage ended"] if outcome.ingested is None else []
    if outcome.answered is None:
        faults.append("no answer")
    elif outcome.ingested is not None and outcome.ingested != outcome.answered:
        faults.append("disagree")
    if outcome.ingested and not outcome.ingest.endswith(SHOWN.get(item.name, "")):
        faults.append(f"not {SHOWN[item.name]}")
    if not item.case.startswith("corpus"):
        faults += [
            f"{side} {'refuses' if item.usable else 'takes'}"
            for side, used in (("ingest", outcome.ingested), ("service", outcome.answered))
            if used is not None and used != item.usable
        ]
    return faults


def show(inputs: list[Input], outcomes: list[dict[Input, Outcome]]) -> int:
    """Print the table; return the number of inputs whose last outcome is wrong."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    titles = ["before", "after"] if len(outcomes) > 1 else ["now"]
    table = Table(
        "case",
        "input",
        "expected",
        *[f"{title}: {side}" for title in titles for side in ("ingest", "service", "wrong")],
    )
    for item in inputs:
        expected = "" if item.layout or item.case.startswith("corpus") else "used" if item.usable else "refused"
        cells = [item.case, item.name, expected]
        for found in outcomes:
            cells += [found[item].ingest, found[item].service, ", ".join(faults_of(item, found[item]))]
        table.add_row(*map(Text, cells))
    console.print(table)
    counts = [sum(bool(faults_of(item, found[item])) for item in inputs) for found in outcomes]
    for title, count in zip(titles, counts, strict=True):
        console.print(f"{title}: {count} of {len(inputs)} inputs are wrong")
    return counts[-1]


if __name__ == "__main__":
    main()
