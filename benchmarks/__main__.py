"""Run all benchmarks, or those that are named: `make bench`, or ``python -m benchmarks targets speed``.

Each runs in a process of its own and writes its section of ``reports/bench.json``.
"""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = ("speed", "targets", "assembly", "feed", "extraction", "form", "ingest", "hf_speed", "serving")
"""Benchmarks that need only the installed package. Those that need the pipeline's results are run by hand."""


def main() -> None:
    """Run benchmarks in turn; if one fails the others run, and the exit status is 1."""
    chosen = sys.argv[1:] or BENCHMARKS
    failed = [name for name in chosen if subprocess.call([sys.executable, "-m", f"benchmarks.{name}"])]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
