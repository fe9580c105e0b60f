"""`mme models`: versions in the registry, which of them answers, and the way forth and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mme.config import load_params
from mme.registry.gate import ALIASES

if TYPE_CHECKING:
    from mme.tracking import Version

SERVICE = "http://127.0.0.1:8000"
TIMEOUT_S = 2.0
"""For a service to say which model it has; one that takes longer is shown as silent."""

Name = Annotated[str | None, typer.Option(help="Registered model; registry.name in params.yaml if not given.")]
Urls = Annotated[list[str], typer.Option("--url", help="A service to ask which version it serves; may be repeated.")]
Number = Annotated[int, typer.Argument(help="Number of the version.")]
Reason = Annotated[str, typer.Option(help="Kept with the change.")]

app = typer.Typer(no_args_is_help=True, help="List, show, promote and roll back registered models.")


@app.command("list")
def list_models(name: Name = None, url: Urls = [SERVICE]) -> None:  # noqa: B006 - typer's way
    """Show every version: aliases, figure, data, digest, and which services answer with it."""
    from mme.tracking import RegisteredModel

    versions = RegisteredModel(_named(name)).versions()
    serving = {address: _served_digest(address) for address in url}
    table = Table(box=None, pad_edge=False)
    for title in ("version", "alias", "figure", "data", "digest", "created", "served by"):
        table.add_column(title, overflow="fold")  # a narrow screen cuts nothing off
    for version in versions:
        tags = version.tags
        places = [address for address, digest in serving.items() if digest is not None and digest == tags.get("digest")]
        cells = [
            str(version.number),
            ", ".join(version.aliases) or ("rolled back" if "rolled_back" in tags else ""),
            _figure(version),
            tags.get("data_digest", ""),
            tags.get("digest", ""),
            f"{version.created:%Y-%m-%d %H:%M} UTC",
            ", ".join(places),
        ]
        table.add_row(*map(Text, cells))
    console = Console()
    console.print(table)
    for address, digest in serving.items():
        if digest is None:
            console.print(Text(f"{address} does not answer"))
        elif digest not in {version.tags.get("digest") for version in versions}:
            console.print(Text(f"{address} serves {digest}, which is none of these versions"))


@app.command()
def show(number: Number, name: Name = None, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Show all that is recorded of a version, and what happened to it."""
    from mme.registry.aliases import audit_history

    version = _version(_named(name), number)
    facts: dict[str, Any] = {
        "address": version.address,
        "aliases": list(version.aliases),
        "created": version.created.isoformat(timespec="seconds"),
        "run_id": version.run_id,
        "metrics": version.run_metrics(),
        "tags": dict(version.tags),
        "history": audit_history(version.name, number),
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = {key: facts[key] for key in ("address", "created", "run_id")}
    rows |= {"aliases": ", ".join(version.aliases) or "none", **version.tags}
    rows |= {name: f"{value:.4g}" for name, value in facts["metrics"].items()}
    for key, value in rows.items():
        table.add_row(Text(key), Text(str(value)))
    for line in facts["history"]:
        table.add_row(Text(line["time"]), Text(_sentence(line)))
    Console().print(table)


@app.command()
def promote(
    number: Number,
    alias: Annotated[str, typer.Option(help="champion or challenger")] = "champion",
    reason: Reason = "by hand",
    force: Annotated[bool, typer.Option(help="Even below the minimum of the gate.")] = False,
    name: Name = None,
) -> None:
    """Let an alias point to a version. A service that follows the alias changes over within its polling time."""
    from mme.registry.aliases import promote as promote_version

    chosen = next((known for known in ALIASES if known == alias), None)
    if chosen is None:
        raise ValueError(f"--alias {alias}: must be one of {', '.join(ALIASES)}")
    version = _version(_named(name), number)
    if not force:
        _check_minimum(version)
    version = promote_version(version, chosen, reason)
    typer.echo(f"{version.address}: {', '.join(version.aliases)}")


@app.command()
def rollback(reason: Reason = "by hand", name: Name = None) -> None:
    """Make the former champion champion again, and keep the present one out until someone promotes it."""
    from mme.registry.aliases import rollback as roll_back
    from mme.tracking import require_store

    model = _named(name)
    require_store(model)
    version = roll_back(model, reason)
    typer.echo(f"{version.address}: {', '.join(version.aliases)}")


def _named(name: str | None) -> str:
    return name or load_params(Path("params.yaml")).registry.name


def _version(name: str, number: int) -> Version:
    from mme.tracking import RegisteredModel

    versions = {version.number: version for version in RegisteredModel(name).versions()}
    if number not in versions:
        raise ValueError(f"{name}: has no version {number}, but {sorted(versions)}")
    return versions[number]


def _figure(version: Version) -> str:
    tags = version.tags
    return f"{tags['metric']} {float(tags['value']):.4g}" if {"metric", "value"} <= tags.keys() else ""


def _check_minimum(version: Version) -> None:
    registry = load_params(Path("params.yaml")).registry
    figure = _figure(version)
    if version.tags.get("metric") != registry.metric:
        raise ValueError(f"{version.address}: was measured by {figure or 'nothing'}, the gate's is {registry.metric}")
    if float(version.tags["value"]) < registry.minimum:
        raise ValueError(f"{version.address}: {figure} is below registry.minimum {registry.minimum:g} (--force)")


def _served_digest(url: str) -> str | None:
    """What a service answers with; None if it does not say."""
    try:
        response = httpx.get(f"{url}/model", timeout=TIMEOUT_S)
        return str(response.json()["digest"]) if response.is_success else None
    except (httpx.HTTPError, ValueError, KeyError):
        return None


def _sentence(line: dict[str, Any]) -> str:
    alias = f" as {line['alias']}" if line.get("alias") else ""
    former = f" in the place of version {line['former']}" if line.get("former") else ""
    return f"{line['action']}{alias}, version {line['version']}{former}, by {line['by']}: {line.get('reason', '')}"
