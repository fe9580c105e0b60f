"""The life of registered versions: which of them answers, since when, who decided so, and the way back.

Every change of an alias goes through here. It is recorded twice: in the registry's own tags, which all who share the
registry see, and as a line of ``registry-audit.jsonl`` in the working folder, which nobody's later change overwrites.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mme.registry.gate import ALIASES, Alias, Verdict
from mme.tracking import (
    Version,
    find_alias,
    get_version,
    model_tags,
    set_alias,
    tag_model,
    tag_version,
    untag_version,
)

AUDIT = Path("registry-audit.jsonl")

CHAMPIONS = "champions"
"""The registered model's tag that lists the numbers of its champions, the present one last."""

ROLLED_BACK = "rolled_back"
"""The tag of a version that a person took back: the gate alone does not let it in again."""

MAX_REMEMBERED = 200
"""Champions that the tag lists, within the length that MLflow keeps of a tag."""


def follow_verdict(version: Version, verdict: Verdict) -> tuple[Version, Verdict]:
    """Give a version the alias that the gate says it earned.

    A version below the minimum earns no alias, and loses none that it has. One that was rolled back stays out.
    """
    if verdict.alias is None:
        return version, verdict
    if ROLLED_BACK in version.tags:
        reason = (
            f"was rolled back ({version.tags[ROLLED_BACK]}): `mme models promote {version.number}` lets it in again"
        )
        return version, Verdict(None, reason)
    return give(version, verdict.alias, "gate", verdict.reason), verdict


def promote(version: Version, alias: Alias, reason: str) -> Version:
    """Give a version an alias because a person says so."""
    untag_version(version, ROLLED_BACK)
    return give(version, alias, "promote", reason)


def rollback(name: str, reason: str) -> Version:
    """Make the former champion champion again.

    Raises:
        ValueError: there is no champion, or none before it.
    """
    present = find_alias(name, "champion")
    if present is None:
        raise ValueError(f"{name}: has no champion")
    former = [number for number in champions(name) if number != present.number]
    if not former:
        raise ValueError(f"{name}: version {present.number} is the first champion, there is none to go back to")
    tag_version(present, {ROLLED_BACK: reason})
    restored = give(get_version(name, former[-1]), "champion", "rollback", reason)
    tag_model(name, {CHAMPIONS: json.dumps(former)})
    return restored


def champions(name: str) -> list[int]:
    """Numbers of all champions in their order, the present one last."""
    numbers: list[int] = json.loads(model_tags(name).get(CHAMPIONS, "[]"))
    return numbers


def give(version: Version, alias: Alias, action: str, reason: str) -> Version:
    """Let an alias point to a version, and record it; nothing is recorded where it does so already.

    Args:
        version: which.
        alias: it loses the other of ``ALIASES``.
        action: ``gate``, ``promote`` or ``rollback``.
        reason: in words.

    Returns:
        The version as it is now.
    """
    holder = find_alias(version.name, alias)
    if holder is not None and holder.number == version.number:
        return holder
    now = datetime.now(UTC).isoformat(timespec="seconds")
    set_alias(version, alias, ALIASES)
    tag_version(version, {f"{alias}_since": now, f"{alias}_by": _who(), f"{alias}_reason": reason})
    if holder is not None:
        tag_version(holder, {f"{alias}_until": now})
    if alias == "champion":
        _remember(version, holder)
    record(version, action, alias=alias, former=None if holder is None else holder.number, reason=reason)
    return get_version(version.name, version.number)


def _remember(version: Version, former: Version | None) -> None:
    """Add a champion to the list, after the one before it if someone made that by other means."""
    numbers = champions(version.name)
    for number in ([] if former is None else [former.number]) + [version.number]:
        if numbers[-1:] != [number]:
            numbers.append(number)
    tag_model(version.name, {CHAMPIONS: json.dumps(numbers[-MAX_REMEMBERED:])})


def record(version: Version, action: str, **facts: Any) -> None:
    """Add a line to the audit file."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": _who(),
        "action": action,
        "model": version.name,
        "version": version.number,
        "digest": version.tags.get("digest"),
        **facts,
    }
    with AUDIT.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")  # one write, so that lines of several processes do not mix


def history(name: str, number: int | None = None) -> list[dict[str, Any]]:
    """Lines of the audit file about a model, or about one version of it, oldest first."""
    if not AUDIT.is_file():
        return []
    lines = [json.loads(line) for line in AUDIT.read_text(encoding="utf-8").splitlines()]
    return [
        line
        for line in lines
        if line["model"] == name and (number is None or number in (line["version"], line.get("former")))
    ]


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
