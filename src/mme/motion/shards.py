"""Tracks written to disk: parts of one video each, merged into a few big safetensors shards with an index.

A video has four tensors in a shard, S start frames, L steps:

- ``{id}/displacements`` float16 ``[S, h, w, L, 2]``, pixels. Half precision rounds a displacement by at most 2^-11 of
  itself: 0.001 px at 2 px a frame, 0.016 px at 32 px a frame, far below the error of the flow;
- ``{id}/num_valid`` uint8 ``[S, h, w]``;
- ``{id}/homographies`` float32 ``[S, 3, 3]`` and ``{id}/trusted`` uint8 ``[S]``.

Parts are raw files that grow start by start, and merging copies them in blocks, so memory does not grow with a video.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mme.motion.tracking import StartTracks
from mme.system.files import atomic_path, read_json, write_json

FORMAT = 1
INDEX_NAME = "index.json"
_ENTRY_NAME = "entry.json"

Entry = dict[str, Any]

DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "U8": np.uint8}
"""Types of tensors by their names in safetensors."""

_TENSORS = {"homographies": "F32", "displacements": "F16", "num_valid": "U8", "trusted": "U8"}
"""Type of each tensor. Widest first, so that every tensor is aligned in a shard."""


def write_part(folder: Path, starts: Iterable[StartTracks], cell: int) -> Entry:
    """Write the tracks of one video as raw files in ``folder``, which appears only when it is whole.

    Returns:
        what the index says of the video: cell, height, width, num_starts, shapes, counts and a digest of the content.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        entry = _write_raw(temporary, starts, cell)
        (temporary / _ENTRY_NAME).write_text(json.dumps(entry), encoding="utf-8")
    return entry


def _write_raw(folder: Path, starts: Iterable[StartTracks], cell: int) -> Entry:
    shapes: dict[str, list[int]] = {}
    digests = {name: hashlib.sha256() for name in _TENSORS}
    num_starts = num_trusted = num_points = num_whole = height = width = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "wb")) for name in _TENSORS}
        for start in starts:
            arrays = {
                "homographies": start.camera.homography,
                "displacements": start.displacements,
                "num_valid": start.num_valid,
                "trusted": np.array(start.camera.trusted),
            }
            for name, array in arrays.items():
                stored = np.asarray(array, dtype=DTYPES[_TENSORS[name]], order="C")
                files[name].write(stored.data)
                digests[name].update(stored.data)
                shapes[name] = list(stored.shape)
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


def read_part(folder: Path) -> Entry | None:
    """The entry of a finished part, or None if there is none."""
    return read_json(folder / _ENTRY_NAME) if folder.is_dir() else None


def merge_parts(path: Path, parts: Mapping[str, Path]) -> dict[str, Entry]:
    """Write the parts of several videos, by id, into one safetensors shard, atomically.

    Returns:
        the entries of the videos for `write_index`.
    """
    entries = {video_id: {**read_json(folder / _ENTRY_NAME), "shard": path.name} for video_id, folder in parts.items()}
    header: dict[str, Any] = {}
    sources: list[Path] = []
    end = 0
    for name, type_name in _TENSORS.items():
        for video_id, folder in parts.items():
            begin, end = end, end + (folder / name).stat().st_size
            shape = entries[video_id]["shapes"][name]
            header[f"{video_id}/{name}"] = {"dtype": type_name, "shape": shape, "data_offsets": [begin, end]}
            sources.append(folder / name)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, open(temporary, "wb") as shard:
        shard.write(len(text).to_bytes(8, "little") + text)
        for source in sources:
            with open(source, "rb") as file:
                shutil.copyfileobj(file, shard, 1 << 20)
    for entry in entries.values():
        del entry["shapes"]
    return entries


def write_index(folder: Path, entries: Mapping[str, Entry], params: Mapping[str, Any]) -> None:
    """Write the index of a folder of shards; ``params`` is what the tracks were extracted with."""
    write_json(folder / INDEX_NAME, {"format": FORMAT, "params": dict(params), "videos": dict(entries)})
