"""The videos of a source before any of them is opened, and errors in the lines of its lists."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from mme.config import Split
from mme.ingest.frame_folder import frame_sequence, is_picture
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
    **dict.fromkeys(("pretraining", "unlabeled", "unlabelled"), "pretrain"),
    **dict.fromkeys(("training", "trainset"), "train"),
    **dict.fromkeys(("validation", "validate", "valid", "valset"), "val"),
    **dict.fromkeys(("testing", "testset"), "test"),
}
"""Splits by the names that lists and folders give them, in any case."""

_WORDS_BESIDE_SPLIT = frozenset({
    "avi", "clip", "clips", "data", "dataset", "frame", "frames", "hmdb", "image", "images", "img", "jester", "jpg",
    "jpgs", "k", "kinetics", "mini", "mp", "p", "px", "rawframe", "rawframes", "resized", "rgb", "set", "small",
    "something", "split", "ssv", "sthv", "tiny", "ucf", "v", "video", "videos",
})  # fmt: skip
"""Words in names such as ``videos_train``, ``rawframes_val``, ``train_256`` and ``k400-test-set``."""

_SYSTEM_FOLDERS = frozenset({
    "#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "__macosx", "__pycache__",
    "lost+found", "recycler", "system volume information",
})  # fmt: skip
"""Folders that operating systems and network drives put beside one's own."""

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
        frames_fps: frames per second of a folder of numbered pictures; None is a file.
    """

    path: str
    label: str | None = None
    split: Split | None = None
    group: str | None = None
    span_s: tuple[float, float] | None = None
    frames_fps: float | None = None

    @property
    def name(self) -> str:
        """Unique name in the source: the path, for a clip with a W3C media fragment, ``a.mp4#t=2,4.5``."""
        return self.path if self.span_s is None else f"{self.path}#t={self.span_s[0]:.12g},{self.span_s[1]:.12g}"


@dataclass(frozen=True)
class Listing:
    """Files of a source.

    Attributes:
        files: videos, sorted by name.
        ignored: what is no video by its name, and folders that are left out, with a slash at their end.
        missing: listed videos that do not exist, in a data set where that is usual.
        unused: existing videos that the lists leave out.
        splits_training: True if files without a split are training videos, some of which become validation.
        broken: links to what does not exist, with their targets.
        warnings: sentences about what may be other than it was meant.
    """

    files: list[SourceFile]
    ignored: list[str]
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    splits_training: bool = False
    broken: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


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

    Fields are separated by what occurs most in the header: commas, the semicolons of a spreadsheet in countries with
    decimal commas, or tabs. UTF-16 with its mark, as spreadsheets write Unicode, is read too.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with path.open("rb") as binary:
            head = binary.read(4096)
        is_utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if b"\0" in head and not is_utf16:
            raise ValueError(f"{path}: is no text, as a workbook is none; save it as CSV in UTF-8")
        with path.open(newline="", encoding="utf-16" if is_utf16 else "utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count))
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, [field.strip() for field in row]) for row in reader]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8; save it so (iconv -f latin1 -t utf8): {error}") from error
    except (OSError, csv.Error) as error:
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


@dataclass(frozen=True)
class Tree:
    """What lies below a folder, relative to it and with forward slashes, sorted by folder and name.

    Attributes:
        videos: files with the suffix of a video, and links with one whose target is gone.
        frame_folders: folders of numbered pictures.
        others: other files, hidden ones, folders of the operating system with a slash at their end, links that lead
            back to a folder above them, and pictures beside frames as ``PREFIX*SUFFIX``.
        broken: links to what does not exist, with their targets.
    """

    videos: list[PurePath] = field(default_factory=list)
    frame_folders: list[PurePath] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def scan(root: Path) -> Tree:
    """Find everything below ``root``; links are followed, except those that lead back to a folder above them.

    Raises:
        ValueError: a folder cannot be read.
    """
    tree = Tree()
    folders = [(PurePath(), os.path.realpath(root))]
    while folders:
        folder, real = folders.pop()
        subfolders, files = _scan_folder(root, folder, real, tree)
        folders += reversed(subfolders)
        videos: list[str] = []
        others: list[str] = []
        for name in files:
            (videos if _has_video_suffix(name) else others).append(name)
        tree.videos.extend(folder / name for name in videos)
        if folder.parts and not videos and not subfolders and (frames := set(frame_sequence(others))):
            tree.frame_folders.append(folder)
            others = _shown_beside_frames(others, frames)
        tree.others.extend((folder / name).as_posix() for name in others)
    return tree


