"""Pages of the site that are made from the code, so that they cannot drift from it. MkDocs calls ``on_*``."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
REPOSITORY_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "reports/ablation.md": "reports/ablation.md",
    "reports/pretraining_gain.md": "reports/pretraining_gain.md",
}
"""Files beside ``docs`` and the pages that they become."""

PICTURES = ("reports/ablation.png",)
"""Files beside ``docs`` that the pages show."""

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\s*(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])\s*</(?P=tag)>',
    re.DOTALL,
)
"""What the extension ``arithmatex`` leaves of `$...$` and `$$...$$`."""

Schema = dict[str, Any]


def on_config(config: Any) -> Any:
    """Leave pages out of the menu that are not there, and put those at its end that it forgets."""
    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    forgotten = sorted(there - set(re.findall(r"[\w/-]+\.md", str(config["nav"]))))
    config["nav"] = list(_only(config["nav"], there | set(generated())))
    config["nav"] += [{"More": forgotten}] if forgotten else []
    return config


def _only(entries: list[dict[str, Any]], there: set[str]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        ((title, value),) = entry.items()
        kept = list(_only(value, there)) if isinstance(value, list) else value in there and value
        if kept:
            yield {title: kept}


@functools.cache
def generated() -> dict[str, str]:
    """Content of every generated page, by its name."""
    sys.path[:0] = [str(ROOT)]  # `serving` is found from a checkout as well
    pages = {page: repository_page(ROOT / name) for name, page in REPOSITORY_PAGES.items()}
    return pages | {
        "parameters.md": parameters_page(),
        "commands.md": commands_page(),
        "api.md": api_page(),
        "openapi.json": json.dumps(openapi(), indent=1),
    }


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for name, content in generated().items():
        files.append(File.generated(config, name, content=content))
    for name in PICTURES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw by themselves."""
    from latex2mathml.converter import convert

    def mathml(found: re.Match[str]) -> str:
        return convert(unescape(found["inline"] or found["block"]), display="inline" if found["inline"] else "block")

    return FORMULA.sub(mathml, html)


def repository_page(path: Path) -> str:
    """A file of the repository with its links leading to pages of the site."""

    def moved(found: re.Match[str]) -> str:
        target = found[1].removeprefix("docs/")
        return f"]({REPOSITORY_PAGES.get(target, target)})"

    return re.sub(r"\]\(((?!\w+://)[^)#]+)\)", moved, path.read_text(encoding="utf-8"))


def parameters_page() -> str:
    """Every parameter with its default, its type and its comment in ``params.yaml``."""
    from mme.config import Params

    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    values, comments = yaml.safe_load(text), comments_of(text)
    schema = Params.model_json_schema()
    lines = [
        "# Parameters",
        "",
        "Every value of every run stands in `params.yaml`; nothing is defaulted in the code, unknown and missing names",
        "are refused. `mme params` checks a file; `dvc exp run register -S SECTION.NAME=VALUE` changes one for a run.",
    ]
    for section, entries in values.items():
        described = _resolved(schema["properties"][section], schema)
        about = described.get("description") or comments.get((section, ""), "")
        lines += ["", f"## {section}", "", " ".join(about.split())]
        if "properties" not in described:  # a mapping by names of the user's choice
            continue
        lines += ["", "| parameter | default | what it may be | |", "|---|---|---|---|"]
        for name, value in entries.items():
            what = describe(described["properties"][name], schema)
            cells = [f"`{name}`", f"`{json.dumps(value, ensure_ascii=False)}`", what, comments.get((section, name), "")]
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def comments_of(text: str) -> dict[tuple[str, str], str]:
    """The comments of a two-level YAML file, by section and name; a section's own is by (section, "")."""
    found: dict[tuple[str, str], str] = {}
    section = ""
    for line in text.splitlines():
        match = re.match(r"(?P<indent> {0,2})(?P<name>[a-z]\w*):(?P<rest>.*)$", line)
        if match is None:
            continue
        section = section if match["indent"] else match["name"]
        _, mark, comment = match["rest"].partition("#")
        if mark:
            found[section, match["name"] if match["indent"] else ""] = comment.strip()
    return found


def _resolved(schema: Schema, root: Schema) -> Schema:
    name = schema.get("$ref", "").rpartition("/")[2]
    return {**root["$defs"][name], **schema} if name else schema


def describe(schema: Schema, root: Schema) -> str:
    """A JSON schema in a few words."""
    schema = _resolved(schema, root)
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return " or ".join(dict.fromkeys(describe(option, root) for option in options))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "any"))
    if kind == "array":
        inner = schema.get("items") or next(iter(schema.get("prefixItems", [])), None)
        what = f" of {describe(inner, root)}" if isinstance(inner, dict) and inner else ""
        exact = schema.get("minItems") if schema.get("minItems") == schema.get("maxItems") else None
        return f"list{what}" if exact is None else f"{exact} x {what.removeprefix(' of ')}"
    words = {"null": "`null`", "integer": "whole number", "string": "text", "boolean": "`true`, `false`"}
    return " ".join([words.get(kind, kind), *_bounds(schema)])


def _bounds(schema: Schema) -> list[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return bounds + ([f"multiple of {schema['multipleOf']:g}"] if "multipleOf" in schema else [])


def commands_page() -> str:
    """The command line as it documents itself."""
    import typer
    from typer.cli import get_docs_for_click

    from mme.commands.app import app

    command = typer.main.get_command(app)
    with command.make_context("mme", [], resilient_parsing=True) as context:
        # Typer's own class and the one that it documents are one at run time.
        text = get_docs_for_click(obj=command, ctx=context, name="mme", title="Commands")  # type: ignore[arg-type]
    return re.sub(r"^\*\*(Usage|Arguments|Options|Commands)\*\*:", r"**\1**", text, flags=re.MULTILINE)


def openapi() -> Schema:
    """The service's OpenAPI document."""
    from serving.app import create_app
    from serving.settings import Settings

    document: Schema = create_app(Settings()).openapi()
    return document


def api_page() -> str:
    """Every address of the service, from its OpenAPI document."""
    document = openapi()
    lines = [
        "# HTTP API",
        "",
        document["info"].get("description", "").strip(),
        "",
        "A running service shows its document at `/openapi.json`; [a copy](openapi.json) belongs to this page.",
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += ["", f"## {method.upper()} {path}", "", *_operation(operation, document)]
    return "\n".join(lines) + "\n"


def _operation(operation: Schema, document: Schema) -> Iterator[str]:
    yield f"**{operation.get('summary', '')}**"
    if operation.get("description"):
        yield ""
        yield operation["description"]
    content = operation.get("requestBody", {}).get("content", {})
    if content:
        yield ""
        yield "Body: " + ", ".join(f"`{kind}`" for kind in content) + "."
    if operation.get("parameters"):
        yield from ["", "| parameter | in | what it may be | |", "|---|---|---|---|"]
        for parameter in operation["parameters"]:
            what = describe(parameter.get("schema", {}), {"$defs": document["components"]["schemas"]})
            yield f"| `{parameter['name']}` | {parameter['in']} | {what} | {parameter.get('description', '')} |"
    yield from ["", "| status | |", "|---|---|"]
    for status, response in operation["responses"].items():
        meaning = " ".join(response.get("description", "").split())
        yield f"| {status} | {meaning}{_schema_name(response)} |"


def _schema_name(response: Schema) -> str:
    for content in response.get("content", {}).values():
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        if name:
            return f" (`{name}`)"
    return ""
