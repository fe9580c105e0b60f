"""Tracks read from disk, slice by slice; `mme.motion.shards` writes them and says what a shard holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mme.motion.shards import DTYPES, FORMAT, INDEX_NAME
from mme.motion.tracking import TrackSlice, step_homographies
from mme.system.files import read_json


class TrackStore:
    """Tracks in a folder of shards, read slice by slice; may be pickled and used across forks.

    Attributes:
        folder: of the shards.
        params: what the tracks were extracted with.

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
        self._shards: dict[str, _Shard] = {}

    @property
    def ids(self) -> list[str]:
        """Ids of the videos, sorted."""
        return sorted(self._videos)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._videos

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # every process maps the files for itself

    def num_starts(self, video_id: str) -> int:
        """Start frames of a video, one less than its frames."""
        return int(self._entry(video_id)["num_starts"])

    def read(self, video_id: str, starts: Sequence[int], length: int) -> TrackSlice:
        """The tracks of ``length`` steps from the frames ``starts``; nothing else is read from disk.

        Raises:
            KeyError: the video has no tracks.
            ValueError: a start frame or the length lies outside what is stored, or the shard is damaged.
        """
        entry = self._entry(video_id)
        shard = self._shard(entry["shard"])
        displacements = shard.tensor(f"{video_id}/displacements")
        stored_starts, _, _, stored_length, _ = displacements.shape
        if length > stored_length:
            raise ValueError(f"{video_id}: length {length} exceeds the {stored_length} steps in {self.folder}")
        for start in starts:
            if not 0 <= start < stored_starts:
                raise ValueError(f"{video_id}: start frame {start} is not in 0..{stored_starts - 1}")
        index = np.asarray(starts, dtype=np.int64)
        num_valid = shard.tensor(f"{video_id}/num_valid")[index]
        return TrackSlice(
            displacements=displacements[index, :, :, :length].astype(np.float32),
            num_valid=np.minimum(num_valid, np.uint8(length)),
            homographies=step_homographies(shard.tensor(f"{video_id}/homographies"), index, length),
            starts=index,
            cell=entry["cell"],
            height=entry["height"],
            width=entry["width"],
        )

    def _entry(self, video_id: str) -> dict[str, Any]:
        if video_id not in self._videos:
            raise KeyError(f"no tracks of video {video_id!r} in {self.folder}")
        return self._videos[video_id]

    def _shard(self, name: str) -> _Shard:
        if name not in self._shards:
            self._shards[name] = _Shard(self.folder / name)
        return self._shards[name]


class _Shard:
    """A safetensors file mapped into memory: taking a slice of a tensor reads that slice from disk and no more.

    The safetensors library would make an array of every slice it is asked for, one start frame at a time; a view takes
    all start frames at once, several times as fast.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._bytes: NDArray[np.uint8] = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
            self._begin = 8 + int.from_bytes(self._bytes[:8].tobytes(), "little")
            self._header: dict[str, Any] = json.loads(self._bytes[8 : self._begin].tobytes())
            end = max(tensor["data_offsets"][1] for tensor in self._header.values())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: cannot be read as safetensors: {error}") from error
        if self._begin + end != len(self._bytes):
            raise ValueError(f"{path}: {len(self._bytes)} bytes, its header says {self._begin + end}")

    def tensor(self, name: str) -> NDArray[Any]:
        """A view of a tensor.

        Raises:
            ValueError: the shard has no such tensor.
        """
        if name not in self._header:
            raise ValueError(f"{self._path}: has no tensor {name!r}")
        facts = self._header[name]
        begin, end = (self._begin + offset for offset in facts["data_offsets"])
        view: NDArray[Any] = self._bytes[begin:end].view(DTYPES[facts["dtype"]])
        return view.reshape(facts["shape"])
