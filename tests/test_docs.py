"""The documents: commands and options exist, code blocks parse, the site builds."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from dvc.cli.parser import get_main_parser
from mlflow.cli import cli as mlflow_cli

from mme.commands.app import app
from mme.config import Params, load_params
from tests import compose
from tests.test_project import ROOT, fenced_in, make_targets, pins

SITE_PAGES = sorted((ROOT / "docs").glob("**/*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE_PAGES]
COMMON = {
    "aws",
    "cat",
    "cd",
    "cp",
    "export",
    "git",
    "kill",
    "ls",
    "mkdir",
    "nproc",
    "printf",
    "ray",
    "sha256sum",
    "sqlite3",
}
"""Programs outside this project whose options are not checked."""

Words = list[str]


@functools.cache
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands_in(block: str) -> Iterator[Words]:
    """Yield the simple commands of a block, without assignments and redirections."""
    for line in block.replace("\\\n", " ").splitlines():
        tokens = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>")
        tokens.wordchars += "$@{}[],:%+!"
        words: Words = []
        redirected = False
        for token in [*tokens, ";"]:
            if set(token) <= set("<>"):
                redirected = True
            elif redirected:
                redirected = False
            elif not set(token) <= set("|&;()"):
                words += [token] if words or not re.match(r"^\w+=", token) else []
            elif words:
                yield words
                words = []


def check_click(command: Any, words: Words) -> None:
    """Parse words as click does, subcommand by subcommand, without running them."""
    try:
        context = command.make_context(words[0], words[1:])
    except Exception as error:
        if "does not exist" in str(error):  # the files of an example are not there
            return
        raise
    rest = [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else context.args
    if hasattr(command, "get_command") and rest:
        child = command.get_command(context, rest[0])
        assert child is not None, f"{words}: there is no {rest[0]}"
        check_click(child, rest)


def check_make(words: Words) -> None:
    targets = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    assert set(targets) <= set(make_targets()), words


def check_python(words: Words) -> None:
    assert len(words) > 1, words
    if words[1] == "-m" and words[2] in ("pip", "venv", "pytest"):
        return
    found = importlib.util.find_spec(words[2]) if words[1] == "-m" else (ROOT / words[1]).exists()
    assert found, words


def check_docker(words: Words) -> None:
    if words[1] == "compose":
        assert words[2] in {"up", "run", "build", "stop", "exec", "logs", "down", "restart", "pull", "ps"}, words
        services = set(compose.load(compose.example_environment())["services"])
        if words[2] in ("run", "exec"):
            assert services & set(words[3:]), f"{words}: none of {sorted(services)}"
    else:
        assert words[1] in {"build", "run"}, words


def check_curl(words: Words) -> None:
    assert any(re.match(r"https?://(127\.0\.0\.1|localhost|\$|[\w.]+\.example)", word) for word in words), words


def check_torchrun(words: Words) -> None:
    modules = [words[index + 1] for index, word in enumerate(words) if word in ("-m", "--module")]
    assert modules, words
    assert importlib.util.find_spec(modules[0]), words


def check_pip(words: Words) -> None:
    assert words[1] == "install", words


CHECKS: dict[str, Callable[[Words], object]] = {
    "curl": check_curl,
    "docker": check_docker,
    "dvc": lambda words: get_main_parser().parse_args(words[1:]),
    "make": check_make,
    "mlflow": lambda words: check_click(mlflow_cli, words),
    "mme": lambda words: check_click(typer.main.get_command(app), words),
    "pip": check_pip,
    "python": check_python,
    "torchrun": check_torchrun,
}


def check_words(words: Words) -> None:
    program = Path(words[0]).name
    if program == "source":
        assert words[1] == ".venv/bin/activate", words
    elif program in CHECKS:
        try:
            CHECKS[program](words)
        except SystemExit as error:
            raise AssertionError(f"{words} is not accepted") from error
    else:
        assert program in COMMON or program in pins(), f"unknown program: {words}"


def test_blocks_are_split_into_commands() -> None:
    block = "A=1 mme classify 'a b.mp4' | cat # why\ncd x && make \\\n  test > log\nprintf %s \"$KEY\"\n"
    assert list(commands_in(block)) == [
        ["mme", "classify", "a b.mp4"], ["cat"], ["cd", "x"], ["make", "test"], ["printf", "%s", "$KEY"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words", [["mme", "classiffy"], ["mme", "classify", "--no", "x"], ["make", "teste"], ["frobnicate"]]
)
def test_wrong_commands_fail(words: Words) -> None:
    with pytest.raises(Exception, match=r".+"):
        check_words(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_and_accept_their_options(page: Path) -> None:
    for block in fenced_in(page, "bash"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        for words in commands_in(block):
            check_words(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_parse(page: Path) -> None:
    for block in fenced_in(page, "python"):
        ast.parse(block)
    for block in fenced_in(page, "yaml"):
        assert yaml.safe_load(block) is not None
    for block in fenced_in(page, "json"):
        json.loads(block)


def test_named_parameters_exist() -> None:
    """Check `section.name` in the documents if the section is one of params.yaml."""
    sections = {name: set(getattr(field.annotation, "model_fields", ())) for name, field in Params.model_fields.items()}
    wrong = []
    for page in PAGES:
        for section, name in re.findall(r"`(?:-S )?([a-z]+)\.([a-z]\w*)(?:=[^`]*)?`", page.read_text(encoding="utf-8")):
            if sections.get(section) and name not in sections[section] | {"py", "yaml", "md", "journal", "safetensors"}:
                wrong.append(f"{page.name}: {section}.{name}")
    assert wrong == []


def test_named_settings_exist() -> None:
    from serving.settings import Settings

    known = {f"MME_{name.upper()}" for name in Settings.model_fields} | {"MME_API_KEY"}
    named = {name for page in PAGES for name in re.findall(r"\bMME_[A-Z_]+\b", page.read_text(encoding="utf-8"))}
    assert named - known == set()


def test_generated_pages_are_complete() -> None:
    pages = hooks().generated()
    parameters = load_params(ROOT / "params.yaml").model_dump()
    for section, values in parameters.items():
        assert f"## {section}" in pages["parameters.md"]
        for name in values if isinstance(values, dict) and values else [section]:
            assert f"| `{name}` |" in pages["parameters.md"], f"{section}.{name}"
    comments = hooks().comments_of((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert len(comments) > 50
    for (section, name), comment in comments.items():
        assert not name or comment.replace("|", "\\|") in pages["parameters.md"], f"{section}.{name}: {comment}"
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"## `mme {name}`" in pages["commands.md"]
    document = json.loads(pages["openapi.json"])
    assert {"/classify", "/ready"} <= set(document["paths"])
    for path in document["paths"]:
        assert path in pages["api.md"]
    assert "](images/tracks.png)" in pages["index.md"]
    assert not re.findall(r"\]\(docs/[^)]*", pages["index.md"])


@pytest.mark.slow
def test_site_builds_without_warnings_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    loads = re.compile(
        r"<(?:script|img|iframe|source)[^>]+src=[\"']?(?:https?:)?//|<link[^>]+href=[\"']?(?:https?:)?//"
    )
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert loads.search(text) is None, page.name
        assert 'class="arithmatex"' not in text, f"{page.name}: a formula is not MathML"
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name
    for page in SITE_PAGES:
        assert (tmp_path / "site" / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file()
