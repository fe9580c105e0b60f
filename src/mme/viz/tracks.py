"""Pictures of tracks: lines over a dimmed frame, coloured by direction, with and without camera motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from mme.motion.tracking import TrackSlice, cell_centres
from mme.targets.drawing import Canvas
from mme.viz.drawing import (
    MARGIN_PX,
    TITLE_PX,
    Picture,
    blank_sheet,
    dimmed,
    draw_text,
    scale_to_height,
)

STILL_PX = 0.5
"""Length in pixels of the video below which a track is drawn as a dot."""

_STILL = (150, 150, 150)
_INVALID = (120, 60, 60)
_MIN_SPACING_PX = 11
_LEGEND_PX = 120
_MIN_COLUMN_PX = 360


@dataclass(frozen=True)
class PreviewRow:
    """Row of a contact sheet: a frame and the tracks of that one start frame."""

    title: str
    frame: Picture
    tracks: TrackSlice


def direction_colours(vectors: Float[np.ndarray, "*points 2"]) -> UInt8[np.ndarray, "*points 3"]:
    """Map directions ``(x, y)`` to hues in RGB: right is red, down yellow-green, left cyan, up violet."""
    degrees = np.degrees(np.arctan2(vectors[..., 1], vectors[..., 0])) % 360  # (*points,)
    hsv = np.stack([degrees / 2, np.full_like(degrees, 190), np.full_like(degrees, 255)], axis=-1)  # (*points, 3)
    flat = np.rint(hsv).astype(np.uint8).reshape(1, -1, 3)
    flat[..., 0] %= 180  # OpenCV's hues are half degrees
    return np.asarray(cv2.cvtColor(flat, cv2.COLOR_HSV2RGB), dtype=np.uint8).reshape(*vectors.shape[:-1], 3)


def draw_tracks(frame: Picture, tracks: TrackSlice, compensated: bool, height_px: int) -> Picture:
    """Draw the tracks of one start frame over that frame.

    A line runs from the start of a point to its end, whiter towards the end; a dot is a still point, a cross a point
    whose track is not valid to its last step.

    Args:
        frame: the start frame.
        tracks: tracks of one start frame.
        compensated: subtract camera motion.
        height_px: height of the picture.
    """
    scale = height_px / frame.shape[0]
    picture = dimmed(scale_to_height(frame, height_px))
    canvas = Canvas(picture, scale=1.0)

    # A regular subset of the points.
    displacements = (tracks.residuals() if compensated else tracks.displacements)[0]  # (h, w, L, 2)
    chosen = spaced_cells(tracks.cell, scale)
    grid = cell_centres(tracks.height, tracks.width, tracks.cell)[chosen].reshape(-1, 1, 2)  # (P, 1, 2)
    steps = displacements[chosen].reshape(len(grid), -1, 2)  # (P, L, 2)
    valid = (tracks.num_valid[0] == steps.shape[1])[chosen].reshape(-1)  # (P,)

    # Paths in pixels of the picture.
    path = np.concatenate([grid, grid + np.cumsum(steps, axis=1)], axis=1)  # (P, L + 1, 2)
    path = (path + 0.5) * scale - 0.5
    total = steps.sum(axis=1)  # (P, 2)
    moving = valid & (np.hypot(total[:, 0], total[:, 1]) >= STILL_PX)  # (P,)

    draw_crosses(picture, path[~valid, 0])
    for point in path[valid & ~moving, 0]:
        canvas.dot(point, _STILL, radius_px=1.25)
    # Longest last, so that the fastest points are on top.
    order = np.flatnonzero(moving)[np.argsort(np.square(total[moving]).sum(axis=-1), kind="stable")]
    colours = direction_colours(total)  # (P, 3)
    for number in order:
        draw_path(canvas, path[number], colours[number])
    return picture


def spaced_cells(cell: int, scale: float) -> tuple[slice, slice]:
    """Select rows and columns of cells so far apart that their tracks do not overlap."""
    every = max(1, int(np.ceil(_MIN_SPACING_PX / (cell * scale))))
    return (slice(every // 2, None, every),) * 2


def contact_sheet(rows: Sequence[PreviewRow], height_px: int = 300) -> Picture:
    """Draw raw tracks on the left and compensated ones on the right, one row per video, below a legend."""
    pairs = [
        (row.title, [draw_tracks(row.frame, row.tracks, compensated, height_px) for compensated in (False, True)])
        for row in rows
    ]
    column = max([_MIN_COLUMN_PX, *(pictures[0].shape[1] for _, pictures in pairs)])
    row_px = height_px + TITLE_PX + MARGIN_PX
    sheet = blank_sheet(_LEGEND_PX + len(rows) * row_px + MARGIN_PX, 2 * column + 3 * MARGIN_PX)
    _draw_legend(sheet, rows[0].tracks.displacements.shape[3] if rows else 0, column)

    top = _LEGEND_PX
    for title, pictures in pairs:
        draw_text(sheet, title, (MARGIN_PX, top + 18))
        for number, picture in enumerate(pictures):
            left = MARGIN_PX + number * (column + MARGIN_PX) + (column - picture.shape[1]) // 2
            sheet[top + TITLE_PX : top + TITLE_PX + height_px, left : left + picture.shape[1]] = picture
        top += row_px
    return sheet


def draw_crosses(picture: Picture, points: Float[np.ndarray, "P 2"]) -> None:
    """Mark points ``(x, y)`` whose tracks are not valid."""
    for x, y in points:
        centre = (round(float(x)), round(float(y)))
        cv2.drawMarker(picture, centre, _INVALID, cv2.MARKER_TILTED_CROSS, 5, 1, cv2.LINE_AA)


def draw_path(canvas: Canvas, path: Float[np.ndarray, "L 2"], colour: UInt8[np.ndarray, " 3"]) -> None:
    """Draw a polyline that turns whiter from its start to its end, where it has a head."""
    num_steps = len(path) - 1
    for step in range(num_steps):
        white = 0.35 * (step + 1) / num_steps
        red, green, blue = (int(value) for value in colour * (1 - white) + 255 * white)
        canvas.line(path[step : step + 2], (red, green, blue))
    red, green, blue = (int(value) for value in colour)
    canvas.dot(path[-1], (red, green, blue), radius_px=1.875)


def _draw_legend(sheet: Picture, length: int, column: int) -> None:
    # Wheel of colours.
    radius = 40
    centre_x, centre_y = MARGIN_PX + 50, 58
    ys, xs = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    wheel = direction_colours(np.stack([xs, ys], axis=-1).astype(np.float64))
    distance = np.hypot(xs, ys)
    ring = (distance <= radius) & (distance >= 0.45 * radius)
    area = sheet[centre_y - radius : centre_y + radius + 1, centre_x - radius : centre_x + radius + 1]
    area[ring] = wheel[ring]

    # Explanation, and titles of the columns.
    lines = (
        f"Tracks of {length} frames, coloured by direction.",
        "A head marks the end; a dot stays within half a pixel;",
        "a cross is not valid: it leaves the frame or fails forward-backward.",
    )
    for number, line in enumerate(lines):
        draw_text(sheet, line, (centre_x + radius + 24, 36 + 20 * number), 12)
    for number, title in enumerate(("as filmed", "camera motion removed")):
        draw_text(sheet, title, (MARGIN_PX + number * (column + MARGIN_PX), 114), 14)
