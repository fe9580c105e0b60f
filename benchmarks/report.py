"""Report of the benchmarks: one section per benchmark in ``reports/bench.json``, and a table on the screen.

A section names the machine but no date: the same code on the same machine gives the same file up to noise.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mme.system.files import read_json, write_json

REPORT = Path("reports/bench.json")


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        what: name of the measurement.
        value: measured value.
        unit: unit of the value, such as ``ms``; for a ratio its denominator, such as ``x DIS``.
        at_most, at_least: target range, if there is one.
        of: input and conditions: what, how many, how.
    """

    what: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    of: str = ""

    @property
    def aim(self) -> str:
        """Describe the target range, empty if there is none."""
        parts = [("at most", self.at_most), ("at least", self.at_least)]
        return ", ".join(f"{name} {_short(value)}" for name, value in parts if value is not None)

    @property
    def missed(self) -> bool:
        """True if the value is outside the target range."""
        return (self.at_most is not None and self.value > self.at_most) or (
            self.at_least is not None and self.value < self.at_least
        )


def record(section: str, rows: Sequence[Row], path: Path = REPORT) -> None:
    """Replace the section of a benchmark in the report and print it.

    Args:
        section: name of the benchmark, such as ``targets`` or ``targets/assembly``.
        rows: measurements in the order of the table.
        path: the report; sections of other benchmarks are kept.
    """
    report = read_json(path) if path.is_file() else {}
    kept = [{name: value for name, value in asdict(row).items() if value not in (None, "")} for row in rows]
    report[section] = {"machine": machine(), "rows": kept}
    write_json(path, report)
    table = Table("what", "measured", "aim", "of", title=section, title_justify="left")
    for row in rows:
        style = "red" if row.missed else None
        table.add_row(row.what, f"{_short(row.value)} {row.unit}", row.aim, row.of, style=style)
    Console().print(table)


def machine() -> dict[str, str | int | float]:
    """Describe the machine: processor, cores, load, versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "opencv-python-headless", "torch")},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _short(value: float) -> str:
    """Format a value with three significant digits; whole numbers from a hundred on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
