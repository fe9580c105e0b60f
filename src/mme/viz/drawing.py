"""Shared helpers for pictures of pixels: text, dimmed frames, titled panels, PNG files."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from matplotlib.font_manager import findfont, get_font

from mme.viz.lettering import written

Picture = UInt8[np.ndarray, "H W 3"]
"""RGB picture."""

BACKGROUND = (24, 24, 28)
MARGIN_PX = 10
TITLE_PX = 26
"""Height of a line of text above a picture."""

_TEXT = (225, 225, 225)


def blank_sheet(height: int, width: int) -> Picture:
    """Return a picture of the background colour."""
    return np.full((height, width, 3), BACKGROUND, dtype=np.uint8)


def scale_to_height(frame: Picture, height_px: int) -> Picture:
    """Resize a frame bicubically to a height."""
    size = (round(frame.shape[1] * height_px / frame.shape[0]), height_px)
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def dimmed(picture: Picture) -> Picture:
    """Darken and desaturate a picture, so that lines over it stand out."""
    gray = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(gray, 0.35, picture, 0.25, 8), dtype=np.uint8)


def draw_text(
    picture: Picture, text: str, position: tuple[int, int], size_px: float = 13, max_width: int | None = None
) -> None:
    """Write text of any script whose base line begins at ``position`` ``(x, y)``; what lies outside is cut off.

    Text wider than ``max_width`` pixels is written smaller.
    """
    shown, families = written(text)
    font = get_font([findfont(family) for family in families])
    font.set_size(size_px, 72)
    font.set_text(shown)
    font.draw_glyphs_to_bitmap(antialiased=True)
    letters = np.asarray(font.get_image())
    if max_width is not None and letters.shape[1] > max_width:
        draw_text(picture, text, position, size_px * max_width / (letters.shape[1] + size_px))
        return
    x, y = position
    top = y - letters.shape[0] + round(font.get_descent() / 64)
    area = picture[max(top, 0) : top + letters.shape[0], x : x + letters.shape[1]]
    shade = letters[max(-top, 0) :][: area.shape[0], : area.shape[1], None] / 255
    area[:] = np.rint(area * (1 - shade) + np.array(_TEXT) * shade)


def encode_png(picture: Picture) -> bytes:
    """Return a picture as the bytes of a PNG file."""
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()


def titled_row(panels: Sequence[tuple[str, Picture]], width: int) -> Picture:
    """Draw titled pictures side by side, shrunk to the width if necessary."""
    pictures = []
    for title, full in panels:
        shrink = min(1.0, (width / len(panels) - 2 * MARGIN_PX) / full.shape[1])
        panel = cv2.resize(full, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA).astype(np.uint8)
        sheet = blank_sheet(panel.shape[0] + TITLE_PX + MARGIN_PX, width // len(panels))
        draw_text(sheet, title, (MARGIN_PX, 18), max_width=sheet.shape[1] - 2 * MARGIN_PX)
        sheet[TITLE_PX : TITLE_PX + panel.shape[0], MARGIN_PX : MARGIN_PX + panel.shape[1]] = panel
        pictures.append(sheet)
    height = max(sheet.shape[0] for sheet in pictures)
    padded = [np.pad(sheet, ((0, height - sheet.shape[0]), (0, 0), (0, 0))) for sheet in pictures]
    row = np.hstack(padded)
    return np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)))