def _has_video_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _scan_folder(root: Path, folder: PurePath, real: str, tree: Tree) -> tuple[list[tuple[PurePath, str]], list[str]]:
    """Return the folders in a folder, with their real paths, and the files; what is neither goes into ``tree``."""
    subfolders, files = [], []
    for entry in _sorted_entries(root, folder):
        if entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
            files.append(entry.name)
            continue
        path, is_folder = folder / entry.name, _is_folder(entry)
        if entry.name.startswith(".") or (is_folder and entry.name.casefold() in _SYSTEM_FOLDERS):
            tree.others.append(path.as_posix() + "/" * is_folder)
        elif is_folder:
            target = os.path.realpath(entry) if entry.is_symlink() else os.path.join(real, entry.name)
            if os.path.join(real, "").startswith(os.path.join(target, "")):
                tree.others.append(path.as_posix())
            else:
                subfolders.append((path, target))
        elif os.path.isfile(entry):
            files.append(entry.name)
        elif entry.is_symlink() and not os.path.exists(entry):
            tree.broken.append(f"{path.as_posix()} -> {os.readlink(entry)}")
            if _has_video_suffix(entry.name):
                files.append(entry.name)
        else:
            tree.others.append(path.as_posix())  # pipes and devices: opening one may never end
    return subfolders, files


def _sorted_entries(root: Path, folder: PurePath) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root / folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(
            f"{root / folder}: the folder cannot be read ({error.strerror}); make it readable or take it out of {root}"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry))


def _shown_beside_frames(names: Sequence[str], frames: Collection[str]) -> list[str]:
    """Return what is not a frame; numbered pictures of a kind, such as those of optical flow, under one name."""
    rest = [name for name in names if name not in frames]
    return sorted({re.sub(r"\d+(?=\.[^.]+$)", "*", name) if is_picture(name) else name for name in rest})


def index_videos(root: Path, key: Callable[[PurePath], str], frames: bool = False) -> tuple[dict[str, list[str]], Tree]:
    """Find the videos below ``root``, by a key of their relative paths that several may share, and all else.

    Args:
        root: folder of the data set.
        key: of a relative path.
        frames: find folders of numbered pictures too, where no video has their key.

    Raises:
        ValueError: a folder cannot be read.
    """
    tree = scan(root)
    videos: dict[str, list[str]] = {}
    for path in tree.videos:
        videos.setdefault(key(path), []).append(path.as_posix())
    found: dict[str, list[str]] = {}
    for path in tree.frame_folders if frames else ():
        found.setdefault(key(path), []).append(path.as_posix())
    return {**found, **videos}, tree


def class_and_stem(path: PurePath) -> str:
    """Return ``class/stem`` of a path, the key of data sets with class folders.

    The suffix is left out for copies in another container or as frames, and the case because UCF101 writes some names
    in two ways (``HandstandPushups/v_HandStandPushups_g01_c01.avi``).
    """
    return unicodedata.normalize("NFC", f"{path.parent.name}/{stem_of(path)}").casefold()


def stem_of(path: PurePath) -> str:
    """Return the name of a video or of a folder of frames, less the suffix of a video."""
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name


def split_of_folder(name: str) -> Split | None:
    """Return the split that a folder's name means, such as ``Train``, ``videos_val`` or ``test_256``, or None."""
    words = [word for word in re.findall(r"[^\W\d_]+", name.casefold()) if word not in _WORDS_BESIDE_SPLIT]
    return SPLIT_OF_NAME.get(words[0]) if len(words) == 1 else None


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


def register_video(
    video_id: str, place: str, listed: dict[str, str], videos: Mapping[str, Sequence[str]], wanted: str, root: Path
) -> str:
    """Return the path of the single video of an id, and note the place in a list that names it.

    Args:
        video_id: of the video.
        place: words for the place.
        listed: places of the ids so far, which are extended.
        videos: paths by id.
        wanted: words for the video.
        root: folder of the paths.

    Raises:
        ValueError: the id is listed already, or it has no video, or several.
    """
    if video_id in listed:
        raise ValueError(f"id {video_id!r} is already in {listed[video_id]}")
    listed[video_id] = place
    return single_match(videos.get(video_id, []), wanted, root)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
