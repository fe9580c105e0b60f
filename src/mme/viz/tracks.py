"""Pictures of tracks: lines over a dimmed frame, coloured by direction, with and without the camera's motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mme.motion.tracking import TrackSlice, cell_centres

Picture = NDArray[np.uint8]
"""RGB ``[H, W, 3]``."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_BACKGROUND = (24, 24, 28)
_TEXT = (225, 225, 225)
_STILL = (150, 150, 150)
_INVALID = (120, 60, 60)
_SHIFT = 4  # bits of sub-pixel precision in OpenCV's drawing
_MARGIN_PX = 10
_TITLE_PX = 26
_MIN_SPACING_PX = 11
STILL_PX = 0.5
"""A track shorter than this many pixels of the video is drawn as a dot."""


@dataclass(frozen=True)
class PreviewRow:
    """One line of a sheet: a frame ``[H, W, 3]`` and the tracks that start on it, ``S = 1``."""

    title: str
    frame: Picture
    tracks: TrackSlice


def direction_colours(vectors: NDArray[np.floating]) -> Picture:
    """A hue for each direction ``[..., 2]``, RGB ``[..., 3]``: right red, down yellow-green, left cyan, up violet."""
    degrees = np.degrees(np.arctan2(vectors[..., 1], vectors[..., 0])) % 360
    hsv = np.stack([degrees / 2, np.full_like(degrees, 190), np.full_like(degrees, 255)], axis=-1)
    flat = np.rint(hsv).astype(np.uint8).reshape(1, -1, 3)
    flat[..., 0] %= 180
    return np.asarray(cv2.cvtColor(flat, cv2.COLOR_HSV2RGB), dtype=np.uint8).reshape(*vectors.shape[:-1], 3)


def draw_tracks(frame: Picture, tracks: TrackSlice, compensated: bool, height_px: int) -> Picture:
    """Tracks of one start frame over that frame.

    A line runs from a point's start to its end, whiter towards the end; a dot is a point that stays, a cross one whose
    track is not valid to its last step.

    Args:
        frame: the frame that the tracks start on.
        tracks: of one start frame.
        compensated: whether the camera's motion is taken out.
        height_px: of the picture.
    """
    scale = height_px / frame.shape[0]
    size = (round(frame.shape[1] * scale), height_px)
    canvas = dimmed(cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8))
    displacements = (tracks.residuals() if compensated else tracks.displacements)[0]  # (h, w, L, 2)
    chosen = spaced(tracks.cell, scale)
    grid = cell_centres(tracks.height, tracks.width, tracks.cell)[chosen].reshape(-1, 1, 2)
    steps = displacements[chosen].reshape(len(grid), -1, 2)
    valid = (tracks.num_valid[0] == steps.shape[1])[chosen].reshape(-1)
    path = (np.concatenate([grid, grid + np.cumsum(steps, axis=1)], axis=1) + 0.5) * scale - 0.5
    total = steps.sum(axis=1)
    moving = valid & (np.hypot(total[:, 0], total[:, 1]) >= STILL_PX)
    draw_crosses(canvas, path[~valid, 0])
    for point in path[valid & ~moving, 0]:
        cv2.circle(canvas, fixed_point(point), 20, _STILL, -1, cv2.LINE_AA, _SHIFT)
    # Longest last, so that what moves most is on top.
    order = np.flatnonzero(moving)[np.argsort(np.square(total[moving]).sum(axis=-1), kind="stable")]
    colours = direction_colours(total)
    for number in order:
        draw_line(canvas, path[number], colours[number])
    return canvas


