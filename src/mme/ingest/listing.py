"""The videos of a source before any of them is opened, and errors in the lines of its lists."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from mme.config import Split
from mme.manifest import SPLITS

VIDEO_SUFFIXES = frozenset({
    ".264", ".265", ".266", ".3g2", ".3gp", ".3gpp", ".amv", ".apng", ".asf", ".avc", ".avi", ".cmfv", ".dav", ".dif",
    ".divx", ".dv", ".dvr-ms", ".f4v", ".flv", ".gif", ".gxf", ".h261", ".h263", ".h264", ".h265", ".hevc", ".ismv",
    ".ivf", ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4s", ".m4v", ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mov",
    ".mp2v", ".mp4", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nsv", ".nut", ".obu", ".ogg", ".ogm", ".ogv",
    ".qt", ".rm", ".rmvb", ".swf", ".tod", ".tp", ".trp", ".ts", ".vc1", ".vob", ".vvc", ".webm", ".webp", ".wmv",
    ".wtv", ".xvid", ".y4m",
})  # fmt: skip

SPLIT_OF_NAME: dict[str, Split] = {
    **{name: name for name in SPLITS},
    **dict.fromkeys(("validation", "validate", "valid"), "val"),
}
"""Splits by the names that lists and folders give them."""

_MAX_SHOWN_ERRORS = 20
_ENTRY_START = re.compile(r"[^\s,]")


@dataclass(frozen=True)
class SourceFile:
    """A file with the suffix of a video, or a clip of one.

    Attributes:
        path: relative to the source's root, with forward slashes.
        label: class, or None.
        split: split that the source assigns, or None.
        group: files of one group go to one split; None is a group of its own.
        span_s: first and last second of the clip (half open), or None for the whole file.
    """

    path: str
    label: str | None = None
    split: Split | None = None
    group: str | None = None
    span_s: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """Unique name in the source: the path, for a clip with a W3C media fragment, ``a.mp4#t=2,4.5``."""
        return self.path if self.span_s is None else f"{self.path}#t={self.span_s[0]:.12g},{self.span_s[1]:.12g}"


@dataclass(frozen=True)
class Listing:
    """Files of a source.

    Attributes:
        files: videos, sorted by name.
        ignored: files without the suffix of a video.
        missing: listed videos that do not exist, in a data set where that is usual.
        unused: existing videos that the lists leave out.
        splits_training: True if files without a split are training videos, some of which become validation.
    """

    files: list[SourceFile]
    ignored: list[str]
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    splits_training: bool = False


class LineErrors:
    """Errors in the lines of lists, collected in order to report all of them at once."""

    def __init__(self) -> None:
        self._errors: list[str] = []

    def add(self, path: Path, line: int, error: object) -> None:
        """Add an error in a line, counted from 1."""
        self._errors.append(f"{path}, line {line}: {error}")

    @contextmanager
    def at(self, path: Path, line: int) -> Iterator[None]:
        """Add the ``ValueError`` that ends the block, if any, as an error in a line."""
        try:
            yield
        except ValueError as error:
            self.add(path, line, error)

    def check(self) -> None:
        """Raise if there is an error.

        Raises:
            ValueError: the first errors, with file and line, and the number of further ones.
        """
        if self._errors:
            num_hidden = len(self._errors) - _MAX_SHOWN_ERRORS
            more = [f"and {num_hidden} more"] if num_hidden > 0 else []
            raise ValueError("\n".join(self._errors[:_MAX_SHOWN_ERRORS] + more))


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines of a text file that are not empty, stripped, with their numbers from 1.

    Raises:
        ValueError: the file cannot be read, or is empty.
    """
    lines = [(number, line.strip()) for number, line in enumerate(_read_text(path).splitlines(), start=1)]
    filled = [(number, line) for number, line in lines if line]
    if not filled:
        raise ValueError(f"{path}, line 1: the file is empty")
    return filled


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a CSV file: its header, and the stripped fields of each row that is not empty with its line from 1.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, [field.strip() for field in row]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a CSV list: {error}") from error
    return header, [(line, row) for line, row in rows if any(row)]


def named_fields(header: Sequence[str], row: Sequence[str]) -> dict[str, str]:
    """Return the fields of a row of a CSV file by their columns.

    Raises:
        ValueError: the row has more or fewer fields than the header.
    """
    if len(row) != len(header):
        raise ValueError(f"{len(row)} fields, the header has {len(header)}")
    return dict(zip(header, row, strict=True))


def json_entries(path: Path) -> Iterator[tuple[int, Any]]:
    """Read a JSON list; yield each entry with the number of the line where it begins.

    Raises:
        ValueError: the file cannot be read or is not a JSON list; the message names file and line.
    """
    text = _read_text(path)
    if not text.lstrip().startswith("["):
        raise ValueError(f"{path}, line 1: not a JSON list")
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error

    # A second pass finds where each entry begins: `json` keeps no positions.
    decoder = json.JSONDecoder()
    end = text.index("[") + 1
    line = 1 + text.count("\n", 0, end)
    for entry in entries:
        match = _ENTRY_START.search(text, end)
        assert match is not None
        line += text.count("\n", end, match.start())
        yield line, entry
        _, end = decoder.raw_decode(text, match.start())
        line += text.count("\n", match.start(), end)


def index_videos(root: Path, key: Callable[[Path], str]) -> tuple[dict[str, list[str]], list[str]]:
    """Find the videos below ``root``, by a key of their relative paths that several may share, and all other files."""
    videos: dict[str, list[str]] = {}
    others = []
    for path in walk(root):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            videos.setdefault(key(path), []).append(path.as_posix())
        else:
            others.append(path.as_posix())
    return videos, others


def class_and_stem(path: PurePath) -> str:
    """Return ``class/stem`` of a path, the key of data sets with class folders.

    The suffix is left out for copies in another container, and the case because UCF101 writes some names in two ways
    (``HandstandPushups/v_HandStandPushups_g01_c01.avi``).
    """
    return "/".join(path.with_suffix("").parts[-2:]).casefold()


def single_match(candidates: Sequence[str], wanted: str, root: Path) -> str:
    """Return the single candidate.

    Raises:
        ValueError: there is none, or more than one.
    """
    if not candidates:
        raise ValueError(f"no video {wanted!r} in {root}")
    if len(candidates) > 1:
        raise ValueError(f"{len(candidates)} videos match {wanted!r} in {root}: {', '.join(candidates[:3])}")
    return candidates[0]


def walk(root: Path) -> Iterator[Path]:
    """Yield all files below ``root`` relative to it, except hidden ones; links are followed, each folder once."""
    seen = {os.path.realpath(root)}
    for folder, folders, names in os.walk(root, followlinks=True):
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(folder, name))
            if not name.startswith((".", "__MACOSX")) and real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name).relative_to(root)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
