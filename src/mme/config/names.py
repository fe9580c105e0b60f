"""Dotted names of nested values, such as ``pretrain.lr``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(values: Mapping[str, Any], separator: str = ".", depth: int | None = None) -> dict[str, Any]:
    """Return nested values by their joined names.

    Args:
        values: mappings in mappings.
        separator: put between the parts of a name.
        depth: parts that a name has at most, deeper mappings being values; None for no limit.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and depth != 1:
            inner = flatten(value, separator, None if depth is None else depth - 1)
            flat |= {f"{name}{separator}{key}": content for key, content in inner.items()}
        else:
            flat[name] = value
    return flat


def nest(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Return the inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(separator)
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return nested
