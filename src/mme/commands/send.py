"""`mme send`: send what runs recorded while the tracking store was away."""

from __future__ import annotations

import typer


def send_command() -> None:
    """Send what runs of this project recorded while MLflow was away; the next run does so, too."""
    from mme.tracking import open_store, send_unsent, shown_store

    open_store()
    typer.echo(f"{send_unsent()} records sent to {shown_store()}")
