"""How commands end that cannot do what they were asked to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def as_one_line() -> Iterator[None]:
    """Say what is wrong in a line, and end with status 1."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
