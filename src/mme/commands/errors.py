"""Commands whose expected errors end with one line."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mme.system.errors import TRACEBACK_VARIABLE, one_line_errors

Traceback = Annotated[
    bool, typer.Option("--traceback", help=f"Show where an error was raised, as {TRACEBACK_VARIABLE}=1 does.")
]


class Commands(TyperGroup):
    """The root of all commands: an expected error ends any of them with one line and status 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        if ctx.params.get("traceback"):
            os.environ[TRACEBACK_VARIABLE] = "1"
        with one_line_errors():
            return super().invoke(ctx)
