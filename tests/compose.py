"""``docker/compose.yaml`` with its variables replaced, for checks and for a stack without an engine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DOCKER = Path(__file__).parents[1] / "docker"
FILE = DOCKER / "compose.yaml"

VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?:(?P<operator>:?[-?])(?P<rest>[^}]*))?\}")


def interpolate(value: Any, environment: Mapping[str, str]) -> Any:
    """Replace variables by the environment in every string below ``value``.

    Raises:
        ValueError: a required variable is not set.
    """
    if isinstance(value, Mapping):
        return {key: interpolate(entry, environment) for key, entry in value.items()}
    if isinstance(value, list):
        return [interpolate(entry, environment) for entry in value]
    return VARIABLE.sub(lambda found: _value(found, environment), value) if isinstance(value, str) else value


def _value(found: re.Match[str], environment: Mapping[str, str]) -> str:
    if found[0] == "$$":
        return "$"
    name, operator, rest = found["name"], found["operator"] or "", found["rest"]
    given = environment.get(name)
    if given or (given is not None and not operator.startswith(":")):
        return given
    if operator.endswith("?"):
        raise ValueError(f"{FILE.name}: {name}: {rest}")
    return rest or ""


@dataclass(frozen=True)
class Image:
    """Start settings of a Dockerfile's target."""

    environment: dict[str, str]
    entrypoint: list[str]
    user: str


def read_image(file: Path, target: str) -> Image:
    """Read the instructions ENV, ENTRYPOINT and USER of one stage."""
    text = re.sub(r"\\\n", " ", file.read_text(encoding="utf-8"))
    stage = re.split(r"^FROM .* AS ", text, flags=re.MULTILINE)
    (lines,) = [part.splitlines()[1:] for part in stage if part.split(maxsplit=1)[0] == target]
    environment = dict(
        pair.split("=", 1) for line in lines if line.startswith("ENV ") for pair in line.removeprefix("ENV ").split()
    )
    entrypoint = [word for line in lines if line.startswith("ENTRYPOINT ") for word in yaml.safe_load(line[11:])]
    (user,) = [line.removeprefix("USER ") for line in lines if line.startswith("USER ")]
    return Image(environment, entrypoint, user)


def load(environment: Mapping[str, str]) -> dict[str, Any]:
    """Read the file with variables replaced by the environment."""
    document: dict[str, Any] = interpolate(yaml.safe_load(FILE.read_text(encoding="utf-8")), environment)
    return document


def example_environment() -> dict[str, str]:
    """Read ``.env.example`` and fill in every empty value."""
    lines = (DOCKER / ".env.example").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
    return {name: value or f"{name.lower().replace('_', '-')}-of-a-test" for name, value in pairs}
