"""A folder of videos below ``[SPLIT/]CLASS/``."""

from __future__ import annotations

import re

from mme.config import IngestParams, Split
from mme.ingest.listing import SPLIT_OF_NAME, VIDEO_SUFFIXES, Listing, SourceFile, walk


def list_folder(params: IngestParams) -> Listing:
    """List all videos below the root; those in no class folder, and all below ``pretrain/``, have no label.

    Raises:
        ValueError: splits and classes are mixed, a video lacks its class folder, or ``group_pattern`` does not match.
    """
    root, pattern = params.root, params.group_pattern
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    named_splits = [name for name in folders if name in SPLIT_OF_NAME and name != "pretrain"]
    classes = [name for name in folders if name not in SPLIT_OF_NAME]
    if len(named_splits) > 1 and classes:
        raise ValueError(f"{root}: has splits ({', '.join(named_splits)}) beside classes ({', '.join(classes)})")
    given_splits = bool(named_splits) and not classes

    files, ignored, groupless = [], [], []
    for path in walk(root):
        name = path.as_posix()
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            ignored.append(name)
            continue

        match = re.search(pattern, path.name) if pattern is not None else None
        group = match[1] if match else None
        if pattern is not None and group is None:
            groupless.append(name)

        *parents, _ = path.parts
        split: Split | None = None
        if parents and (parents[0] == "pretrain" or given_splits):
            split = SPLIT_OF_NAME[parents.pop(0)]
        label = parents[0] if parents and split != "pretrain" else None
        if label is None and split not in {None, "pretrain"}:
            raise ValueError(f"{root / path}: a video of split {split!r} must be in a class folder")
        files.append(SourceFile(name, label, split, group))

    if groupless:
        raise ValueError(
            f"{root}: ingest.group_pattern {pattern!r} does not match {len(groupless)} of {len(files)} names,"
            f" such as {groupless[0]!r}"
        )
    return Listing(files, ignored)
