"""Named sets of parameters, each a YAML file here that says what it changes in ``params.yaml``."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mme.config import Params
from mme.files import atomic_path

BASED_ON = "based_on"
"""Key of a preset that names another one, whose values hold where it has none of its own."""

WHOLE = "datasets"
"""The section whose keys are names: it is replaced as a whole."""

Values = Mapping[str, Any]
"""Values by their dotted names, such as ``pretrain.lr``; that of `WHOLE` is the section itself."""


def names() -> list[str]:
    """The presets there are."""
    return sorted(path.name.removesuffix(".yaml") for path in files(__name__).iterdir() if path.name.endswith(".yaml"))


def described(name: str) -> str:
    """What the preset says of itself: its leading comment, as one line."""
    lines = _text(name).splitlines()
    return " ".join(line.removeprefix("# ") for line in lines[: next(i for i, x in enumerate(lines) if x[0] != "#")])


def values(name: str) -> dict[str, Any]:
    """What a preset sets, what it is based on included.

    Raises:
        ValueError: there is no such preset.
    """
    sections: dict[str, Any] = yaml.safe_load(_text(name))
    base = sections.pop(BASED_ON, None)
    return {**({} if base is None else values(base)), **dict(_flat(sections))}


def _text(name: str) -> str:
    if name not in names():
        raise ValueError(f"no preset {name!r}; there are {', '.join(names())}")
    return (files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")


def _flat(sections: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, content in sections.items():
        if section == WHOLE:
            yield section, content
        else:
            yield from ((f"{section}.{key}", value) for key, value in content.items())


def apply(name: str, path: Path, *, write: bool) -> str:
    """Write a preset's values into ``params.yaml``; comments and all other values stay.

    Args:
        name: of the preset.
        path: the file.
        write: False = only tell what would change.

    Returns:
        The difference as a unified diff, empty if nothing changes.

    Raises:
        ValueError: there is no such preset, a key is not in the file, or the result would not be valid.
    """
    before = path.read_text(encoding="utf-8")
    after = replaced(before, values(name), path)
    try:
        Params.model_validate(yaml.safe_load(after))
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}" for e in error.errors())
        raise ValueError(f"{path}: with the preset {name} it would not be valid: {found}") from error
    if write and after != before:
        with atomic_path(path) as temporary:
            temporary.write_text(after, encoding="utf-8")
    lines = before.splitlines(keepends=True), after.splitlines(keepends=True)
    return "".join(difflib.unified_diff(*lines, fromfile=str(path), tofile=str(path)))


def replaced(text: str, changes: Values, path: Path) -> str:
    """YAML with the values of some keys replaced; a value that is equal keeps its form.

    Raises:
        ValueError: a key is not in the file.
    """
    present: Any = yaml.safe_load(text)
    root = yaml.compose(text)
    spans = []
    for name, value in changes.items():
        node, now = root, present
        for key in name.split("."):
            children = node.value if isinstance(node, yaml.MappingNode) else []
            matches = [child for label, child in children if label.value == key]
            if not matches:
                raise ValueError(f"{path}: has no {name}")
            node, now = matches[0], now[key]
        assert node is not None
        if now != value:
            spans.append((node.start_mark.index, node.end_mark.index, json.dumps(value)))
    for begin, end, new in sorted(spans, reverse=True):
        text = text[:begin] + new + text[end:]
    return text
