"""The page's own addresses: relative to the page, so that it works under any prefix of a proxy."""

from __future__ import annotations

import re

from serving.app import STATIC


def test_page_has_no_absolute_addresses() -> None:
    for file in STATIC.iterdir():
        found = re.findall(r"""["'`(](?:\$\{location\.origin\})?/[a-z][^"'`)]*""", file.read_text(encoding="utf-8"))
        assert found == [], f"{file.name}: {found} would leave the prefix of a proxy"
