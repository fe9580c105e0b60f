"""Extract the tracks of the videos of a manifest into a folder of shards, in parallel processes.

Unfinished work has a folder of its own: one part per video, merged into a shard as soon as all videos of the shard are
done. Parts and shards are written atomically and do not depend on the process that wrote them. So a killed run resumes,
and its result equals that of an uninterrupted run with any number of workers.
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
from mme.motion.store import TRACKS_FORMAT, TrackEntry, merge_parts, read_part, write_index, write_part
from mme.motion.tracking import iter_tracks
from mme.system.executors import open_pool
from mme.system.files import atomic_path, digest, read_json, sha256_file, write_json
from mme.video.containers import VideoError
from mme.video.planes import iter_planes

MIN_FRAMES = 2
"""Frames of a shortest video that has motion."""


@dataclass(frozen=True)
class Extraction:
    """Result of an extraction.

    Attributes:
        entries: index entries of the good videos, by video id.
        failures: reasons of the bad videos, by video id.
        num_still: videos of a single frame, which has no motion; they are left out.
    """

    entries: dict[str, TrackEntry]
    failures: dict[str, str]
    num_still: int = 0

    def summary(self) -> dict[str, float]:
        """Return counts, the share of points valid to their last step, and the share of trusted homographies."""
        entries = self.entries.values()
        num_starts = sum(entry["num_starts"] for entry in entries)
        num_points = sum(entry["num_points"] for entry in entries)
        return {
            "videos": len(entries),
            "bad_videos": len(self.failures),
            "single_frame_videos": self.num_still,
            "frames": num_starts + len(entries),
            "valid_share": sum(entry["num_whole"] for entry in entries) / max(num_points, 1),
            "trusted_share": sum(entry["num_trusted"] for entry in entries) / max(num_starts, 1),
        }


def extraction_key(videos: Sequence[Video], paths: Sequence[Path], params: TrajectoriesParams) -> str:
    """Return a digest of all that the shards depend on: videos, parameters, and the code of this package."""
    files = [
        [video.id, video.sha256, video.width, video.height, video.num_frames, path.stat().st_size]
        for video, path in zip(videos, paths, strict=True)
    ]
    code = [sha256_file(module) for module in sorted(Path(__file__).parent.glob("*.py"))]
    return digest([TRACKS_FORMAT, cv2.__version__, code, params.model_dump(mode="json"), files])


def extract_part(path: Path, num_frames: int, folder: Path, params: TrajectoriesParams) -> str | None:
    """Write the part of one video, unless it exists.

    Returns:
        the reason if the video is bad, or None.

    Raises:
        OSError: the part cannot be written.
    """
    try:
        luma = (planes.y.copy() for planes in iter_planes(path))
        entry = read_part(folder) or write_part(folder, iter_tracks(luma, params), params.cell)
    except (VideoError, ValueError) as error:
        return str(error)
    except OSError as error:
        if error.filename is None:  # such as a full disk, whose error names no file
            raise OSError(error.errno, f"{error.strerror}, while writing the tracks of {path}", str(folder)) from error
        raise
    if entry["num_starts"] + 1 != num_frames:
        shutil.rmtree(folder)
        return f"{path}: {entry['num_starts'] + 1} frames decoded, the manifest has {num_frames}"
    return None


class Extractor:
    """Extraction of the tracks of a manifest, shard by shard.

    Args:
        manifest: the videos.
        params: splits to extract, and parameters of the extraction.
        work: folder for unfinished work; kept on errors, emptied by `finish`, which removes superseded work as well.
        runtime: executor and videos per shard. Unfinished work keeps the shard size that it began with.
    """

    def __init__(
        self, manifest: Manifest, params: TrajectoriesParams, work: Path, runtime: RuntimeParams = DEFAULT_RUNTIME
    ) -> None:
        self.params = params
        self.runtime = runtime
        self.videos = manifest.videos(params.splits, MIN_FRAMES)
        self.num_still = len(manifest.videos(params.splits)) - len(self.videos)
        if not self.videos:
            found = f", {self.num_still} have a single frame, which has no motion" if self.num_still else ""
            raise ValueError(f"{manifest.folder}: no usable videos in splits {list(params.splits)}{found}")
        self._paths = {video.id: manifest.path_of(video) for video in self.videos}
        self.key = extraction_key(self.videos, list(self._paths.values()), params)
        self._all_work = work
        self._work = work / self.key
        self._parts = self._work / "parts"
        self._shards = self._work / "shards"
        self._entries = self._work / "entries"
        self._size_file = self._work / "videos_per_shard.json"
        size: int = read_json(self._size_file) if self._size_file.exists() else runtime.videos_per_shard
        self._size = size
        self._groups = [self.videos[first : first + size] for first in range(0, len(self.videos), size)]

    def run(self, num_workers: int, on_video: Callable[[int], None]) -> Extraction:
        """Extract all shards that do not exist yet.

        Args:
            num_workers: processes on this machine; Ray uses all processors of its cluster.
            on_video: called with the number of videos that were just finished.

        Raises:
            OSError: the work folder cannot be written.
            concurrent.futures.process.BrokenProcessPool: a worker was killed, usually for lack of memory.
        """
        for folder in (self._parts, self._shards, self._entries):
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".*"):  # temporary files of a killed run
                shutil.rmtree(leftover, ignore_errors=True)
        write_json(self._size_file, self._size)
        todo = [number for number in range(len(self._groups)) if not self._is_done(number)]
        on_video(len(self.videos) - sum(len(self._groups[number]) for number in todo))
        if todo:
            self._extract_shards(todo, num_workers, on_video)

        result = Extraction({}, {}, self.num_still)
        for number in range(len(self._groups)):
            saved = read_json(self._entries_path(number))
            result.entries.update(saved["entries"])
            result.failures.update(saved["failures"])
        return result

    def finish(self, output: Path, result: Extraction) -> None:
        """Move the shards to ``output`` with an index, and remove all unfinished work, superseded work included."""
        params = {**self.params.model_dump(mode="json"), "opencv": cv2.__version__}
        write_index(self._shards, result.entries, params)
        with atomic_path(output) as temporary:
            shutil.move(self._shards, temporary)
        for folder in self._all_work.iterdir():
            shutil.rmtree(folder)

    def _extract_shards(self, todo: Sequence[int], num_workers: int, on_video: Callable[[int], None]) -> None:
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
        """Yield the shard and the video of each part, and the arguments of ``extract_part``."""
        for number in todo:
            for video in self._groups[number]:
                path = self._paths[video.id]
                part = self._parts / video.id
                if self.runtime.executor == "ray":  # its workers have another working directory
                    path = path.absolute()
                    part = part.absolute()
                yield (number, video), (path, video.num_frames, part, self.params)

    def _merge(self, number: int, failures: dict[str, str]) -> None:
        good = [video.id for video in self._groups[number] if video.id not in failures]
        parts = {video_id: self._parts / video_id for video_id in good}
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
