"""A folder of videos, or of folders of frames, below ``[SPLIT/]CLASS/``."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePath

from mme.config import IngestParams, Split
from mme.ingest.listing import Listing, SourceFile, scan, split_of_folder

_MAX_SHOWN = 5


def list_folder(params: IngestParams) -> Listing:
    """List all videos below the root; those in no class folder, and all below ``pretrain/``, have no label.

    Folders of numbered pictures are videos if ``frames_fps`` is their rate.

    Raises:
        ValueError: splits and classes are mixed, a video lacks its class folder, ``group_pattern`` does not match,
            folders of pictures have no rate, or a folder cannot be read.
    """
    root, pattern = params.root, params.group_pattern
    tree = scan(root)
    paths, warnings = list(tree.videos), []
    if params.frames_fps is not None:
        paths = sorted([*paths, *tree.frame_folders])
    elif tree.frame_folders:
        what = f"{len(tree.frame_folders)} folders of pictures, such as {tree.frame_folders[0].as_posix()!r}"
        if not paths:
            raise ValueError(f"{root}: no video, but {what}; give their frames per second, ingest.frames_fps")
        warnings.append(f"{what}, are left out; to use them give their frames per second, ingest.frames_fps")
    splits = _split_folders(root, paths)

    files, groupless = [], []
    for path in paths:
        match = re.search(pattern, unicodedata.normalize("NFC", path.name)) if pattern is not None else None
        group = match[1] if match else None
        if pattern is not None and group is None:
            groupless.append(path.as_posix())

        *parents, _ = path.parts
        split = splits.get(parents[0]) if parents else None
        label = next(iter(parents[split is not None :]), None)
        if split == "pretrain":
            label = None
        if label is None and split not in {None, "pretrain"}:
            raise ValueError(
                f"{root / path}: a video of split {split!r} must be in a class folder; videos without a label belong"
                " into 'pretrain'"
            )
        files.append(SourceFile(path.as_posix(), label, split, group))

    if groupless:
        raise ValueError(
            f"{root}: ingest.group_pattern {pattern!r} does not match {len(groupless)} of {len(files)} names,"
            f" such as {groupless[0]!r}"
        )
    return Listing(files, tree.others, broken=tree.broken, warnings=warnings)


def _split_folders(root: Path, paths: Iterable[PurePath]) -> dict[str, Split]:
    """Return the splits that folders of the root stand for.

    A single folder named like one is a class if others stand beside it and videos lie in it: a train is a vehicle.

    Raises:
        ValueError: some folders are splits and others are classes.
    """
    has_videos: dict[str, bool] = {}
    for path in paths:
        if len(path.parts) > 1:
            has_videos[path.parts[0]] = has_videos.get(path.parts[0], False) or len(path.parts) == 2
    found = {name: split_of_folder(name) for name in sorted(has_videos)}
    pretrain: dict[str, Split] = {name: split for name, split in found.items() if split == "pretrain"}
    splits: dict[str, Split] = {name: split for name, split in found.items() if split and split != "pretrain"}
    classes = [name for name, split in found.items() if split is None]
    if not classes:
        return pretrain | splits
    if len(splits) > 1 or (splits and not has_videos[next(iter(splits))]):
        raise ValueError(
            f"{root}: has splits ({', '.join(splits)}) beside classes ({', '.join(classes[:_MAX_SHOWN])}); move one"
            " kind elsewhere, rename it to train, val, test or pretrain, or write a list (ingest.source=csv)"
        )
    return pretrain
