from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure

from mme.viz.data_figure import data_figure
from mme.viz.drawing import blank_sheet, draw_text
from mme.viz.lettering import lettering, no_formula, written
from mme.viz.plots import confusion_figure, save_figure
from tests.factories import row
from tests.names import ODD_NAMES


def texts(figure: Figure) -> list[str]:
    return [label.get_text() for axes in figure.axes for label in axes.get_xticklabels()]


def test_figures_of_any_names_are_drawn_without_a_warning(tmp_path: Path) -> None:
    """Warnings are errors here, and a missing letter is one of matplotlib's warnings."""
    counts = np.arange(len(ODD_NAMES) ** 2).reshape(len(ODD_NAMES), -1) % 3
    save_figure(confusion_figure(counts, ODD_NAMES), tmp_path / "confusion.png")
    videos = [row(f"v{number}", "train", label=name) for number, name in enumerate(ODD_NAMES)]
    save_figure(data_figure(videos, "folder: /视频/$a$ b", 16), tmp_path / "data.png")
    assert min(path.stat().st_size for path in tmp_path.iterdir()) > 20_000


def test_names_are_written_as_they_are() -> None:
    plain = ("Ελληνικά", "a$b$c", "x_y|z'", "{}[]%s%%", "قفز", "#1")
    letters = lettering(plain)
    assert letters.note == ""
    assert [name.replace(r"\$", "$") for name in letters.names] == list(plain)


@pytest.mark.parametrize("name", ["$", "a$b$c", r"\$", r"$\$$", r"\\$x$", "$5 or $6"])
def test_no_name_is_a_formula(name: str) -> None:
    """By matplotlib's own rule: without an even number of plain dollars, escaped ones are shown as dollars."""
    figure = Figure()
    text = figure.text(0, 0, no_formula(name))
    assert text._preprocess_math(text.get_text()) == (name, False)  # type: ignore[attr-defined]


def test_a_name_without_letters_is_a_number_that_the_figure_explains() -> None:
    names = ("wave", "\U00013000", "jump \U00013000", "line\nbreak", "x" * 50)  # a hieroglyph
    letters = lettering(names)
    assert letters.names == ("wave", "#2", "#3 jump", r"line\nbreak", "x" * 31 + "…")
    assert "#N" in letters.note
    assert letters.note in confusion_figure(np.eye(5, dtype=int), names).axes[0].get_xlabel()


def test_numbers_of_the_data_figure_are_those_of_the_sorted_labels() -> None:
    labels = ["b", "\U00013000", "\U00013000", "a", "a", "a"]
    figure = data_figure([row(f"v{number}", "train", label=name) for number, name in enumerate(labels)], "x", 16)
    assert texts(figure)[:3] == ["a", "#3", "b"]


def test_an_installed_font_is_found_at_once(tmp_path: Path) -> None:
    """A font that has only one letter, put where a user's fonts are; in a new process, as fonts are looked up once."""
    pen = TTGlyphPen(None)
    for x, y in ((0, 0), (0, 700), (500, 700), (500, 0)):
        (pen.lineTo if pen.points else pen.moveTo)((x, y))
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "wave"])
    builder.setupCharacterMap({ord("挥"): "wave"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "wave": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (600, 0), "wave": (600, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Only Wave", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    (tmp_path / "fonts").mkdir()
    builder.save(tmp_path / "fonts" / "wave.ttf")
    code = (
        "import json, sys; from mme.viz.lettering import lettering; found = lettering(('挥', '跃'));"
        "import numpy as np; from mme.viz.plots import confusion_figure, save_figure;"
        "save_figure(confusion_figure(np.eye(2), ('挥', '跃')), sys.argv[1]);"
        "print(json.dumps([found.names, found.families]))"
    )
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path)}
    words = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "x.png")]
    answer = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    names, families = json.loads(answer.stdout)
    assert names[0] == "挥"
    assert families[:2] == ["DejaVu Sans", "Only Wave"] or names[1] == "跃"  # a machine may have a font with both


def test_text_on_pictures_is_drawn_in_any_script_and_cut_at_the_edge() -> None:
    assert written("a \U00013000\n")[0] == r"a \U00013000\n"
    drawn = []
    for text in ("a.mp4", "é.mp4", "قفز", "a\U00013000" + "long" * 40):
        picture = blank_sheet(26, 120)
        draw_text(picture, text, (10, 18))
        assert (picture[:, :8] == blank_sheet(26, 8)).all()
        assert (picture != blank_sheet(26, 120)).any()
        drawn.append(picture)
    assert (drawn[0] != drawn[1]).any()
    assert (drawn[3][:, -1] != blank_sheet(26, 1)[:, 0]).any()


def test_text_that_is_too_wide_is_written_smaller() -> None:
    for text, width in (("short", 200), ("92% of the tracks valid; camera's motion trusted in 44 of 44 frames", 200)):
        picture = blank_sheet(26, 600)
        draw_text(picture, text, (10, 18), max_width=width)
        written_columns = (picture != blank_sheet(26, 600)).any(axis=(0, 2)).nonzero()[0]
        assert 10 <= written_columns[0] < written_columns[-1] <= 10 + width
