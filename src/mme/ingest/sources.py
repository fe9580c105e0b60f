"""Sources of videos: a list, a folder of class folders, or a public data set."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from mme.config import IngestParams
from mme.config.data import FEEDBACK
from mme.ingest.layouts.csv_list import list_csv
from mme.ingest.layouts.feedback import list_feedback
from mme.ingest.layouts.folder import list_folder
from mme.ingest.layouts.hmdb51 import list_hmdb51
from mme.ingest.layouts.jester import list_jester, list_something_v1
from mme.ingest.layouts.kinetics import list_kinetics
from mme.ingest.layouts.something import list_something_v2
from mme.ingest.layouts.ucf101 import list_ucf101
from mme.ingest.listing import Listing, SourceFile
from mme.system.names import shown_name

_MAX_SHOWN = 5

LAYOUTS: dict[str, Callable[[IngestParams], Listing]] = {
    "motion-primitives": list_csv,
    "csv": list_csv,
    "feedback": list_feedback,
    "folder": list_folder,
    "ucf101": list_ucf101,
    "hmdb51": list_hmdb51,
    "jester": list_jester,
    "something-something-v1": list_something_v1,
    "something-something-v2": list_something_v2,
    "kinetics": list_kinetics,
}
"""Functions that list the videos of a source, by the values of ``ingest.source``."""


def list_source(params: IngestParams) -> Listing:
    """List the videos of the source that ``params`` names; no video is opened.

    Names of classes are in Unicode's form NFC, with single blanks; names that differ by case alone are one class.

    Raises:
        ValueError: the source is missing, has no video or a single class, or its list is wrong; the message names file
            and line.
    """
    if not params.root.is_dir():
        raise ValueError(f"{params.root}: not a folder (ingest.root)")
    listing = LAYOUTS[params.source](params)
    readable = [file for file in listing.files if _is_utf8(file.path)]
    unreadable = [file for file in listing.files if not _is_utf8(file.path)]
    warnings = list(listing.warnings)
    if unreadable:
        example = shown_name(unreadable[0].path)
        warnings.append(
            f"{len(unreadable)} videos are left out, such as {example}: their names are not UTF-8;"
            " rename them (convmv -f latin1 -t utf8)"
        )
    if not readable:
        others = f"{len(listing.ignored)} other files"
        for names, what in ((listing.missing, "are missing"), (listing.broken, "links lead nowhere")):
            others += f", {len(names)} {what}" if names else ""
        others += f", {len(unreadable)} videos whose names are not UTF-8" if unreadable else ""
        raise ValueError(f"{params.root}: no video (ingest.root); {others}")

    files = [_with_rate(file, params) for file in readable]
    files, merged = _unify_labels(files)
    if params.source != FEEDBACK:  # what callers say may be of one class; it is added to other data
        _check_classes(params.root, files)
    return replace(
        listing,
        files=sorted(files, key=lambda file: (file.path, file.span_s or ())),
        ignored=sorted(map(shown_name, listing.ignored)),
        missing=sorted(map(shown_name, listing.missing)),
        unused=sorted(map(shown_name, listing.unused)),
        broken=sorted(map(shown_name, listing.broken)),
        warnings=warnings + merged,
    )


def _with_rate(file: SourceFile, params: IngestParams) -> SourceFile:
    """Give a folder of frames the rate of ``params``, unless its list gives one."""
    if params.frames_fps is None or file.frames_fps is not None or not (params.root / file.path).is_dir():
        return file
    return replace(file, frames_fps=params.frames_fps)


def _unify_labels(files: Sequence[SourceFile]) -> tuple[list[SourceFile], list[str]]:
    """Give one class one name; return warnings about names that differ by more than their Unicode form."""
    tidy = {file.label: _tidy(file.label) for file in files if file.label is not None}
    counts = Counter(tidy[file.label] for file in files if file.label is not None)
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        spellings[name.casefold()].append(name)
    warnings = [
        f"the classes {', '.join(map(repr, names))} differ by case alone and are taken for one, {names[0]!r}"
        for names in spellings.values()
        if len(names) > 1
    ]
    blanks = sorted({label for label in tidy if unicodedata.normalize("NFC", label) != tidy[label]})
    warnings += [f"the class {label!r} is called {tidy[label]!r}: blanks count once" for label in blanks]
    labels = {label: spellings[name.casefold()][0] for label, name in tidy.items()}
    return [file if file.label is None else replace(file, label=labels[file.label]) for file in files], warnings


def _tidy(label: str) -> str:
    return " ".join(unicodedata.normalize("NFC", label).split())


def _check_classes(root: Path, files: Sequence[SourceFile]) -> None:
    """Check that there are several classes, or none."""
    labelled = [file for file in files if file.label is not None and file.split != "pretrain"]
    if len({file.label for file in labelled}) != 1:
        return
    folders = sorted({PurePath(file.path).parent for file in labelled})
    common = PurePath(os.path.commonpath(folders))
    below = sorted({folder.relative_to(common).parts[0] for folder in folders if folder != common})
    hint = ""
    if len(below) > 1:
        shown = ", ".join(below[:_MAX_SHOWN]) + ", ..." * (len(below) > _MAX_SHOWN)
        hint = f"; if its folders ({shown}) are the classes, set ingest.root={root / common}"
    raise ValueError(
        f"{root}: all {len(labelled)} labelled videos are of one class, {labelled[0].label!r}: nothing to tell apart"
        f"{hint}; videos without labels belong into a folder 'pretrain'"
    )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
