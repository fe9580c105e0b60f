from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.cases import Input, Outcome, faults_of, layout_of, made, write_clip

SCRIPT = '''"""Makes copies.

usage: python copies.py VIDEO FOLDER   -> a.mp4 b.avif
"""
import shutil, sys
for name in ("a.mp4", "b.avif"):
    shutil.copyfile(sys.argv[1], f"{sys.argv[2]}/{name}")
'''


def test_scripts_are_run_as_their_usage_says(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/copies.py").write_text(SCRIPT)
    (tmp_path / "scripts/common.py").write_text("raise SystemExit(1)")
    inputs = list(made(tmp_path / "scripts", tmp_path / "made", write_clip(tmp_path / "clip.mp4"), []))
    assert [(item.case, item.name, item.usable) for item in inputs] == [
        ("copies", "a.mp4", True),
        ("copies", "b.avif", False),
    ]


@pytest.mark.parametrize(
    ("outcome", "faults"),
    [
        (Outcome("ok", "200", True, True), []),
        (Outcome("ENDED", "200", None, True), ["stage ended"]),
        (Outcome("ok", "500", True, None), ["no answer"]),
        (Outcome("truncated", "200", False, True), ["disagree", "ingest refuses"]),
    ],
)
def test_faults(outcome: Outcome, faults: list[str]) -> None:
    assert faults_of(Input("case", "a.mp4", Path("a.mp4")), outcome) == faults


def test_orientation_is_read_from_the_picture() -> None:
    frame = np.full((64, 96, 3), 40, np.uint8)
    frame[:, :12] = 255
    frame[:16, 50:66] = (230, 40, 40)
    assert layout_of(frame) == "96 x 64, bar left, square top"
    assert layout_of(frame[::-1, ::-1]) == "96 x 64, bar right, square bottom"
    assert layout_of(np.rot90(frame)) == "64 x 96, bar bottom, square left"