def spaced(cell: int, scale: float) -> tuple[slice, slice]:
    """Which rows and columns of cells to draw so that tracks do not lie on each other."""
    every = max(1, int(np.ceil(_MIN_SPACING_PX / (cell * scale))))
    return (slice(every // 2, None, every),) * 2


def contact_sheet(rows: Sequence[PreviewRow], height_px: int = 300) -> Picture:
    """Raw tracks on the left, those without camera motion on the right, a row a video, and a key to the colours."""
    pairs = [
        (row.title, [draw_tracks(row.frame, row.tracks, compensated, height_px) for compensated in (False, True)])
        for row in rows
    ]
    column = max([360, *(pictures[0].shape[1] for _, pictures in pairs)])
    key_px = 120
    width = 2 * column + 3 * _MARGIN_PX
    height = key_px + len(rows) * (height_px + _TITLE_PX + _MARGIN_PX) + _MARGIN_PX
    sheet = np.full((height, width, 3), _BACKGROUND, dtype=np.uint8)
    _draw_key(sheet, rows[0].tracks.displacements.shape[3] if rows else 0, column)
    top = key_px
    for title, pictures in pairs:
        write_text(sheet, title, (_MARGIN_PX, top + 18))
        for number, picture in enumerate(pictures):
            left = _MARGIN_PX + number * (column + _MARGIN_PX) + (column - picture.shape[1]) // 2
            sheet[top + _TITLE_PX : top + _TITLE_PX + height_px, left : left + picture.shape[1]] = picture
        top += height_px + _TITLE_PX + _MARGIN_PX
    return sheet


def encode_png(picture: Picture) -> bytes:
    """A picture as the bytes of a PNG file."""
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()


def dimmed(picture: Picture) -> Picture:
    """Darker and greyer, so that lines stand out."""
    gray = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(gray, 0.35, picture, 0.25, 8), dtype=np.uint8)


def draw_crosses(canvas: Picture, points: NDArray[np.floating]) -> None:
    """Mark points ``[P, 2]`` that are not valid."""
    for point in points:
        cv2.drawMarker(canvas, _pixel(point), _INVALID, cv2.MARKER_TILTED_CROSS, 5, 1, cv2.LINE_AA)


def draw_line(canvas: Picture, path: NDArray[np.floating], colour: Picture) -> None:
    """A polyline through ``[L + 1, 2]`` that turns whiter from its start to its end, where it has a head."""
    num_steps = len(path) - 1
    for step in range(num_steps):
        share = (step + 1) / num_steps
        shade = tuple(int(value) for value in colour * (1 - 0.35 * share) + 255 * 0.35 * share)
        cv2.line(canvas, fixed_point(path[step]), fixed_point(path[step + 1]), shade, 1, cv2.LINE_AA, _SHIFT)
    head = tuple(int(value) for value in colour)
    cv2.circle(canvas, fixed_point(path[-1]), 30, head, -1, cv2.LINE_AA, _SHIFT)


def _draw_key(sheet: Picture, length: int, column: int) -> None:
    radius, centre_x, centre_y = 40, _MARGIN_PX + 50, 58
    ys, xs = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    wheel = direction_colours(np.stack([xs, ys], axis=-1).astype(np.float64))
    distance = np.hypot(xs, ys)
    ring = (distance <= radius) & (distance >= 0.45 * radius)
    area = sheet[centre_y - radius : centre_y + radius + 1, centre_x - radius : centre_x + radius + 1]
    area[ring] = wheel[ring]
    left = centre_x + radius + 24
    lines = (
        f"Tracks of {length} frames, coloured by direction.",
        "A head marks the end; a dot stays within half a pixel;",
        "a cross is not valid: it leaves the frame or fails forward-backward.",
    )
    for number, line in enumerate(lines):
        write_text(sheet, line, (left, 36 + 20 * number), 0.42)
    for number, title in enumerate(("as filmed", "camera motion taken out")):
        write_text(sheet, title, (_MARGIN_PX + number * (column + _MARGIN_PX), 114), 0.5)


def write_text(sheet: Picture, text: str, place: tuple[int, int], size: float = 0.45) -> None:
    """Write with the left end of the base line at ``place`` ``(x, y)``."""
    cv2.putText(sheet, text, place, _FONT, size, _TEXT, 1, cv2.LINE_AA)


def _pixel(point: NDArray[np.floating]) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))


def fixed_point(point: NDArray[np.floating]) -> tuple[int, int]:
    """Sub-pixel position in OpenCV's fixed point."""
    return round(float(point[0]) * 2**_SHIFT), round(float(point[1]) * 2**_SHIFT)
