"""Tracks of a manifest's videos, in parallel processes, into a folder of shards.

Work in progress lives in a folder of its own: one part a video, merged into a shard as soon as the shard's videos are
done. Parts and shards appear whole or not at all, and do not depend on who made them; so a run that was killed goes on
where it stopped, and its result is that of an uninterrupted run with any number of workers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from mme.config import DEFAULT_RUNTIME, RuntimeParams, TrajectoriesParams
from mme.manifest import Manifest, Video
from mme.motion import camera, flow, shards, tracking
from mme.motion.shards import FORMAT, Entry, merge_parts, read_part, write_index, write_part
from mme.motion.tracking import iter_tracks
from mme.system.executors import open_pool
from mme.system.files import atomic_path, digest, read_json, sha256_file, write_json
from mme.video.codec import iter_frames
from mme.video.containers import VideoError


@dataclass(frozen=True)
class Extraction:
    """What became of the videos: index entries of the good ones, reasons of the bad ones, by video id."""

    entries: dict[str, Entry]
    failures: dict[str, str]

    def summary(self) -> dict[str, float]:
        """Counts, the share of points that are valid to their last step, and that of trusted homographies."""
        names = ("num_starts", "num_trusted", "num_points", "num_whole")
        total = {name: sum(entry[name] for entry in self.entries.values()) for name in names}
        return {
            "videos": len(self.entries),
            "bad_videos": len(self.failures),
            "frames": total["num_starts"] + len(self.entries),
            "valid_share": total["num_whole"] / max(total["num_points"], 1),
            "trusted_share": total["num_trusted"] / max(total["num_starts"], 1),
        }


def extraction_key(videos: Sequence[Video], paths: Sequence[Path], params: TrajectoriesParams) -> str:
    """Digest of everything that the shards depend on: files, parameters, and the code that makes tracks of them."""
    files = [
        [video.id, video.sha256, video.width, video.height, video.num_frames, path.stat().st_size]
        for video, path in zip(videos, paths, strict=True)
    ]
    code = [sha256_file(Path(str(module.__file__))) for module in (camera, flow, shards, tracking)]
    return digest([FORMAT, cv2.__version__, code, params.model_dump(mode="json"), files])


def extract_part(path: Path, num_frames: int, folder: Path, params: TrajectoriesParams) -> str | None:
    """Write one video's part, unless it is there already.

    Returns:
        why the video is bad, or None.

    Raises:
        OSError: the part cannot be written.
    """
    try:
        entry = read_part(folder) or write_part(folder, iter_tracks(iter_frames(path), params), params.cell)
    except (VideoError, ValueError) as error:
        return str(error)
    except OSError as error:
        if error.filename is None:  # a full disk says neither what was written nor where
            raise OSError(error.errno, f"{error.strerror}, while writing the tracks of {path}", str(folder)) from error
        raise
    if entry["num_starts"] + 1 != num_frames:
        shutil.rmtree(folder)
        return f"{path}: {entry['num_starts'] + 1} frames decoded, the manifest has {num_frames}"
    return None


class Extractor:
    """Extracts the tracks of a manifest's videos shard by shard.

    Args:
        manifest: where the videos are.
        params: which videos, and how.
        work: folder for work in progress; kept on errors, removed by `finish`, that of other parameters included.
        runtime: executor and videos per shard. Unfinished work keeps the shard size that it began with.
    """

    def __init__(
        self, manifest: Manifest, params: TrajectoriesParams, work: Path, runtime: RuntimeParams = DEFAULT_RUNTIME
    ) -> None:
        self.params = params
        self.runtime = runtime
        self.videos = manifest.videos(params.splits)
        if not self.videos:
            raise ValueError(f"{manifest.folder}: no usable videos in splits {list(params.splits)}")
        self._paths = {video.id: manifest.path_of(video) for video in self.videos}
        self.key = extraction_key(self.videos, list(self._paths.values()), params)
        self._all_work = work
        self._work = work / self.key
        self._parts, self._shards, self._entries = (self._work / name for name in ("parts", "shards", "entries"))
        self._size_file = self._work / "videos_per_shard.json"
        size: int = read_json(self._size_file) if self._size_file.exists() else runtime.videos_per_shard
        self._size = size
        self._groups = [self.videos[first : first + size] for first in range(0, len(self.videos), size)]

    def run(self, num_workers: int, on_video: Callable[[int], None]) -> Extraction:
        """Extract all shards that are not there yet.

        Args:
            num_workers: processes of this machine; a Ray cluster uses all that it has.
            on_video: called with the number of videos that were just finished.

        Raises:
            OSError: the work folder cannot be written.
            concurrent.futures.process.BrokenProcessPool: a worker was killed, for lack of memory as a rule.
        """
        for folder in (self._parts, self._shards, self._entries):
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".*"):  # of a run that was killed
                shutil.rmtree(leftover, ignore_errors=True)
        write_json(self._size_file, self._size)
        todo = [number for number in range(len(self._groups)) if not self._is_done(number)]
        on_video(len(self.videos) - sum(len(self._groups[number]) for number in todo))
        if todo:
            self._extract(todo, num_workers, on_video)
        result = Extraction({}, {})
        for number in range(len(self._groups)):
            saved = read_json(self._entries_path(number))
            result.entries.update(saved["entries"])
            result.failures.update(saved["failures"])
        return result

    def finish(self, output: Path, result: Extraction) -> None:
        """Move the shards to ``output`` with an index, and remove all work in progress, superseded work included."""
        params = {**self.params.model_dump(mode="json"), "opencv": cv2.__version__}
        write_index(self._shards, result.entries, params)
        with atomic_path(output) as temporary:
            shutil.move(self._shards, temporary)
        for folder in self._all_work.iterdir():
            shutil.rmtree(folder)

    def _extract(self, todo: Sequence[int], num_workers: int, on_video: Callable[[int], None]) -> None:
        missing = {number: len(self._groups[number]) for number in todo}
        failures: dict[int, dict[str, str]] = {number: {} for number in todo}
        with open_pool(self.runtime.executor, min(num_workers, sum(missing.values())), __name__) as pool:
            for (number, video), reason in pool.call_all(extract_part, self._calls(todo)):
                if reason:
                    failures[number][video.id] = reason
                on_video(1)
                missing[number] -= 1
                if not missing[number]:
                    self._merge(number, failures[number])

    def _calls(self, todo: Sequence[int]) -> Iterator[tuple[tuple[int, Video], tuple[Any, ...]]]:
        """Shard and video, and the arguments of ``extract_part``."""
        for number in todo:
            for video in self._groups[number]:
                path, part = self._paths[video.id], self._parts / video.id
                if self.runtime.executor == "ray":  # whose workers have a working directory of their own
                    path, part = path.absolute(), part.absolute()
                yield (number, video), (path, video.num_frames, part, self.params)

    def _merge(self, number: int, failures: dict[str, str]) -> None:
        parts = {v.id: self._parts / v.id for v in self._groups[number] if v.id not in failures}
        entries = merge_parts(self._shard_path(number), parts) if parts else {}
        write_json(self._entries_path(number), {"entries": entries, "failures": dict(sorted(failures.items()))})
        for folder in parts.values():
            shutil.rmtree(folder)

    def _is_done(self, number: int) -> bool:
        path = self._entries_path(number)
        return path.exists() and (self._shard_path(number).exists() or not read_json(path)["entries"])

    def _shard_path(self, number: int) -> Path:
        return self._shards / f"tracks-{number:05d}.safetensors"

    def _entries_path(self, number: int) -> Path:
        return self._entries / f"{number:05d}.json"
