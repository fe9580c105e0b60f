"""Size of the code base: entries, folders, lines, parameters, dependencies, names, comments, docstrings.

Run by ``python -m benchmarks.structure [ROOT ...]``: one column per checkout, from its ``src/mme`` and ``serving``.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

RIDDLE = re.compile(r"(What|Where|Which|Who|How|Whether|Of)\b")
"""First words of docstrings that are noun clauses instead of imperatives or nouns."""

NUMERIC = ("motion", "targets", "models")
"""Packages whose numeric code needs a comment per step."""

OWN_SECTIONS = ("runtime", "tracking")
"""Sections of ``params.yaml`` that decide no result."""


def sources(root: Path) -> list[Path]:
    """Return the Python files of the library and the service."""
    return [*sorted((root / "src/mme").rglob("*.py")), *sorted((root / "serving").rglob("*.py"))]


def num_lines(paths: list[Path]) -> int:
    """Count the lines of files."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def num_leaves(value: Any) -> int:
    """Count the values of a nested mapping; a list or an empty mapping is one value."""
    if isinstance(value, dict):
        return sum(map(num_leaves, value.values())) if value else 1
    return 1


def num_parameters(root: Path) -> int:
    """Count the scientific values of ``params.yaml``."""
    sections = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    return sum(num_leaves(value) for name, value in sections.items() if name not in OWN_SECTIONS)


def num_code_dependencies(root: Path) -> int:
    """Count the files and folders of the package that stages of ``dvc.yaml`` depend on, each as often as named."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    return sum(dep.startswith("src/") for stage in stages for dep in stage.get("do", stage)["deps"])


def module_names(tree: ast.Module) -> Iterator[str]:
    """Yield the functions, classes and constants that a module defines at its top level."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def num_shared_names(paths: list[Path]) -> int:
    """Count the top-level names that more than one module defines."""
    counts: Counter[str] = Counter()
    for path in paths:
        counts.update(set(module_names(ast.parse(path.read_text(encoding="utf-8")))) - {"__all__"})
    return sum(count > 1 for count in counts.values())


def comments_per_100_lines(root: Path) -> float:
    """Return the comments per 100 lines of the numeric packages, those of tools (``noqa``, ``type:``) left out."""
    paths = [path for name in NUMERIC for path in sorted((root / "src/mme" / name).rglob("*.py"))]
    comments = 0
    for path in paths:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            if token.type == tokenize.COMMENT:
                comments += not re.match(r"#\s*(noqa|type:|fmt:)", token.string)
    return 100 * comments / max(1, num_lines(paths))


def num_riddles(paths: list[Path]) -> int:
    """Count docstrings, those of attributes and constants included, that begin with What, Where, Which, ..."""
    found = 0
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            body = getattr(node, "body", None)
            if not isinstance(body, list):
                continue
            for item in body:
                value = getattr(item, "value", None) if isinstance(item, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found += bool(RIDDLE.match(value.value.strip()))
    return found


def measurements(root: Path) -> dict[str, float]:
    """Return every count of one checkout by its name."""
    package, paths = root / "src/mme", sources(root)
    folders = Counter(path.parent for path in package.rglob("*.py"))
    entries = [path for path in package.iterdir() if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))]
    return {
        "entries at the top of src/mme": len(entries),
        "largest folder, modules": max(count for folder, count in folders.items() if folder != package),
        "lines of src and serving": num_lines(paths),
        "scientific parameters": num_parameters(root),
        "code dependencies in dvc.yaml": num_code_dependencies(root),
        "names defined in more than one module": num_shared_names(paths),
        "comments per 100 lines of motion, targets, models": comments_per_100_lines(root),
        "docstrings that begin with What, Where, Which, Who, How, Whether, Of": num_riddles(paths),
    }


def main() -> None:
    """Print the table, one column per checkout."""
    roots = [Path(name) for name in sys.argv[1:]] or [Path()]
    columns = [measurements(root) for root in roots]
    table = Table("count", *map(str, roots))
    for name in columns[0]:
        table.add_row(
            name, *(f"{column[name]:.4g}" if column[name] < 1000 else f"{column[name]:,.0f}" for column in columns)
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
