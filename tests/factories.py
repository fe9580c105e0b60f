"""Rows of a manifest for tests without videos."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from mme.manifest import Video

_ROW = Video(
    id="",
    path="",
    sha256="",
    label="left",
    split="train",
    group=None,
    num_frames=32,
    fps=16.0,
    width=64,
    height=64,
    status="ok",
    reason=None,
    source_path="",
    source_fps=16.0,
)


def row(video_id: str, split: str, **changes: Any) -> Video:
    """Return a row whose file would be ``ID.mp4`` with the id as content."""
    content = hashlib.sha256(video_id.encode()).hexdigest()
    named = replace(
        _ROW, id=video_id, split=split, path=f"{video_id}.mp4", sha256=content, source_path=f"{video_id}.mp4"
    )
    return replace(named, **changes)
