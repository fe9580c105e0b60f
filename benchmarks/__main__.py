"""Run the benchmarks, all of them or those that are named: `make bench`, or ``python -m benchmarks targets speed``.

Each runs in a process of its own and leaves its figures in ``reports/bench.json``.
"""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = ("speed", "targets", "assembly", "extraction", "ingest", "hf_speed", "serving")
"""Scripts that need nothing but the installed package. What takes the pipeline's results is run by hand."""


def main() -> None:
    """Run in turn; one that fails does not stop the others, and the status is 1 in the end."""
    chosen = sys.argv[1:] or BENCHMARKS
    failed = [name for name in chosen if subprocess.call([sys.executable, "-m", f"benchmarks.{name}"])]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
