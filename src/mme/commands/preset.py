"""`mme preset`: named sets of parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mme.config import presets

app = typer.Typer(no_args_is_help=True, help="Named sets of parameters: the default recipe and the paper's.")

Name = Annotated[str, typer.Argument(help="Name of a preset.")]


@app.command("list")
def list_presets() -> None:
    """List the presets."""
    table = Table("preset", "description", box=None, pad_edge=False)
    for name in presets.names():
        table.add_row(Text(name), Text(presets.described(name)))
    Console().print(table)


@app.command()
def show(name: Name) -> None:
    """Show the values of a preset."""
    for key, value in presets.values(name).items():
        typer.echo(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")


@app.command()
def apply(
    name: Name,
    file: Annotated[Path, typer.Option(help="File of parameters.")] = Path("params.yaml"),
    dry_run: Annotated[bool, typer.Option(help="Show the difference, write nothing.")] = False,
) -> None:
    """Write a preset's values into params.yaml and show the difference; comments and other values stay."""
    difference = presets.apply(name, file, write=not dry_run)
    typer.echo(difference or f"{file} has these values already", nl=not difference)
