"""Folders of numbered pictures (``1/00001.jpg``, ``clip/img_00001.png``) that are videos.

Data sets have millions of frames, so names are strings and none is looked at more often than needed.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MIN_PICTURES = 2


_NUMBERED = re.compile(r"(.*?)(\d+)(\.[^.]+)", re.DOTALL)
_FLOW = re.compile(r"flow|^[xyuv]_?$", re.IGNORECASE)


def is_picture(name: str) -> bool:
    """Return whether a name has the suffix of a picture and is not hidden."""
    return not name.startswith(".") and name.lower().endswith(PICTURE_SUFFIXES)


def frame_sequence(names: Iterable[str]) -> list[str]:
    """Return the names of the frames among those of a folder, in the order of their numbers.

    The frames are the pictures that share what stands before the number, and the suffix; of several such sequences the
    longest is taken, and pictures of optical flow (``flow_x_00001.jpg``) only if there is nothing else. Numbers begin
    anywhere, may have gaps, and need no leading zeros.
    """
    sequences: defaultdict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for name in names:
        if is_picture(name) and (match := _NUMBERED.fullmatch(name)) is not None:
            prefix, number, suffix = match.groups()
            sequences[prefix, suffix.lower()].append((int(number), name))
    if not sequences:
        return []
    best = max(sequences, key=lambda key: (_FLOW.search(key[0]) is None, len(sequences[key]), key))
    frames = sequences[best]
    return [name for _, name in sorted(frames)] if len(frames) >= MIN_PICTURES else []


def frame_names(folder: Path) -> list[str]:
    """Return the names of the frames of a folder in their order.

    Raises:
        OSError: the folder cannot be read.
    """
    return frame_sequence(os.listdir(folder))


def source_stamp(path: Path) -> list[int | str]:
    """Return a mark that changes with the content of a file, or of any frame of a folder: sizes and times.

    Raises:
        OSError: it does not exist or cannot be read.
    """
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        return [status.st_size, status.st_mtime_ns]
    marks = hashlib.sha256()
    size = 0
    frames = frame_names(path)
    for name in frames:
        status = os.stat(f"{path}/{name}")
        size += status.st_size
        marks.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return [size, len(frames), marks.hexdigest()]


def sha256_frames(folder: Path, names: Iterable[str]) -> str:
    """Return the SHA-256 of names and bytes of frames of a folder, in their order.

    Raises:
        OSError: a frame cannot be read.
    """
    content = hashlib.sha256()
    for name in names:
        with open(f"{folder}/{name}", "rb", buffering=0) as file:
            data = file.readall()
        content.update(f"{name}\0{len(data)}\n".encode(errors="surrogateescape"))
        content.update(data)
    return content.hexdigest()
