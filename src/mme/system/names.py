"""Names of files as people read them: Linux takes any bytes but a slash and zero."""

from __future__ import annotations


def shown_name(name: str) -> str:
    """Return a name in one line: bytes that are not UTF-8, line breaks and codes of terminals are escaped."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
