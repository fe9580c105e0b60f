"""Named sets of parameters, each a YAML file here that says what it changes in ``params.yaml``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from mme.config.edit import write_values
from mme.config.names import flatten

BASED_ON = "based_on"
"""Key of a preset that names another one, whose values hold where it has none of its own."""

WHOLE = ("datasets", "warm_starts")
"""Sections whose keys are names: each is replaced as a whole."""


def names() -> list[str]:
    """Return the names of all presets."""
    return sorted(path.name.removesuffix(".yaml") for path in files(__name__).iterdir() if path.name.endswith(".yaml"))


def described(name: str) -> str:
    """Return the description of a preset: its leading comment, as one line."""
    lines = _text(name).splitlines()
    return " ".join(line.removeprefix("# ") for line in lines[: next(i for i, x in enumerate(lines) if x[0] != "#")])


def values(name: str) -> dict[str, Any]:
    """Return the values of a preset by dotted names, those of the preset that it is based on included.

    Raises:
        ValueError: there is no such preset.
    """
    sections: dict[str, Any] = yaml.safe_load(_text(name))
    base = sections.pop(BASED_ON, None)
    whole = {name: sections.pop(name) for name in WHOLE if name in sections}
    return {**({} if base is None else values(base)), **flatten(sections, depth=2), **whole}


def _text(name: str) -> str:
    if name not in names():
        raise ValueError(f"no preset {name!r}; there are {', '.join(names())}")
    return (files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")


def apply(name: str, path: Path, *, write: bool) -> str:
    """Write a preset's values into ``params.yaml``; see `mme.config.edit.write_values`.

    Raises:
        ValueError: there is no such preset, a key is not in the file, or the result would not be valid.
    """
    return write_values(path, values(name), write=write)
