"""Errors that end a command or a stage with one line instead of a traceback.

    ValueError           bad input: parameters, a list, a manifest, a model folder
    ├── VideoError       a video file cannot be used (`mme.video.containers`)
    ├── KeysError        weights do not fit a model (`mme.models.bridges`)
    └── NonFiniteError   the loss or its gradient is not finite (`mme.training.loop.module`)
    RuntimeError         a worker process failed
    OSError              the file system or the network refused

An OSError is always expected. The other kinds are expected if this project raised them: their messages name file and
value. A ValueError or RuntimeError of a library (shapes that do not fit, a number that cannot be parsed) is a bug, and
its traceback is shown.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TRACEBACK_VARIABLE = "MME_TRACEBACK"
"""Environment variable that brings tracebacks of expected errors back, unless it is empty or 0."""

_PACKAGE = Path(__file__).parents[1]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with status 1 and the message of an expected error; let every other error pass."""
    try:
        yield
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE, "0") not in {"", "0"} or not is_expected(error):
            raise
        print(_message(error), file=sys.stderr)
        raise SystemExit(1) from error


def _message(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"{text}: make room, then run the same command again"
    return text


def is_expected(error: Exception) -> bool:
    """Return whether the message of an error says enough, because this project or the system wrote it."""
    if isinstance(error, OSError) or type(error).__module__.startswith(f"{_PACKAGE.name}."):
        return True
    if not isinstance(error, ValueError | RuntimeError):
        return False
    [frame] = traceback.extract_tb(error.__traceback__, limit=-1) or [None]
    return frame is not None and Path(frame.filename).is_relative_to(_PACKAGE) and _is_raised_at(frame)


def _is_raised_at(frame: traceback.FrameSummary) -> bool:
    return (frame.line or "").startswith("raise ")
