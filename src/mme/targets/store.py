"""Tracks read from disk, slice by slice; `mme.targets.shards` writes them and says what a shard holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from mme.files import read_json
from mme.targets.shards import FORMAT, INDEX_NAME
from mme.targets.trajectories import TrackSlice, step_homographies


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
