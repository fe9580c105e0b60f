"""The exercises of ``docs/extending.md``, executed as they are written on a copy of the source code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXERCISES = dict(
    re.findall(
        r"^## (.+?)\n(.*?)(?=^## |\Z)", (ROOT / "docs/extending.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
)
SIZES = {"A new target": (1, 2), "A new data set layout": (1, 5)}
"""Files and lines that each exercise adds, beside the checks."""


def blocks(exercise: str) -> Iterator[tuple[str, str, str]]:
    """Language, title and content of each code block with a title."""
    yield from re.findall(r'^```(\w+) title="(.+?)"\n(.*?)^```$', exercise, re.MULTILINE | re.DOTALL)


def patched(source: str, diff: str, path: str) -> str:
    """Apply a block of context (a space), removed (-) and added (+) lines that fits one place of a source file."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    assert source.count(before) == 1, f"{path} has the context of this block {source.count(before)} times:\n{diff}"
    return source.replace(before, after)


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_works_as_it_is_written(name: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / file, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    num_checks = num_files = num_lines = 0
    for language, title, content in blocks(EXERCISES[name]):
        path = tmp_path / title
        if title == "check":
            num_checks += 1
            program = tmp_path / "check.py"
            program.write_text(content, encoding="utf-8")
            command = [sys.executable, str(program)]
            answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert answer.returncode == 0, answer.stderr
        elif language == "diff":
            num_lines += sum(line.startswith("+") for line in content.splitlines())
            path.write_text(patched(path.read_text(encoding="utf-8"), content, title), encoding="utf-8")
        else:
            num_files += 1
            assert not path.exists(), f"{title} exists already"
            path.write_text(content, encoding="utf-8")
    assert num_checks >= 1
    assert (num_files, num_lines) == SIZES[name]
