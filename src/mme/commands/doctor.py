"""`mme doctor`: is this machine fit, and what to do if not."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {"ok": "green", "warning": "yellow", "fault": "red"}


def doctor(
    folder: Annotated[Path, typer.Option(help="The project.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
) -> None:
    """Check versions, decoders, GPU, DVC, MLflow, write access and disk, and say what to do about each finding.

    Ends with status 1 if there is a fault; warnings are none.
    """
    from mme.commands.environment import examine_machine

    findings = list(examine_machine(folder))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        table = Table("what", "", "found", "do", box=None, pad_edge=False)
        for finding in findings:
            status = Text(finding.status, style=STYLES[finding.status])
            table.add_row(finding.name, status, Text(finding.detail), Text(finding.advice))
        Console().print(table)
    if any(finding.status == "fault" for finding in findings):
        raise typer.Exit(1)
