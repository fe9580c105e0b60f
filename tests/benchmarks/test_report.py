from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.report import Row, record
from mme.system.files import read_json


def test_sections_are_merged_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "reports" / "bench.json"
    record("first", [Row("old", 1.0, "ms")], path)
    record("second", [Row("kept", 2.0, "x DIS", at_most=3.0, of="a frame")], path)
    record("first", [Row("new", 1234.5, "ms")], path)
    report = read_json(path)
    assert report["first"]["rows"] == [{"what": "new", "value": 1234.5, "unit": "ms"}]
    assert report["second"]["rows"] == [
        {"what": "kept", "value": 2.0, "unit": "x DIS", "at_most": 3.0, "of": "a frame"}
    ]
    assert report["first"]["machine"]["cores"] >= 1
    shown = capsys.readouterr().out
    assert "1,234 ms" in shown
    assert "at most 3" in shown


def test_target_ranges() -> None:
    assert Row("", 2.5, "ms", at_most=2).missed
    assert not Row("", 2.0, "ms", at_most=2).missed
    assert Row("", 1.7, "x", at_least=1.8).missed
    assert not Row("", 1.7, "x").missed
    assert Row("", 0.0, "ms").aim == ""


def test_default_benchmarks_exist() -> None:
    assert all(importlib.util.find_spec(f"benchmarks.{name}") for name in BENCHMARKS)
