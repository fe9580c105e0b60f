"""Target ``hog``: histograms of oriented gradients along the tracks (Sun et al. 2023, section 3.3, shape changes).

Histograms (Dalal & Triggs 2005) are taken at sub-pixel positions of many frames at once:

- gradient ``(dx, dy)``: differences of luma between the right and left, lower and upper neighbour; zero across the
  frame's border;
- unsigned orientation in nine circular bins with centres at 0, 20, ..., 160 degrees, 0 being a vertical edge (gradient
  along x). A vertical edge falls on a centre, so that noise does not flip it between the first and the last bin; a
  horizontal edge falls midway between the bins 4 and 5, which share it evenly. The magnitude is shared linearly
  between the two nearest bins, so that there is no jump anywhere;
- the histogram at a position sums a square window centred on it, the frame being zero outside;
- the sum is divided by ``max(norm, norm_floor * area of the window)``: ``norm_floor`` is the mean difference of grey
  levels per pixel below which a histogram fades. With a tiny floor a flat cell would become a unit vector of noise,
  which nothing can predict.
"""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int32, Int64, UInt8
from numpy.lib.stride_tricks import as_strided
from torch import Tensor
from torch.nn.functional import embedding_bag

from mme.targets.drawing import PREDICTED_COLOUR, TRUE_COLOUR, Canvas, Colour, TokenCanvas
from mme.targets.grid import CELLS_PER_TOKEN, HiddenTokens, TargetSpec
from mme.video.colour import BLACK, WHITE

NUM_BINS = 9

LEVELS = 255
"""Largest 8-bit grey level; a difference of two levels takes 511 values."""

_SPAN = 2 * LEVELS + 1

_FLAT = LEVELS * _SPAN + LEVELS
"""Row of `soft_bins` of the gradient (0, 0)."""

LOOKUPS_PER_CALL = 2**20
"""Pixels looked up at once: their 8 MB stay near the processor's caches and in memory that the process already has.
Calls of 16 times as many take 1.5 times as long."""

LEVELS_PER_PART = 2**17
"""Pixels whose gradients are coded at once, half a megabyte of 32-bit levels, for the same reason."""

PIXELS_PER_CALL = 2**27
"""Pixels of frames whose gradients are computed at once: a gigabyte on a CUDA device."""


