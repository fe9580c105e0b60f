"""Tracks on disk: a few big safetensors shards and an index.

A video has four tensors, ``{id}/displacements`` (float16 ``[S, h, w, L, 2]``, pixels), ``{id}/num_valid`` (uint8),
``{id}/homographies`` (float32) and ``{id}/trusted`` (uint8). Half precision rounds a displacement by at most 2^-11 of
itself: 0.001 px at 2 px a frame, 0.016 px at 32 px a frame, well below the error of the flow.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from mme.files import atomic_path, read_json, write_json
from mme.targets.trajectories import Tracks, TrackSlice, step_homographies

FORMAT = 1
INDEX_NAME = "index.json"


def write_shard(path: Path | str, videos: Iterable[tuple[str, Tracks]]) -> dict[str, dict[str, Any]]:
    """Write the tracks of several videos into one file, atomically.

    Returns:
        the videos' entries for `write_index`.
    """
    path = Path(path)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    entries: dict[str, dict[str, Any]] = {}
    for video_id, tracks in videos:
        arrays = {
            "displacements": tracks.displacements.astype(np.float16),
            "num_valid": tracks.num_valid,
            "homographies": tracks.homographies,
            "trusted": tracks.trusted.astype(np.uint8),
        }
        content = hashlib.sha256()
        for name, array in arrays.items():
            tensors[f"{video_id}/{name}"] = np.ascontiguousarray(array)
            content.update(np.ascontiguousarray(array).tobytes())
        entries[video_id] = {
            "shard": path.name,
            "cell": tracks.cell,
            "height": tracks.height,
            "width": tracks.width,
            "num_starts": len(tracks.displacements),
            "digest": content.hexdigest()[:16],
        }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
    return entries


def write_index(folder: Path | str, entries: dict[str, dict[str, Any]], params: dict[str, Any]) -> None:
    """Write the index of a folder of shards; ``params`` is what the tracks were extracted with."""
    write_json(Path(folder) / INDEX_NAME, {"format": FORMAT, "params": params, "videos": entries})


class TrackStore:
    """Tracks in a folder of shards, read slice by slice; may be pickled and used across forks.

    Raises:
        ValueError: the folder has no index, or one of another format.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        index = read_json(self.folder / INDEX_NAME)
        if index.get("format") != FORMAT:
            raise ValueError(f"{self.folder / INDEX_NAME}: format {index.get('format')!r}, expected {FORMAT}")
        self.params: dict[str, Any] = index["params"]
        self._videos: dict[str, dict[str, Any]] = index["videos"]
        self._open_files()

    def _open_files(self) -> None:
        self._pid = os.getpid()
        self._files: dict[str, Any] = {}
        self._stack = ExitStack()

    @property
    def ids(self) -> list[str]:
        """Ids of the videos, sorted."""
        return sorted(self._videos)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._videos

    def __getstate__(self) -> dict[str, Any]:
        hidden = ("_pid", "_files", "_stack")
        return {name: value for name, value in self.__dict__.items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_files()

    def close(self) -> None:
        """Close the shards; they reopen on the next read."""
        self._stack.close()
        self._open_files()

    def num_starts(self, video_id: str) -> int:
        """Start frames of a video, one less than its frames."""
        return int(self._entry(video_id)["num_starts"])

    def read(self, video_id: str, starts: Sequence[int], length: int) -> TrackSlice:
        """The tracks of ``length`` steps from the frames ``starts``; nothing else is read from disk.

        Raises:
            KeyError: the video has no tracks.
            ValueError: a start frame or the length lies outside what is stored.
        """
        entry = self._entry(video_id)
        file = self._file(entry["shard"])
        displacements = file.get_slice(f"{video_id}/displacements")
        num_valid = file.get_slice(f"{video_id}/num_valid")
        stored_starts, _, _, stored_length, _ = displacements.get_shape()
        if length > stored_length:
            raise ValueError(f"{video_id}: length {length} exceeds the {stored_length} steps in {self.folder}")
        for start in starts:
            if not 0 <= start < stored_starts:
                raise ValueError(f"{video_id}: start frame {start} is not in 0..{stored_starts - 1}")
        index = np.asarray(starts, dtype=np.int64)
        return TrackSlice(
            displacements=np.stack([displacements[s, :, :, :] for s in starts])[:, :, :, :length].astype(np.float32),
            num_valid=np.minimum(np.stack([num_valid[s, :, :] for s in starts]), length).astype(np.uint8),
            homographies=step_homographies(file.get_tensor(f"{video_id}/homographies"), index, length),
            starts=index,
            cell=entry["cell"],
            height=entry["height"],
            width=entry["width"],
        )

    def _entry(self, video_id: str) -> dict[str, Any]:
        if video_id not in self._videos:
            raise KeyError(f"no tracks of video {video_id!r} in {self.folder}")
        return self._videos[video_id]

    def _file(self, name: str) -> Any:
        if self._pid != os.getpid():
            self._open_files()
        if name not in self._files:
            self._files[name] = self._stack.enter_context(safe_open(self.folder / name, framework="numpy"))
        return self._files[name]
