"""Markdown tables, and text in which no character has a meaning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; every row has one entry per column, and no entry ends its cell or its line."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(str(cell).split("\n")).replace("|", r"\|") for cell in line) + " |" for line in lines
    )


def code_span(text: str) -> str:
    r"""Return any text as it stands, in one line of code font; control characters as escapes such as ``\n``."""
    shown = "".join(letter if letter >= " " else letter.encode("unicode_escape").decode() for letter in text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if len(fence) > 1 or shown.strip() != shown else ""  # Markdown takes one off each end
    return f"{fence}{space}{shown}{space}{fence}"
