"""Aliases of registered versions: promotion, rollback, history.

Every change of an alias goes through this module. It is recorded twice: in the registry's tags, which are visible to
everyone who uses the registry, and as a line of ``registry-audit.jsonl`` in the project's folder, which later changes
do not overwrite.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from mme.config.paths import project_folder
from mme.registry.gate import ALIASES, Alias, Verdict
from mme.tracking import RegisteredModel, Version

AUDIT_FILE = "registry-audit.jsonl"

CHAMPIONS_TAG = "champions"
"""Tag of the registered model: numbers of its champions, the current one last."""

ROLLED_BACK_TAG = "rolled_back"
"""Tag of a version that a person rolled back: the gate does not give it an alias again."""

MAX_CHAMPIONS = 200
"""Champions kept in the tag, so that it stays below MLflow's length limit."""


def apply_verdict(version: Version, verdict: Verdict) -> tuple[Version, Verdict]:
    """Give a version the alias that the gate decided on.

    A version below the minimum gets no alias and keeps those that it has. A version that was rolled back gets none.

    Returns:
        The version after the change, and the verdict, which differs from the argument for a rolled-back version.
    """
    if verdict.alias is None:
        return version, verdict
    if ROLLED_BACK_TAG in version.tags:
        reason = version.tags[ROLLED_BACK_TAG]
        return version, Verdict(
            None, f"was rolled back ({reason}): `mme models promote {version.number}` makes it champion again"
        )
    return _assign(version, verdict.alias, "gate", verdict.reason), verdict


def promote(version: Version, alias: Alias, reason: str) -> Version:
    """Give a version an alias by a person's decision."""
    version.remove_tag(ROLLED_BACK_TAG)
    return _assign(version, alias, "promote", reason)


def rollback(name: str, reason: str) -> Version:
    """Make the previous champion champion again.

    Raises:
        ValueError: there is no champion, or no previous one.
    """
    model = RegisteredModel(name)
    current = model.find_alias("champion")
    if current is None:
        raise ValueError(f"{name}: has no champion")
    previous = [number for number in past_champions(name) if number != current.number]
    if not previous:
        raise ValueError(f"{name}: version {current.number} is the first champion, there is none to go back to")

    current.set_tags({ROLLED_BACK_TAG: reason})
    return _assign(model.version(previous[-1]), "champion", "rollback", reason, previous)


def past_champions(name: str) -> list[int]:
    """Return the numbers of all champions in order, the current one last."""
    numbers: list[int] = json.loads(RegisteredModel(name).tags().get(CHAMPIONS_TAG, "[]"))
    return numbers


def audit(version: Version, action: str, **details: Any) -> None:
    """Append a line to the audit file."""
    line = {
        "time": _now(),
        "by": _user_and_host(),
        "action": action,
        "model": version.name,
        "version": version.number,
        "digest": version.tags.get("digest"),
        **details,
    }
    with (project_folder() / AUDIT_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")  # one write call: lines of several processes do not mix


def audit_history(name: str, number: int | None = None) -> list[dict[str, Any]]:
    """Return the audit file's lines about a model, or about one version of it, oldest first."""
    path = project_folder() / AUDIT_FILE
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        line
        for line in lines
        if line["model"] == name and (number is None or number in (line["version"], line.get("former")))
    ]


def _assign(
    version: Version, alias: Alias, action: str, reason: str, champions: Sequence[int] | None = None
) -> Version:
    """Record a change of an alias and point it to a version; do nothing if it points there already.

    The alias is set last: if the registry is lost on the way, the same call does the rest, and no alias changes without
    a record.

    Args:
        version: gets the alias and loses the other of ``ALIASES``.
        alias: ``champion`` or ``challenger``.
        action: ``gate``, ``promote`` or ``rollback``.
        reason: in words.
        champions: champions so far, this one last; by default the present ones and this one.

    Returns:
        The version after the change.
    """
    model = RegisteredModel(version.name)
    holder = model.find_alias(alias)
    if holder is not None and holder.number == version.number:
        return holder

    now = _now()
    version.set_tags({f"{alias}_since": now, f"{alias}_by": _user_and_host(), f"{alias}_reason": reason})
    if holder is not None:
        holder.set_tags({f"{alias}_until": now})

    if alias == "champion":
        numbers = list(champions or past_champions(version.name))
        if numbers[-1:] == [version.number]:  # left by a call that lost the registry before it set the alias
            numbers.pop()
        # The holder is not in the list if its alias was set by other means.
        for number in ([] if holder is None or champions else [holder.number]) + [version.number]:
            if numbers[-1:] != [number]:
                numbers.append(number)
        model.set_tags({CHAMPIONS_TAG: json.dumps(numbers[-MAX_CHAMPIONS:])})

    audit(version, action, alias=alias, former=None if holder is None else holder.number, reason=reason)
    version.set_alias(alias, ALIASES)
    return model.version(version.number)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _user_and_host() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
