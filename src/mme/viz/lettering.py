"""Names of any script in pictures: fonts that have their letters, nothing taken for a formula, no empty boxes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from matplotlib.font_manager import findfont, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font

MAX_CHARACTERS = 32
"""Longest name that is written whole."""

FIRST_FAMILY = "DejaVu Sans"
"""Comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew and more, but no Chinese, Japanese or Korean."""

NOTE = "#N: label N of the sorted list, as in per_class.csv; no installed font has its letters, see docs/data.md"

_INVISIBLE = ("Cf", "Mn", "Me")
"""Categories of characters that change others: joiners, directions, variation selectors, marks."""


@dataclass(frozen=True)
class Lettering:
    """Names as they are written, and how.

    Attributes:
        names: in the order of the labels; ``#3``, with what can be written of the name, for the third label if letters
            are missing.
        families: font families, in the order in which they are asked for a letter.
        note: explains the numbers; empty if there are none.
    """

    names: tuple[str, ...]
    families: list[str]
    note: str


def lettering(labels: Sequence[str]) -> Lettering:
    """Choose how labels are written in a figure of matplotlib.

    Args:
        labels: class names, sorted.
    """
    plain = [_shortened(printable(label)) for label in labels]
    families, drawable = _fonts(frozenset("".join(plain)))
    names, note = [], ""
    for number, name in enumerate(plain, start=1):
        kept = "".join(letter for letter in name if letter in drawable).strip()
        lost = any(letter not in drawable and unicodedata.category(letter) not in _INVISIBLE for letter in name)
        note = NOTE if lost else note
        names.append(no_formula(f"#{number} {kept}".strip() if lost else kept))
    return Lettering(tuple(names), list(families), note)


def printable(text: str) -> str:
    r"""Return the text with control characters, line breaks and half characters as escapes such as ``\n``."""
    unwritable = ("Cc", "Cs", "Co", "Cn", "Zl", "Zp")
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in unwritable else letter
        for letter in text
    )


def written(text: str) -> tuple[str, list[str]]:
    """Return the text with letters that no font has as escapes, and the font families to write it with."""
    plain = printable(text)
    families, drawable = _fonts(frozenset(plain))
    letters = (letter if letter in drawable else letter.encode("unicode_escape").decode() for letter in plain)
    return "".join(letters), list(families)


def no_formula(text: str) -> str:
    """Return the text with escaped dollars, which matplotlib shows as dollars; two others enclose a formula."""
    return text.replace("$", r"\$")


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_CHARACTERS else f"{name[: MAX_CHARACTERS - 1]}…"


@lru_cache(maxsize=64)
def _fonts(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Choose families for letters, and return those letters that they have.

    The system's fonts are read, not matplotlib's list of them, which is not renewed when a font is installed.
    """
    families, drawable = [FIRST_FAMILY], _letters_in(FT2Font(str(findfont(FIRST_FAMILY))), letters)
    fonts = {}
    for path in sorted(findSystemFonts()) if letters - drawable else ():
        try:
            font = FT2Font(path)
        except RuntimeError:
            continue  # nothing that FreeType reads
        if font.scalable and not font.style_flags:  # upright, of normal weight, no bitmaps
            fonts[path] = (font.family_name, _letters_in(font, letters))
    while letters - drawable and fonts:
        path, (family, found) = max(fonts.items(), key=lambda item: (len(item[1][1] - drawable), "Sans" in item[1][0]))
        if not found - drawable:
            break
        fontManager.addfont(path)
        families.append(family)
        drawable |= found
    return tuple(families), drawable


def _letters_in(font: FT2Font, letters: frozenset[str]) -> frozenset[str]:
    return frozenset(letter for letter in letters if font.get_char_index(ord(letter)))
