"""MkDocs hooks: pages generated from the code and from files at the root, and formulas as MathML."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterable, Iterator
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
    "reports/real.md": "reports/real.md",
}
"""Pages of the site that are files outside ``docs``."""

PICTURES = ("reports/ablation.png", "reports/real.png")
"""Pictures outside ``docs``."""

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\s*(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])\s*</(?P=tag)>',
    re.DOTALL,
)
"""HTML that the extension ``arithmatex`` writes for `$...$` and `$$...$$`."""

YAML_LINE = re.compile(r"^(?P<indent> {0,2})(?P<name>[a-z]\w*):[^#\n]*(?:#(?P<comment>.*))?$", re.MULTILINE)
"""A line of ``params.yaml`` that names a section or a value."""

JSON_TYPES = {"null": "`null`", "integer": "integer", "string": "text", "boolean": "`true`, `false`"}
JSON_BOUNDS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "multipleOf": "multiple of",
}

Schema = dict[str, Any]


@functools.cache
def generated() -> dict[str, str]:
    """Return the content of every generated page by its name."""
    sys.path[:0] = [str(ROOT)]  # so that `serving` is found
    pages = {page: repository_page(ROOT / name) for name, page in REPOSITORY_PAGES.items()}
    document = openapi()
    return pages | {
        "parameters.md": "\n".join(parameters_page()) + "\n",
        "commands.md": commands_page(),
        "api.md": "\n".join(api_page(document)) + "\n",
        "openapi.json": json.dumps(document, indent=1),
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
    """Replace formulas by MathML, which browsers draw without a script."""
    from latex2mathml.converter import convert

    def mathml(found: re.Match[str]) -> str:
        return convert(unescape(found["inline"] or found["block"]), display="inline" if found["inline"] else "block")

    return FORMULA.sub(mathml, html)


def repository_page(path: Path) -> str:
    """Return a file of the repository with links to pages of the site."""

    def moved(found: re.Match[str]) -> str:
        target = found[1].removeprefix("docs/")
        return f"]({REPOSITORY_PAGES.get(target, target)}{found[2]})"

    return re.sub(r"\]\(((?!\w+://)[^)#]+)(#?[^)]*)\)", moved, path.read_text(encoding="utf-8"))


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a Markdown table, a blank line first."""
    yield ""
    for row in (header, ("---",) * len(header), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def parameters_page() -> Iterator[str]:
    """Yield the lines of a page with the value, type and comment of every parameter."""
    from mme.config import Params

    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    values, comments = yaml.safe_load(text), comments_of(text)
    schema = Params.model_json_schema()
    yield from (
        "# Parameters",
        "",
        "Every value of every run is in `params.yaml`; unknown and missing names are errors. `mme params` checks",
        "a file; `dvc exp run register -S SECTION.NAME=VALUE` changes a value for one run.",
    )
    for section, unresolved in schema["properties"].items():
        described = resolve(unresolved, schema)
        about = described.get("description") or comments.get((section, ""), "")
        about, _, attributes = about.partition("Attributes:")
        documented = dict(re.findall(r"^ +(\w+): (.+)$", attributes, re.MULTILINE))
        yield from ("", f"## {section}", "", " ".join(about.split()))
        rows = []
        for name, entry in described.get("properties", {section: described}).items():
            value = values[section].get(name, entry.get("default")) if "properties" in described else values[section]
            comment = comments.get((section, name)) or documented.get(name, "")
            shown = f"`{json.dumps(value, ensure_ascii=False)}`"
            rows.append((f"`{name}`", shown, describe(entry, schema), comment if name != section else ""))
        yield from table(("parameter", "value", "type", ""), rows)


def comments_of(text: str) -> dict[tuple[str, str], str]:
    """Return the comments of a two-level YAML file by (section, name); a section's own is by (section, "")."""
    found: dict[tuple[str, str], str] = {}
    section = ""
    for match in YAML_LINE.finditer(text):
        section = section if match["indent"] else match["name"]
        if match["comment"]:
            found[section, match["name"] if match["indent"] else ""] = match["comment"].strip()
    return found


def resolve(schema: Schema, root: Schema) -> Schema:
    """Replace a reference to a definition by the definition."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return {**root["$defs"][name], **schema} if name else schema


def describe(schema: Schema, root: Schema) -> str:
    """Describe a JSON schema in a few words."""
    schema = resolve(schema, root)
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return " or ".join(dict.fromkeys(describe(option, root) for option in options))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "any"))
    if kind == "array":
        inner = schema.get("items") or next(iter(schema.get("prefixItems", [])), None)
        of = f" of {describe(inner, root)}" if isinstance(inner, dict) and inner else ""
        exact = schema.get("minItems") if schema.get("minItems") == schema.get("maxItems") else None
        return f"list{of}" if exact is None else f"{exact} x {of.removeprefix(' of ')}"
    bounds = (f"{sign} {schema[key]:g}" for key, sign in JSON_BOUNDS.items() if key in schema)
    return " ".join([JSON_TYPES.get(kind, kind), *bounds])


def commands_page() -> str:
    """Return the help texts of the command line."""
    import typer
    from typer.cli import get_docs_for_click

    from mme.commands.app import app

    command = typer.main.get_command(app)
    with command.make_context("mme", [], resilient_parsing=True) as context:
        # Typer's own class and the one in its annotations are the same at run time.
        text = get_docs_for_click(obj=command, ctx=context, name="mme", title="Commands")  # type: ignore[arg-type]
    return re.sub(r"^\*\*(Usage|Arguments|Options|Commands)\*\*:", r"**\1**", text, flags=re.MULTILINE)


def openapi() -> Schema:
    """Return the service's OpenAPI document."""
    from serving.app import create_app
    from serving.settings import Settings

    document: Schema = create_app(Settings()).openapi()
    return document


def api_page(document: Schema) -> Iterator[str]:
    """Yield the lines of a page with every endpoint of the service."""
    yield from ("# HTTP API", "", document["info"].get("description", "").strip(), "")
    yield "A running service has this document at `/openapi.json`; [a copy](openapi.json) belongs to this page."
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield from ("", f"## {method.upper()} {path}", "", f"**{operation.get('summary', '')}**")
            yield from endpoint(operation, {"$defs": document["components"]["schemas"]})


def endpoint(operation: Schema, definitions: Schema) -> Iterator[str]:
    """Yield the lines of one endpoint: description, body, parameters, responses."""
    if "description" in operation:
        yield from ("", operation["description"])
    if "requestBody" in operation:
        yield from ("", "Body: " + ", ".join(f"`{kind}`" for kind in operation["requestBody"]["content"]) + ".")
    if operation.get("parameters"):
        rows = [
            (f"`{entry['name']}`", entry["in"], describe(entry["schema"], definitions), entry.get("description", ""))
            for entry in operation["parameters"]
        ]
        yield from table(("parameter", "in", "type", ""), rows)
    yield from table(("status", ""), [(code, meaning(answer)) for code, answer in operation["responses"].items()])


def meaning(response: Schema) -> str:
    """Describe a response of the service, with the name of its schema if it has one."""
    schemas = [content.get("schema", {}).get("$ref", "") for content in response.get("content", {}).values()]
    names = [f" (`{reference.rpartition('/')[2]}`)" for reference in schemas if reference]
    return " ".join(response.get("description", "").split()) + "".join(names[:1])
