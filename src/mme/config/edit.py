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

from mme.config.base import faults
from mme.config.names import moved_names
from mme.config.params import PHASES, Params, earlier_names
from mme.system.files import write_text

RUNTIME_PREFIX = "runtime."

Values = Mapping[str, Any]
"""Values by their dotted names, such as ``pretrain.lr``."""


def with_values(params: Params, values: Values) -> Params:
    """Return ``params`` with some values replaced, checked again.

    Raises:
        ValueError: a value is out of range or does not fit the others.
    """
    raw: dict[str, Any] = params.model_dump()
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (raw[section] if section else raw)[key] = value
        if section == "optimiser":
            for phase in PHASES:
                raw[phase][key] = value
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"{dict(values)}: {faults(error)}") from error


def write_values(path: Path, values: Values, *, write: bool) -> str:
    """Set parameters by their dotted names.

    Args:
        path: ``params.yaml``.
        values: new values.
        write: False to compute the difference alone.

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
        moved = earlier_names(yaml.safe_load(after), error)
        if moved:
            raise ValueError(f"{path}: has names of an earlier version: {moved}") from error
        raise ValueError(f"{path}: with these values it would not be valid: {faults(error)}") from error
    if write and after != before:
        write_text(path, after)
    lines = before.splitlines(keepends=True), after.splitlines(keepends=True)
    return "".join(difflib.unified_diff(*lines, fromfile=str(path), tofile=str(path)))


def replaced(text: str, values: Values, path: Path) -> str:
    """Return YAML with new values of some keys; a value that is equal keeps its form.

    Keys of ``runtime`` may be missing: they are added at the top of the section.

    Raises:
        ValueError: any other key is not in the file; the message names the keys of an earlier version, if there are.
    """
    present: Any = yaml.safe_load(text)
    root = yaml.compose(text)
    spans = []
    added = {}
    for name, value in values.items():
        node, now = root, present
        for key in name.split("."):
            children = node.value if isinstance(node, yaml.MappingNode) else []
            matches = [child for label, child in children if label.value == key]
            if not matches:
                node = None
                break
            node, now = matches[0], now[key]
        if node is None and name.startswith(RUNTIME_PREFIX):
            added[name.removeprefix(RUNTIME_PREFIX)] = value
        elif node is None:
            raise ValueError(f"{path}: {_missing(name, present)}")
        elif now != value:
            spans.append((node.start_mark.index, node.end_mark.index, _written(value)))
    for begin, end, new in sorted(spans, reverse=True):
        text = text[:begin] + new + text[end:]
    return _with_runtime(text, added) if added else text


def _missing(name: str, present: Any) -> str:
    try:
        Params.model_validate(present)
    except ValidationError as error:
        moved = earlier_names(present, error)
        if moved:
            return f"has names of an earlier version: {moved}"
    moved = moved_names([name])
    return f"has no {name}" + (f"; {moved}" if moved else "")


def _with_runtime(text: str, added: Values) -> str:
    """Add keys to the section ``runtime``, which is appended if it is missing."""
    lines = text.splitlines(keepends=True)
    heads = [number for number, line in enumerate(lines) if line.startswith("runtime:")]
    if not heads:
        heads = [len(lines) + 1]
        lines += ["\n", "runtime:\n"]
    new = [f"  {key}: {_written(value)}\n" for key, value in added.items()]
    return "".join([*lines[: heads[0] + 1], *new, *lines[heads[0] + 1 :]])


def _written(value: Any) -> str:
    """Return a value in YAML on one line; JSON would not do, since YAML reads its ``1e-05`` as text."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return str(text).removesuffix("...\n").strip()
