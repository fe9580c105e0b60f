"""The end of a worker process whose parent was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def end_with_parent(signal_number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to this process when its parent ends, in whatever way.

    A worker that waits for its next task holds both ends of the queue itself, and one that hangs reads nothing: neither
    would notice.

    Args:
        signal_number: SIGKILL, or one whose handler records that the work was interrupted.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("this process was not started by multiprocessing")

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal_number)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
