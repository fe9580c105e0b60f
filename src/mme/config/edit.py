"""Values of parameters by their dotted names, put into `Params` or into the text of ``params.yaml``.

In the text only the values' own characters change; comments and layout stay.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mme.config import Params
from mme.config.base import faults
from mme.system.files import write_text

Values = Mapping[str, Any]
"""Values by their dotted names, such as ``pretrain.lr``."""


def with_values(params: Params, values: Values) -> Params:
    """``params`` with some of them replaced, and checked again.

    Raises:
        ValueError: a value is out of range or does not fit the others.
    """
    raw: dict[str, Any] = params.model_dump()
    for name, value in values.items():
        section, _, key = name.partition(".")
        raw[section][key] = value
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"{dict(values)}: {faults(error)}") from error


def write_values(path: Path, values: Values, *, write: bool) -> str:
    """Set parameters by their dotted names.

    Args:
        path: ``params.yaml``.
        values: what to set.
        write: False = only tell what would change.

    Returns:
        The difference as a unified diff, empty if nothing changes.

    Raises:
        ValueError: a parameter is not in the file, or the result would not be valid.
    """
    before = path.read_text(encoding="utf-8")
    after = replaced(before, values, path)
    try:
        Params.model_validate(yaml.safe_load(after))
    except ValidationError as error:
        raise ValueError(f"{path}: with these values it would not be valid: {faults(error)}") from error
    if write and after != before:
        write_text(path, after)
    lines = before.splitlines(keepends=True), after.splitlines(keepends=True)
    return "".join(difflib.unified_diff(*lines, fromfile=str(path), tofile=str(path)))


def replaced(text: str, values: Values, path: Path) -> str:
    """YAML with the values of some keys replaced; a value that is equal keeps its form.

    Raises:
        ValueError: a key is not in the file.
    """
    present: Any = yaml.safe_load(text)
    root = yaml.compose(text)
    spans = []
    for name, value in values.items():
        node, now = root, present
        for key in name.split("."):
            children = node.value if isinstance(node, yaml.MappingNode) else []
            matches = [child for label, child in children if label.value == key]
            if not matches:
                raise ValueError(f"{path}: has no {name}")
            node, now = matches[0], now[key]
        assert node is not None
        if now != value:
            spans.append((node.start_mark.index, node.end_mark.index, _written(value)))
    for begin, end, new in sorted(spans, reverse=True):
        text = text[:begin] + new + text[end:]
    return text


def _written(value: Any) -> str:
    """A value in YAML on one line; unlike JSON's, its numbers are YAML's: ``1e-05`` would be read as text."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return str(text).removesuffix("...\n").strip()
