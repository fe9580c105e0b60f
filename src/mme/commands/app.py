"""The command ``mme``."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mme.commands import data, models, preset, sweep
from mme.commands.classify import classify_command
from mme.commands.convert import convert_command, export_command
from mme.commands.doctor import doctor_command
from mme.commands.experiments import ablate_command, reproduce_command
from mme.commands.inspect import inspect_command
from mme.commands.send import send_command
from mme.commands.summary import params_command, summary_command
from mme.system.errors import TRACEBACK_VARIABLE, one_line_errors

TracebackOption = Annotated[
    bool, typer.Option("--traceback", help=f"Show where an error was raised, as {TRACEBACK_VARIABLE}=1 does.")
]


class Commands(TyperGroup):
    """Root of all commands, which ends with one line and status 1 on an expected error."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        if ctx.params.get("traceback"):
            os.environ[TRACEBACK_VARIABLE] = "1"
        with one_line_errors():
            return super().invoke(ctx)


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(data.app, name="data")
app.add_typer(models.models_app, name="models")
app.add_typer(preset.app, name="preset")
app.add_typer(sweep.sweep_app, name="sweep")
app.command("ablate")(ablate_command)
app.command("classify")(classify_command)
app.command("convert")(convert_command)
app.command("doctor")(doctor_command)
app.command("export")(export_command)
app.command("inspect")(inspect_command)
app.command("params")(params_command)
app.command("reproduce")(reproduce_command)
app.command("send")(send_command)
app.command("summary")(summary_command)


@app.callback()
def mme_command(traceback: TracebackOption = False) -> None:
    """Classify videos, show results, check parameters and this machine, run experiments."""


if __name__ == "__main__":
    app()
