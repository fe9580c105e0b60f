"""Folders of numbered pictures (``1/00001.jpg``, ``clip/img_00001.png``) that are videos."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

PICTURE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
MIN_PICTURES = 2


_NUMBERED = re.compile(r"(.*?)(\d+)(\.[^.]+)", re.DOTALL)
_FLOW = re.compile(r"flow|^[xyuv]_?$", re.IGNORECASE)


def is_picture(name: str) -> bool:
    """Return whether a name has the suffix of a picture and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def frame_sequence(names: Iterable[str]) -> list[str]:
    """Return the names of the frames among those of a folder, in the order of their numbers.

    The frames are the pictures that share what stands before the number, and the suffix; of several such sequences the
    longest is taken, and pictures of optical flow (``flow_x_00001.jpg``) only if there is nothing else. Numbers begin
    anywhere, may have gaps, and need no leading zeros.
    """
    sequences: defaultdict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for name in names:
        if is_picture(name) and (match := _NUMBERED.fullmatch(name)) is not None:
            sequences[match[1], match[3].lower()].append((int(match[2]), name))
    if not sequences:
        return []
    best = max(sequences, key=lambda key: (_FLOW.search(key[0]) is None, len(sequences[key]), key))
    frames = sequences[best]
    return [name for _, name in sorted(frames)] if len(frames) >= MIN_PICTURES else []


def frame_paths(folder: Path) -> list[Path]:
    """Return the frames of a folder in their order.

    Raises:
        OSError: the folder cannot be read.
    """
    return [folder / name for name in frame_sequence(os.listdir(folder))]


def source_stamp(path: Path) -> list[int | str]:
    """Return a mark that changes with the content of a file, or of any frame of a folder: sizes and times.

    Raises:
        OSError: it does not exist or cannot be read.
    """
    status = os.stat(path)
    if not path.is_dir():
        return [status.st_size, status.st_mtime_ns]
    marks = hashlib.sha256()
    size = 0
    frames = frame_paths(path)
    for frame in frames:
        status = os.stat(frame)
        size += status.st_size
        marks.update(f"{frame.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return [size, len(frames), marks.hexdigest()]


def sha256_frames(frames: Iterable[Path]) -> str:
    """Return the SHA-256 of names and bytes of frames, in their order.

    Raises:
        OSError: a frame cannot be read.
    """
    content = hashlib.sha256()
    for frame in frames:
        data = frame.read_bytes()
        content.update(f"{frame.name}\0{len(data)}\n".encode(errors="surrogateescape"))
        content.update(data)
    return content.hexdigest()
