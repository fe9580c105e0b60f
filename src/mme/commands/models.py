"""`mme models`: list, show, compare, promote and roll back registered models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from mme.commands.classify import SERVICE_URL
from mme.commands.compare import compare_command
from mme.config import load_params
from mme.registry.gate import ALIASES

if TYPE_CHECKING:
    from mme.tracking import Version

SERVICE_TIMEOUT_S = 2.0
"""Timeout of a request for the model of a service."""

NameOption = Annotated[str | None, typer.Option(help="Registered model; default: registry.name in params.yaml.")]
UrlsOption = Annotated[list[str], typer.Option("--url", help="Service whose version is shown; may be repeated.")]
NumberArgument = Annotated[int, typer.Argument(help="Number of the version.")]
ReasonOption = Annotated[str, typer.Option(help="Recorded with the change.")]


class RegistryCommands(TyperGroup):
    """Commands that end with one line when the registry is lost."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        from mme.tracking import explaining  # MLflow takes seconds to import, `mme --help` does not need it

        with explaining():
            return super().invoke(ctx)


models_app = typer.Typer(
    cls=RegistryCommands, no_args_is_help=True, help="List, show, compare, promote and roll back registered models."
)


@models_app.command("list")
def list_command(name: NameOption = None, url: UrlsOption = [SERVICE_URL]) -> None:  # noqa: B006 - typer copies it
    """Show every version: aliases, metric, data, digest, and the services that run it."""
    from mme.tracking import RegisteredModel

    versions = RegisteredModel(_model_name(name)).versions()
    serving = {address: _served_digest(address) for address in url}
    table = Table(box=None, pad_edge=False)
    for title in ("version", "alias", "metric", "data", "digest", "created", "served by"):
        table.add_column(title, overflow="fold")  # a narrow terminal truncates nothing
    for version in versions:
        tags = version.tags
        places = [address for address, digest in serving.items() if digest is not None and digest == tags.get("digest")]
        columns = [
            str(version.number),
            ", ".join(version.aliases) or ("rolled back" if "rolled_back" in tags else ""),
            _metric_text(version),
            tags.get("data_digest", ""),
            tags.get("digest", ""),
            f"{version.created:%Y-%m-%d %H:%M} UTC",
            ", ".join(places),
        ]
        table.add_row(*map(Text, columns))
    console = Console()
    console.print(table)
    for address, digest in serving.items():
        if digest is None:
            console.print(Text(f"{address} does not answer"))
        elif digest not in {version.tags.get("digest") for version in versions}:
            console.print(Text(f"{address} serves {digest}, which is not one of these versions"))


models_app.command("compare")(compare_command)


@models_app.command("show")
def show_command(
    number: NumberArgument, name: NameOption = None, as_json: Annotated[bool, typer.Option("--json")] = False
) -> None:
    """Show the record of a version and its history."""
    from mme.registry.aliases import audit_history

    version = _find_version(_model_name(name), number)
    record: dict[str, Any] = {
        "address": version.address,
        "aliases": list(version.aliases),
        "created": version.created.isoformat(timespec="seconds"),
        "run_id": version.run_id,
        "metrics": version.run_metrics(),
        "tags": dict(version.tags),
        "history": audit_history(version.name, number),
    }
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = {key: record[key] for key in ("address", "created", "run_id")}
    rows |= {"aliases": ", ".join(version.aliases) or "none", **version.tags}
    rows |= {name: f"{value:.4g}" for name, value in record["metrics"].items()}
    for key, value in rows.items():
        table.add_row(Text(key), Text(str(value)))
    for line in record["history"]:
        table.add_row(Text(line["time"]), Text(_describe_change(line)))
    Console().print(table)


@models_app.command("promote")
def promote_command(
    number: NumberArgument,
    alias: Annotated[str, typer.Option(help="champion or challenger")] = "champion",
    reason: ReasonOption = "by hand",
    force: Annotated[bool, typer.Option(help="Promote a version below the minimum of the gate.")] = False,
    name: NameOption = None,
) -> None:
    """Point an alias to a version. A service that follows the alias loads it within its polling time."""
    from mme.registry.aliases import promote

    chosen = next((known for known in ALIASES if known == alias), None)
    if chosen is None:
        raise ValueError(f"--alias {alias}: must be one of {', '.join(ALIASES)}")
    version = _find_version(_model_name(name), number)
    if not force:
        _check_minimum(version)
    version = promote(version, chosen, reason)
    typer.echo(f"{version.address}: {', '.join(version.aliases)}")


@models_app.command("rollback")
def rollback_command(reason: ReasonOption = "by hand", name: NameOption = None) -> None:
    """Make the previous champion champion again; the current one needs `promote` to return."""
    from mme.registry.aliases import rollback
    from mme.tracking import require_store

    model = _model_name(name)
    require_store(model)
    version = rollback(model, reason)
    typer.echo(f"{version.address}: {', '.join(version.aliases)}")


def _model_name(name: str | None) -> str:
    return name or load_params(Path("params.yaml")).registry.name


def _find_version(name: str, number: int) -> Version:
    from mme.tracking import RegisteredModel

    versions = {version.number: version for version in RegisteredModel(name).versions()}
    if number not in versions:
        raise ValueError(f"{name}: has no version {number}, but {sorted(versions)}")
    return versions[number]


def _metric_text(version: Version) -> str:
    tags = version.tags
    return f"{tags['metric']} {float(tags['value']):.4g}" if {"metric", "value"} <= tags.keys() else ""


def _check_minimum(version: Version) -> None:
    registry = load_params(Path("params.yaml")).registry
    measured = _metric_text(version)
    if version.tags.get("metric") != registry.metric:
        raise ValueError(f"{version.address}: was measured by {measured or 'nothing'}, the gate uses {registry.metric}")
    if float(version.tags["value"]) < registry.minimum:
        raise ValueError(f"{version.address}: {measured} is below registry.minimum {registry.minimum:g} (--force)")


def _served_digest(url: str) -> str | None:
    """Return the digest of the model that a service runs; None if it does not answer."""
    try:
        response = httpx.get(f"{url}/model", timeout=SERVICE_TIMEOUT_S)
        return str(response.json()["digest"]) if response.is_success else None
    except (httpx.HTTPError, ValueError, KeyError):
        return None


def _describe_change(line: dict[str, Any]) -> str:
    alias = f" as {line['alias']}" if line.get("alias") else ""
    former = f" replacing version {line['former']}" if line.get("former") else ""
    return f"{line['action']}{alias}, version {line['version']}{former}, by {line['by']}: {line.get('reason', '')}"
