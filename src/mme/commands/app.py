"""The command ``mme``."""

from __future__ import annotations

import typer

from mme.commands import data, models, preset, sweep
from mme.commands.classify import classify_command
from mme.commands.convert import convert_command, export_command
from mme.commands.doctor import doctor_command
from mme.commands.errors import Commands, Traceback
from mme.commands.experiments import ablate_command, reproduce_command
from mme.commands.inspect import inspect_command
from mme.commands.summary import params_command, summary_command

app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(data.app, name="data")
app.add_typer(models.models_app, name="models")
app.add_typer(preset.app, name="preset")
app.add_typer(sweep.sweep_app, name="sweep")
app.command("doctor")(doctor_command)
app.command("inspect")(inspect_command)
app.command("reproduce")(reproduce_command)


@app.callback()
def mme_command(traceback: Traceback = False) -> None:
    """Classify videos, show results, check parameters and this machine, run experiments."""


app.command("classify")(classify_command)
app.command("summary")(summary_command)
app.command("params")(params_command)
app.command("ablate")(ablate_command)
app.command("convert")(convert_command)
app.command("export")(export_command)


if __name__ == "__main__":
    app()
