"""Track store: tracks of one video each as parts, merged into a few large safetensors shards, read slice by slice.

A video has four tensors in a shard, with S start frames and L steps:

- ``{id}/displacements`` float16 ``[S, h, w, L, 2]``, pixels. Half precision rounds a displacement by at most 2^-11 of
  itself: 0.001 px at 2 px per frame, 0.016 px at 32 px per frame, far below the error of the flow;
- ``{id}/num_valid`` uint8 ``[S, h, w]``;
- ``{id}/homographies`` float32 ``[S, 3, 3]`` and ``{id}/trusted`` uint8 ``[S]``.

Parts are raw files that grow start by start, and merging copies them in blocks, so memory does not grow with a video.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from mme.motion.tracking import StartTracks, TrackSlice, step_homographies
from mme.system.files import atomic_path, read_json, write_json

TRACKS_FORMAT = 1
INDEX_NAME = "index.json"
_ENTRY_NAME = "entry.json"

_TENSORS: dict[str, tuple[str, type[np.generic]]] = {
    "homographies": ("F32", np.float32),
    "displacements": ("F16", np.float16),
    "num_valid": ("U8", np.uint8),
    "trusted": ("U8", np.uint8),
}
"""Type of each tensor, by its name in safetensors and in NumPy. Widest first, so that every tensor is aligned."""


class TrackEntry(TypedDict):
    """Index entry of a video.

    Attributes:
        cell: grid spacing, pixels.
        height, width: frame size, pixels.
        num_starts: start frames, S.
        num_trusted: start frames whose camera motion is trusted.
        num_points: points of the start frames that have L frames after them.
        num_whole: of these points, those that are valid to their last step.
        digest: digest of the tensors.
        shapes: shape of each tensor; in parts only.
        shard: file name of the shard; in the index only.
    """

    cell: int
    height: int
    width: int
    num_starts: int
    num_trusted: int
    num_points: int
    num_whole: int
    digest: str
    shapes: NotRequired[dict[str, list[int]]]
    shard: NotRequired[str]


def write_part(folder: Path, starts: Iterable[StartTracks], cell: int) -> TrackEntry:
    """Write the tracks of one video as raw files into ``folder``, which appears only when it is complete.

    Returns:
        the index entry of the video.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        entry = _write_tensors(temporary, starts, cell)
        (temporary / _ENTRY_NAME).write_text(json.dumps(entry), encoding="utf-8")
    return entry


def _write_tensors(folder: Path, starts: Iterable[StartTracks], cell: int) -> TrackEntry:
    digests = {name: hashlib.sha256() for name in _TENSORS}
    shapes: dict[str, list[int]] = {}
    num_starts = num_trusted = num_points = num_whole = height = width = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "wb")) for name in _TENSORS}
        for start in starts:
            # One row of each tensor.
            rows = {
                "homographies": start.camera.homography,
                "displacements": start.displacements,
                "num_valid": start.num_valid,
                "trusted": np.array(start.camera.trusted),
            }
            for name, row in rows.items():
                stored = np.asarray(row, dtype=_TENSORS[name][1], order="C")
                files[name].write(stored.data)
                digests[name].update(stored.data)
                shapes[name] = list(stored.shape)

            # Counts; starts near the end of the video have no chance to be valid to their last step.
            height, width = start.frame_size
            num_starts += 1
            num_trusted += start.camera.trusted
            if start.complete:
                num_points += start.num_valid.size
                num_whole += int((start.num_valid == start.displacements.shape[2]).sum())
    return {
        "cell": cell,
        "height": height,
        "width": width,
        "num_starts": num_starts,
        "num_trusted": num_trusted,
        "num_points": num_points,
        "num_whole": num_whole,
        "shapes": {name: [num_starts, *shape] for name, shape in shapes.items()},
        "digest": hashlib.sha256("".join(d.hexdigest() for d in digests.values()).encode()).hexdigest()[:16],
    }


def read_part(folder: Path) -> TrackEntry | None:
    """Return the entry of a complete part, or None if there is none."""
    return _read_entry(folder) if folder.is_dir() else None


def _read_entry(folder: Path) -> TrackEntry:
    entry: TrackEntry = read_json(folder / _ENTRY_NAME)
    return entry


def merge_parts(path: Path, parts: Mapping[str, Path]) -> dict[str, TrackEntry]:
    """Merge the parts of several videos, by video id, into one safetensors shard, atomically.

    Returns:
        the entries of the videos for `write_index`.
    """
    entries = {video_id: _read_entry(folder) for video_id, folder in parts.items()}

    # Header of the format: type, shape and bytes of every tensor, padded so that the tensors are aligned.
    header: dict[str, Any] = {}
    sources: list[Path] = []
    end = 0
    for name, (type_name, _) in _TENSORS.items():
        for video_id, folder in parts.items():
            begin = end
            end += (folder / name).stat().st_size
            shape = entries[video_id]["shapes"][name]
            header[f"{video_id}/{name}"] = {"dtype": type_name, "shape": shape, "data_offsets": [begin, end]}
            sources.append(folder / name)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    # The safetensors library can only save arrays that are all in memory.
    with atomic_path(path) as temporary, open(temporary, "wb") as shard:
        shard.write(len(text).to_bytes(8, "little") + text)
        for source in sources:
            with open(source, "rb") as file:
                shutil.copyfileobj(file, shard, 1 << 20)

    for entry in entries.values():
        del entry["shapes"]
        entry["shard"] = path.name
    return entries


