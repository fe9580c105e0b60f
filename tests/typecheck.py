"""Run-time type checks of the tests: an integer passes for a float, as it does for mypy."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
