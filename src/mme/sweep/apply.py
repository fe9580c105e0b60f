"""Writing values into ``params.yaml``: only the values' own characters change, comments and layout stay."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml

from mme.config import Params, load_params
from mme.files import atomic_path
from mme.sweep.space import Values, with_values
from mme.sweep_params import Scalar


def apply(path: Path, values: Values, *, write: bool) -> str:
    """Set parameters by their dotted names.

    Args:
        path: ``params.yaml``.
        values: what to set.
        write: False = only tell what would change.

    Returns:
        The difference as a unified diff, empty if nothing changes.

    Raises:
        ValueError: a parameter is not in the file, or the result would be none that is valid.
    """
    before = path.read_text(encoding="utf-8")
    after = replaced(before, values, path)
    wanted = with_values(load_params(path), values)
    if Params.model_validate(yaml.safe_load(after)) != wanted:
        raise ValueError(f"{path}: {dict(values)} cannot be written in place of what stands there")
    if write:
        with atomic_path(path) as temporary:
            temporary.write_text(after, encoding="utf-8")
    lines = before.splitlines(keepends=True), after.splitlines(keepends=True)
    return "".join(difflib.unified_diff(*lines, fromfile=str(path), tofile=str(path)))


def _written(value: Scalar) -> str:
    return str(yaml.safe_dump(value)).removesuffix("...\n").strip()


def replaced(text: str, values: Values, path: Path) -> str:
    """YAML with the values of some keys replaced."""
    spans = []
    for name, value in values.items():
        node = yaml.compose(text)
        for key in name.split("."):
            found = node.value if isinstance(node, yaml.MappingNode) else []
            matches = [child for label, child in found if label.value == key]
            if not matches:
                raise ValueError(f"{path}: has no {name}")
            node = matches[0]
        assert node is not None
        spans.append((node.start_mark.index, node.end_mark.index, _written(value)))
    for begin, end, new in sorted(spans, reverse=True):
        text = text[:begin] + new + text[end:]
    return text
