from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from mme.system.markdown import code_span, markdown_table
from tests.names import ODD_NAMES

GITHUB = MarkdownIt("commonmark").enable("table")


def cells(text: str) -> list[list[Token]]:
    """The inline tokens of each cell below the header, by a parser of GitHub's Markdown."""
    tokens = GITHUB.parse(text)
    body = next(number for number, token in enumerate(tokens) if token.type == "tbody_open")
    return [token.children or [] for token in tokens[body:] if token.type == "inline"]


def escaped(name: str) -> str:
    return "".join(letter if letter >= " " else letter.encode("unicode_escape").decode() for letter in name)


def check_table(names: tuple[str, ...]) -> None:
    rows = [(code_span(name), number) for number, name in enumerate(names)]
    found = cells(markdown_table(("label", "number"), rows))
    assert len(found) == 2 * len(names)
    for name, (span,), (number,), expected in zip(names, found[::2], found[1::2], range(len(names)), strict=True):
        assert span.type == "code_inline"
        assert span.content == escaped(name)
        assert number.content == str(expected)


def test_any_class_name_stays_itself_in_a_table() -> None:
    check_table(ODD_NAMES)


@given(
    st.lists(st.text(alphabet="ab |`\\\n\t$<&*_é挥", min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=4)
)
def test_any_text_stays_itself_in_a_table(names: list[str]) -> None:
    check_table(tuple(names))


def test_a_cell_ends_neither_its_column_nor_its_line() -> None:
    text = markdown_table(("name", "value"), [("a|b", "c\nd")])
    assert [[token.content for token in cell] for cell in cells(text)] == [["a|b"], ["c d"]]