class Hog:
    """HOG of a token's cells at each step of their tracks, or at the first step only (``hog_steps``)."""

    name = "hog"
    label = "histograms of oriented gradients"
    default_weight = 1.0
    inputs = ("tracks", "luma")
    centre: Literal["mean"] = "mean"

    def shape(self, spec: TargetSpec) -> tuple[int, ...]:
        """Shape ``[C, L or 1, 9]`` of one token's target."""
        return CELLS_PER_TOKEN, spec.num_hog_steps, NUM_BINS

    def compute(self, tokens: HiddenTokens) -> tuple[Float[Tensor, "B M C S 9"], Bool[Tensor, "B M C"]]:
        """HOG around each point in the frame of its step, and the cells whose track is valid."""
        tracks, luma, spec = tokens.tracks, tokens.luma, tokens.spec
        num_clips, num_frames = luma.shape[:2]
        expected = [len(spec.dense_frames), spec.height, spec.width]
        if list(luma.shape[1:]) != expected:
            raise ValueError(f"frames of {list(luma.shape[1:])}, expected {expected}")

        points = tracks.path[..., : spec.num_hog_steps, :]  # (B, M, C, S, 2)
        frames = _step_frames(spec, luma.device)[tracks.tubelet][:, :, None].expand(points.shape[:-1])

        # A few clips at once, so that the memory has a bound.
        parts = []
        per_call = max(1, PIXELS_PER_CALL // luma[0].numel())
        for begin in range(0, num_clips, per_call):
            part = slice(begin, begin + per_call)
            clip = torch.arange(len(luma[part]), device=luma.device).view(-1, 1, 1, 1)
            place = frames[part] + num_frames * clip
            parts.append(hog_at(luma[part].flatten(0, 1), points[part], place, spec.hog_window_px, spec.hog_norm_floor))
        return torch.cat(parts), tracks.valid

    def draw(
        self, canvas: TokenCanvas, true: Float[np.ndarray, "M C S 9"], predicted: Float[np.ndarray, "M C S 9"] | None
    ) -> None:
        """Draw a star per cell, from the first step's histogram."""
        for values, colour in ((true, TRUE_COLOUR), (predicted, PREDICTED_COLOUR)):
            if values is None:
                continue
            for centre, steps in zip(canvas.cells[canvas.valid], values[canvas.valid], strict=True):
                draw_star(canvas, centre, steps[0], 0.55 * canvas.spec.cell, colour)


@functools.lru_cache(maxsize=8)
def _step_frames(spec: TargetSpec, device: torch.device) -> Int64[Tensor, "K S"]:
    """Raw frames of the steps of each tubelet, as places among those that are read."""
    steps = [[spec.dense_frames.index(start + step) for step in range(spec.num_hog_steps)] for start in spec.starts(0)]
    return torch.tensor(steps, device=device)


def hog_at(
    luma: UInt8[Tensor, "T H W"],
    points: Float32[Tensor, "*S 2"],
    frames: Int64[Tensor, "*S"],
    window: int,
    norm_floor: float,
) -> Float32[Tensor, "*S 9"]:
    """Normalised histograms, of norm at most 1, at sub-pixel positions.

    Args:
        luma: brightness of frames, `BLACK` to `WHITE`.
        points: ``(x, y)``, pixels, pixel centres at integers; clamped to the frame.
        frames: frame of each point.
        window: side of the window, pixels.
        norm_floor: mean gradient, of 255 grey levels, below which a histogram fades.
    """
    x, y = (line.flatten() for line in _window_corners(points, window, *luma.shape[1:]))
    least_norm = norm_floor * (WHITE - BLACK) / 255 * window**2  # luma has fewer levels than the floor's unit
    if luma.is_cuda:
        from mme.targets.hog_kernel import window_histograms  # Triton comes with PyTorch for CUDA only

        histograms = window_histograms(luma, x, y, frames.flatten(), window, least_norm)
    else:
        histograms = look_up_histograms(luma, x, y, frames.flatten(), window)
        histograms = histograms / torch.linalg.vector_norm(histograms, dim=1, keepdim=True).clamp(min=least_norm)
    return histograms.view(*points.shape[:-1], NUM_BINS)


def look_up_histograms(
    luma: UInt8[Tensor, "T H W"],
    x: Float32[Tensor, " P"],
    y: Float32[Tensor, " P"],
    frames: Int64[Tensor, " P"],
    window: int,
) -> Float32[Tensor, "P 9"]:
    """Histograms of windows whose first column and row are ``x`` and ``y``, from a table of every gradient."""
    pad = window // 2 + 1
    codes = gradient_codes(luma, pad)

    # Windows that lie on whole pixels, as those of cells' centres do, cover one row and column less.
    right, down = x - x.floor(), y - y.floor()
    side = window + int(bool(right.any() or down.any()))

    # Every window of every frame, as a view; NumPy copies rows of a window at once, PyTorch would index each pixel.
    height, width = codes.shape[1:]
    flat = codes.flatten().numpy()
    num_windows = len(flat) - (side - 1) * (width + 1)
    windows = as_strided(flat, (num_windows, side, side), (4, 4 * width, 4), writeable=False)

    per_call = max(1, LOOKUPS_PER_CALL // side**2)
    first = ((frames * height + (y.floor().long() + pad)) * width + x.floor().long() + pad).numpy()  # (P)
    table = soft_bins(luma.device)
    parts = []
    for begin in range(0, len(first), per_call):
        part = slice(begin, begin + per_call)
        chosen = torch.from_numpy(windows[first[part]]).flatten(1)  # (p, side^2)
        weights = None if side == window else _edge_weights(right[part], down[part], side)
        parts.append(embedding_bag(chosen, table, per_sample_weights=weights, mode="sum"))  # (p, 9)
    return torch.cat(parts) if parts else table.new_zeros((0, NUM_BINS))


def _window_corners(
    points: Float32[Tensor, "*S 2"], window: int, height: int, width: int
) -> tuple[Float32[Tensor, "*S"], Float32[Tensor, "*S"]]:
    """First column and row, fractional, of the windows centred on points clamped to the frame."""
    low = -0.5 if window % 2 == 0 else 0.0
    reach = (window - 1) / 2
    x = points[..., 0].clamp(low, width - 1 - low) - reach
    y = points[..., 1].clamp(low, height - 1 - low) - reach
    return x, y


def _edge_weights(
    right: Float32[Tensor, " P"], down: Float32[Tensor, " P"], side: int
) -> Float32[Tensor, "P {side}*{side}"]:
    """Bilinear weights of the pixels under windows that are moved off the pixels by fractions."""
    columns = torch.ones((len(right), side), device=right.device)
    columns[:, 0] -= right
    columns[:, -1] = right
    rows = torch.ones((len(down), side), device=down.device)
    rows[:, 0] -= down
    rows[:, -1] = down
    return (rows[:, :, None] * columns[:, None, :]).flatten(1)


def gradient_codes(luma: UInt8[Tensor, "T H W"], pad: int) -> Int32[Tensor, "T H+2*{pad} W+2*{pad}"]:
    """Row in `soft_bins` of each pixel's gradient; flat beyond the frame."""
    num_frames, height, width = luma.shape
    codes = torch.full((num_frames, height + 2 * pad, width + 2 * pad), _FLAT, dtype=torch.int32, device=luma.device)
    inner = codes[:, pad : pad + height, pad : pad + width]
    per_part = max(1, LEVELS_PER_PART // (height * width))
    for frames, part in zip(luma.split(per_part), inner.split(per_part), strict=True):
        levels = frames.int()
        part[:, 1:-1].add_(levels[:, 2:], alpha=_SPAN).sub_(levels[:, :-2], alpha=_SPAN)
        part[:, :, 1:-1].add_(levels[:, :, 2:]).sub_(levels[:, :, :-2])
    return codes


@functools.cache
def soft_bins(device: torch.device) -> Float32[Tensor, "rows 9"]:
    """Soft histogram of every possible gradient; row ``(dy + 255) * 511 + dx + 255``.

    Differences of 8-bit levels take few values, so a table is both exact and faster than trigonometry.
    """
    dy, dx = np.mgrid[-LEVELS : LEVELS + 1, -LEVELS : LEVELS + 1].astype(np.float64)
    place = np.degrees(np.arctan2(dy, dx)) % 180.0 / (180.0 / NUM_BINS)  # (511, 511), in bins
    low = np.floor(place)
    weight = place - low
    magnitude = np.hypot(dx, dy)
    table = np.zeros((_SPAN, _SPAN, NUM_BINS), dtype=np.float32)
    for number in range(NUM_BINS):
        table[..., number] += magnitude * (1 - weight) * (low % NUM_BINS == number)
        table[..., number] += magnitude * weight * ((low + 1) % NUM_BINS == number)
    return torch.from_numpy(table.reshape(-1, NUM_BINS)).to(device)


def draw_star(
    canvas: Canvas, centre: Float[np.ndarray, " 2"], histogram: Float[np.ndarray, " 9"], reach: float, colour: Colour
) -> None:
    """Draw a ray per bin, along the edges that it counts, as long as its share of ``reach`` clip pixels."""
    angles = np.radians(90 + 180 / NUM_BINS * np.arange(NUM_BINS))  # an edge is across its gradient
    rays = histogram[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1) * reach  # (9, 2)
    for ray, share in zip(rays, histogram, strict=True):
        if share > 0.05:
            red, green, blue = (int(value * min(1.0, 0.35 + share)) for value in colour)
            canvas.line(np.stack([centre - ray, centre + ray]), (red, green, blue))


HOG = Hog()
