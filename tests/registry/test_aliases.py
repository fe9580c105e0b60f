"""Aliases: promotion, rollback and their audit trail, by the functions and by the commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from mme.commands.app import app
from mme.registry import aliases
from mme.registry.gate import Verdict
from mme.tracking import RegisteredModel, Version
from mme.tracking.store import open_store
from tests.http_server import Handler, listening
from tests.registry_lost import lost_at

ROOT = Path(__file__).parents[2]
NAME = "mme-motion-primitives"
RUNNER = CliRunner()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with four versions, the last below the gate's minimum. Creating one takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        open_store()
        client = MlflowClient()
        client.create_registered_model(NAME)
        for number, figure in enumerate((0.6, 0.7, 0.8, 0.1), start=1):
            tags = {"digest": f"digest-{number}", "metric": "test/top1", "value": str(figure), "data_digest": "data"}
            client.create_model_version(NAME, folder.as_uri(), tags=tags)
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(store, tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)


def version(number: int) -> Version:
    return RegisteredModel(NAME).version(number)


def champion() -> int | None:
    found = RegisteredModel(NAME).find_alias("champion")
    return None if found is None else found.number


def lines() -> list[tuple[str, int, int | None]]:
    return [(line["action"], line["version"], line["former"]) for line in aliases.audit_history(NAME)]


def mme(*words: str) -> str:
    done = RUNNER.invoke(app, ["models", *words], env={"COLUMNS": "250"})
    assert done.exit_code == 0, done.output
    return done.output


def refused(*words: str) -> str:
    done = RUNNER.invoke(app, ["models", *words])
    assert done.exit_code == 1
    return done.output


@contextmanager
def service(digest: str) -> Iterator[str]:
    """An HTTP server whose ``/model`` returns this digest."""

    class Service(Handler):
        def respond(self) -> None:
            self.answer(200, {"digest": digest})

    with listening(Service) as address:
        yield f"http://{address}"


def test_changes_are_recorded_in_tags_and_in_the_audit_file() -> None:
    first, _ = aliases.apply_verdict(version(1), Verdict("champion", "it is the first"))
    assert first.aliases == ("champion",)
    assert first.tags["champion_reason"] == "it is the first"
    assert "@" in first.tags["champion_by"]
    aliases.promote(version(2), "champion", "looks better")
    assert version(1).tags["champion_until"] >= version(1).tags["champion_since"]
    assert lines() == [("gate", 1, None), ("promote", 2, 1)]
    assert aliases.past_champions(NAME) == [1, 2]
    (line,) = aliases.audit_history(NAME, 1)[1:]
    assert (line["digest"], line["reason"], line["alias"]) == ("digest-2", "looks better", "champion")


def test_repeated_promotion_changes_and_records_nothing() -> None:
    for _ in range(2):
        aliases.promote(version(1), "champion", "again")
    assert lines() == [("promote", 1, None)]


def test_rollback_restores_champions_step_by_step_and_fails_at_the_first() -> None:
    for number in (1, 2, 3):
        aliases.promote(version(number), "champion", "better")
    assert [aliases.rollback(NAME, "worse in practice").number, champion()] == [2, 2]
    assert aliases.rollback(NAME, "worse still").number == 1
    assert (aliases.past_champions(NAME), lines()[-1]) == ([1], ("rollback", 1, 2))
    with pytest.raises(ValueError, match="version 1 is the first champion"):
        aliases.rollback(NAME, "no")


@pytest.mark.parametrize("change", range(1, 7))
def test_a_registry_lost_in_a_promotion_is_made_whole_by_another(change: int) -> None:
    aliases.promote(version(1), "champion", "first")
    aliases.promote(version(2), "challenger", "close")
    with lost_at(change):
        done = RUNNER.invoke(app, ["models", "promote", "2"])
    assert done.exit_code == 1
    assert "refuses connections" in done.output
    assert len(done.output.strip().splitlines()) == 1
    mme("promote", "2")
    assert (champion(), version(2).aliases) == (2, ("champion",))
    assert aliases.past_champions(NAME) == [1, 2]
    assert {"champion_since", "champion_by", "champion_reason"} <= version(2).tags.keys()
    assert "champion_until" in version(1).tags
    assert lines()[-1] == ("promote", 2, 1)


@pytest.mark.parametrize("change", range(1, 8))
def test_a_registry_lost_in_a_rollback_is_made_whole_by_another(change: int) -> None:
    for number in (1, 2, 3):
        aliases.promote(version(number), "champion", "better")
    with lost_at(change), pytest.raises(MlflowException):
        aliases.rollback(NAME, "worse in practice")
    assert champion() == 3
    assert aliases.rollback(NAME, "worse in practice").number == 2
    assert (champion(), aliases.past_champions(NAME)) == (2, [1, 2])
    assert version(3).tags["rolled_back"] == "worse in practice"
    assert lines()[-1] == ("rollback", 2, 3)


def test_gate_gives_no_alias_to_a_version_that_was_rolled_back() -> None:
    for number in (1, 2):
        aliases.promote(version(number), "champion", "better")
    aliases.rollback(NAME, "confuses left and right")
    _, verdict = aliases.apply_verdict(version(2), Verdict("champion", "best figure"))
    assert (verdict.alias, champion()) == (None, 1)
    assert "confuses left and right" in verdict.reason
    aliases.promote(version(2), "champion", "mended")
    assert champion() == 2
    assert aliases.apply_verdict(version(2), Verdict("champion", "best figure"))[1].passed


def test_verdict_below_the_minimum_changes_nothing() -> None:
    aliases.promote(version(1), "champion", "better")
    kept, _ = aliases.apply_verdict(version(1), Verdict(None, "below the minimum"))
    assert (kept.aliases, len(lines())) == (("champion",), 1)


def test_rollback_restores_a_champion_that_was_set_outside_of_mme() -> None:
    MlflowClient().set_registered_model_alias(NAME, "champion", "1")
    aliases.promote(version(2), "champion", "better")
    assert aliases.rollback(NAME, "worse").number == 1


def test_list_shows_every_version_and_the_services_that_run_it() -> None:
    mme("promote", "2", "--reason", "a trial")
    with service("digest-2") as address, service("other") as stranger:
        output = mme("list", "--url", address, "--url", stranger, "--url", "http://127.0.0.1:9")
    rows = {line.split()[0]: line for line in output.splitlines() if line[:1].isdigit()}
    assert list(rows) == ["4", "3", "2", "1"]
    assert all(part in rows["2"] for part in ("champion", "test/top1 0.7", "digest-2", address))
    assert address not in rows["1"]
    assert f"{stranger} serves other, which is not one of these versions" in output
    assert "http://127.0.0.1:9 does not answer" in output


def test_show_prints_record_and_history() -> None:
    mme("promote", "1", "--alias", "challenger")
    mme("promote", "1", "--reason", "chosen")
    facts = json.loads(mme("show", "1", "--json"))
    assert (facts["aliases"], facts["tags"]["digest"]) == (["champion"], "digest-1")
    assert [line["alias"] for line in facts["history"]] == ["challenger", "champion"]
    assert "promote as champion" in mme("show", "1")


def test_promote_and_rollback_commands() -> None:
    mme("promote", "1")
    mme("promote", "3")
    assert f"models:/{NAME}/1: champion" in mme("rollback", "--reason", "slower")
    assert champion() == 1
    assert "slower" in mme("show", "3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["promote", "4"], "below registry.minimum"),
        (["promote", "9"], "has no version 9"),
        (["promote", "1", "--alias", "best"], "must be one of champion, challenger"),
        (["rollback"], "has no champion"),
        (["show", "9"], "has no version 9"),
        (["list", "--name", "nobody"], "nobody: no such model"),
    ],
)
def test_invalid_request_prints_one_line_and_changes_nothing(words: list[str], message: str) -> None:
    assert message in refused(*words)
    assert champion() is None


def test_force_promotes_a_version_below_the_minimum() -> None:
    assert "champion" in mme("promote", "4", "--force")


def test_rollback_creates_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "no mlflow.db" in refused("rollback", "--name", NAME)
    assert not list(Path.cwd().iterdir())