def write_index(folder: Path, entries: Mapping[str, TrackEntry], params: Mapping[str, Any]) -> None:
    """Write the index of a folder of shards; ``params`` are the parameters of the extraction."""
    write_json(folder / INDEX_NAME, {"format": TRACKS_FORMAT, "params": dict(params), "videos": dict(entries)})


class TrackStore:
    """Reader of a folder of shards; may be pickled and used across forks.

    Attributes:
        folder: folder of the shards.
        params: parameters of the extraction.

    Raises:
        ValueError: the folder has no index, or one of another format.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        index = read_json(self.folder / INDEX_NAME)
        if index.get("format") != TRACKS_FORMAT:
            raise ValueError(f"{self.folder / INDEX_NAME}: format {index.get('format')!r}, expected {TRACKS_FORMAT}")
        self.params: dict[str, Any] = index["params"]
        self._videos: dict[str, TrackEntry] = index["videos"]
        self._shards: dict[str, _Shard] = {}

    @property
    def ids(self) -> list[str]:
        """Sorted ids of the videos."""
        return sorted(self._videos)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._videos

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # every process maps the files itself

    def num_starts(self, video_id: str) -> int:
        """Return the number of start frames of a video, one less than its frames."""
        return self._entry(video_id)["num_starts"]

    def grid(self, video_id: str) -> tuple[int, int]:
        """Rows and columns of a video's grid of tracks."""
        entry = self._entry(video_id)
        return entry["height"] // entry["cell"], entry["width"] // entry["cell"]

    def read(self, video_id: str, starts: Sequence[int], length: int) -> TrackSlice:
        """Read the tracks of ``length`` steps from the frames ``starts``, and nothing else of the shard.

        Raises:
            KeyError: the video has no tracks.
            ValueError: a start frame or the length lies outside the stored tracks, or the shard is damaged.
        """
        entry = self._entry(video_id)
        shard = self._shard(entry["shard"])
        displacements = shard.tensor(video_id, "displacements")  # (S, h, w, L, 2), a view of the file
        stored_starts, _, _, stored_length, _ = displacements.shape
        if length > stored_length:
            raise ValueError(f"{video_id}: length {length} exceeds the {stored_length} steps in {self.folder}")
        for start in starts:
            if not 0 <= start < stored_starts:
                raise ValueError(f"{video_id}: start frame {start} is not in 0..{stored_starts - 1}")

        index = np.asarray(starts, dtype=np.int64)
        num_valid = shard.tensor(video_id, "num_valid")[index]
        return TrackSlice(
            displacements=displacements[index, :, :, :length],
            num_valid=np.minimum(num_valid, np.uint8(length)),
            homographies=step_homographies(shard.tensor(video_id, "homographies"), index, length),
            starts=index,
            cell=entry["cell"],
            height=entry["height"],
            width=entry["width"],
        )

    def _entry(self, video_id: str) -> TrackEntry:
        if video_id not in self._videos:
            raise KeyError(f"no tracks of video {video_id!r} in {self.folder}")
        return self._videos[video_id]

    def _shard(self, name: str) -> _Shard:
        if name not in self._shards:
            self._shards[name] = _Shard(self.folder / name)
        return self._shards[name]


class _Shard:
    """Safetensors file mapped into memory; indexing a tensor reads those elements from disk only.

    ``safe_open(...).get_slice`` copies one start frame per call and takes 1.3 to 2.2 times as long, see
    docs/decisions.md.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._bytes: np.ndarray = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
            self._begin = 8 + int.from_bytes(self._bytes[:8].tobytes(), "little")
            self._header: dict[str, Any] = json.loads(self._bytes[8 : self._begin].tobytes())
            end = max(tensor["data_offsets"][1] for tensor in self._header.values())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: cannot be read as safetensors: {error}") from error
        if self._begin + end != len(self._bytes):
            raise ValueError(f"{path}: {len(self._bytes)} bytes, its header says {self._begin + end}")

    def tensor(self, video_id: str, name: str) -> np.ndarray:
        """Return a view of a tensor.

        Raises:
            ValueError: the shard has no such tensor.
        """
        key = f"{video_id}/{name}"
        if key not in self._header:
            raise ValueError(f"{self._path}: has no tensor {key!r}")
        begin, end = (self._begin + offset for offset in self._header[key]["data_offsets"])
        view: np.ndarray = self._bytes[begin:end].view(_TENSORS[name][1]).reshape(self._header[key]["shape"])
        return view
