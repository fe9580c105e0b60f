"""What a source holds before any video of it is opened, and the wrong lines of its lists."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from mme.config import Split

VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})  # fmt: skip

SPLITS: dict[str, Split] = {
    **{name: name for name in get_args(Split)},
    **dict.fromkeys(("validation", "validate", "valid"), "val"),
}
"""Names of splits in lists and folders."""

_MAX_ERRORS = 20


@dataclass(frozen=True)
class SourceFile:
    """A file that claims to be a video, or a part of one.

    Attributes:
        path: relative to the source's root, with forward slashes.
        label: class, or None.
        split: as given by the source, or None.
        group: files of one group belong into one split; None is a group of its own.
        span_s: first and last second of the part, or None for all of the file; the last is not in it.
    """

    path: str
    label: str | None = None
    split: Split | None = None
    group: str | None = None
    span_s: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """Unique in its source: the path, and for a part its seconds as a media fragment (W3C), ``a.mp4#t=2,4.5``."""
        return self.path if self.span_s is None else f"{self.path}#t={self.span_s[0]:.12g},{self.span_s[1]:.12g}"


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        files: videos in order of their names.
        ignored: files that are no videos by their names.
        missing: videos that its lists name and that are not there, where that is usual.
        unused: videos that are there and that its lists leave out.
        splits_training: whether files without a split are its training videos, of which some become validation.
    """

    files: list[SourceFile]
    ignored: list[str]
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    splits_training: bool = False


class LineErrors:
    """Collects what is wrong with the lines of lists, so that all of it is said at once."""

    def __init__(self) -> None:
        self._errors: list[str] = []

    def add(self, path: Path, line: int, what: object) -> None:
        """Note a fault of one line, counted from 1."""
        self._errors.append(f"{path}, line {line}: {what}")

    def check(self) -> None:
        """Refuse the lists if any line was wrong.

        Raises:
            ValueError: the first wrong lines, with file and number, and how many more there are.
        """
        if self._errors:
            more = [f"and {len(self._errors) - _MAX_ERRORS} more"] if len(self._errors) > _MAX_ERRORS else []
            raise ValueError("\n".join(self._errors[:_MAX_ERRORS] + more))


def text_lines(path: Path) -> list[tuple[int, str]]:
    """Lines of a text file that hold something, stripped, with their numbers from 1.

    Raises:
        ValueError: it cannot be read, or holds nothing.
    """
    lines = [(number, line.strip()) for number, line in enumerate(_text(path).splitlines(), start=1)]
    filled = [(number, line) for number, line in lines if line]
    if not filled:
        raise ValueError(f"{path}, line 1: holds nothing")
    return filled


def json_entries(path: Path) -> Iterator[tuple[int, Any]]:
    """Entries of a JSON list, each with the number of the line where it begins.

    Raises:
        ValueError: it cannot be read, or is no JSON list; the message names file and line.
    """
    text, decoder, line, seen = _text(path), json.JSONDecoder(), 1, 0
    position = len(text) - len(text.lstrip())
    if text[position : position + 1] != "[":
        raise ValueError(f"{path}, line 1: is no JSON list")
    mark = "["
    while mark in {"[", ","}:
        position = _past_space(text, position + 1)
        if mark == "[" and text[position : position + 1] == "]":
            return
        line, seen = line + text.count("\n", seen, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
        yield line, value
        position = _past_space(text, position)
        mark = text[position : position + 1]
    if mark != "]":
        number = text.count("\n", 0, position) + 1
        raise ValueError(f"{path}, line {number}: {'the list does not end' if not mark else f'unexpected {mark!r}'}")


def index_videos(root: Path, key: Callable[[Path], str]) -> tuple[dict[str, list[str]], list[str]]:
    """Videos below ``root`` by a key of their relative path, several of which may have one, and all other files."""
    videos: dict[str, list[str]] = {}
    others = []
    for path in walk(root):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            videos.setdefault(key(path), []).append(path.as_posix())
        else:
            others.append(path.as_posix())
    return videos, others


def the_one(candidates: Sequence[str], wanted: str, root: Path) -> str:
    """The only candidate.

    Raises:
        ValueError: there is none, or more than one.
    """
    if len(candidates) != 1:
        found = f"{len(candidates)} videos could be" if candidates else "no video"
        raise ValueError(f"{found} {wanted!r} in {root}" + (f": {', '.join(candidates[:3])}" if candidates else ""))
    return candidates[0]


def walk(root: Path) -> Iterator[Path]:
    """All files below ``root`` relative to it, hidden ones left out; links are followed, each folder is seen once."""
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


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _past_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position
