"""Motion primitives: the embedded data set, whose classes differ in motion only.

One textured sprite moves over a textured background while the camera drifts. The class determines the motion of the
sprite and nothing else: in a frame drawn uniformly from a video, position, size, angle, outline and texture have the
same distribution in every class, so that a single frame does not predict the class.

- Position: the frame is a torus (a sprite that leaves on the right enters on the left), so the position is uniform in
  every frame of every class.
- Angle: uniform in every frame.
- Size: growing sprites have the size ``s0 * zoom ** (t - centre)``. Sprites that do not grow have the size of a growing
  one at a random frame, so the distributions of sizes are equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from mme.config import Primitive, SynthesizeParams

CLASSES: Final[tuple[str, ...]] = get_args(Primitive)

_DIAGONAL: Final = math.sqrt(0.5)
_DIRECTIONS: Final = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up-left": (-_DIAGONAL, -_DIAGONAL),
    "up-right": (_DIAGONAL, -_DIAGONAL),
    "down-left": (-_DIAGONAL, _DIAGONAL),
    "down-right": (_DIAGONAL, _DIAGONAL),
}
_TURNS: Final = {"clockwise": 1, "counterclockwise": -1}  # y points down: a positive angle turns clockwise
_ZOOMS: Final = {"grow": 1, "shrink": -1}
_ORBITS: Final = {"orbit-clockwise": 1, "orbit-counterclockwise": -1}
_SHAKES: Final = {"shake-horizontal": (1, 0), "shake-vertical": (0, 1)}

# The look of the data set and the paths of the classes that `synthesize.classes` leaves out by default. They define the
# data set as the textures do; an edit here makes it anew. The difficulty of the motion is in `params.yaml`.
SPRITE_SIZE: Final = (0.65, 1.0)
"""Side of a sprite as a share of the frame, smallest and largest: large enough to be seen in every patch."""

TURN_DEGREES: Final = (6.0, 10.0)
"""Rotation per frame: 0.4 to 0.7 of a turn in 24 frames."""

ZOOM: Final = (1.03, 1.05)
"""Growth factor per frame, above 1: shrinking uses its inverse."""

SWING_PX: Final = (5.0, 8.0)
"""Radius of an orbit and amplitude of a shake, for frames of 64 pixels."""

PERIOD_FRAMES: Final = (16.0, 24.0)
"""Period of orbits and shakes: about one per video of 24 frames."""

NOISE_STD: Final = 2.0
"""Sensor noise in grey levels, so that flat areas do not stay constant."""

_SUPERSAMPLING: Final = 2
_TEXTURE_PX: Final = 96

Floats = NDArray[np.floating[Any]]
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """Ground truth of one video.

    Attributes:
        label: one of ``CLASSES``.
        centres: [T, 2] sprite centre (x, y) in pixels, unwrapped, camera drift excluded.
        angles: [T] radians, clockwise.
        sides: [T] side of the sprite's texture in pixels.
        camera: [T, 2] displacement (x, y) of the whole picture since frame 0.
        sprite: RGB texture, square.
        outline: opacity of the sprite, float32 in [0, 1].
        background: RGB texture, twice the frame's size.
        size: side of a frame in pixels.
        noise_seed: seed of the sensor noise.
        noise_std: its deviation in grey levels.
    """

    label: str
    centres: Floats
    angles: Floats
    sides: Floats
    camera: Floats
    sprite: Image
    outline: NDArray[np.float32]
    background: Image
    size: int
    noise_seed: int
    noise_std: float

    def sprite_matrix(self, frame: int, scale: float = 1.0) -> Floats:
        """Return the [2, 3] affine map from texture pixels to frame pixels times ``scale``, without wrapped copies."""
        zoom = self.sides[frame] / _TEXTURE_PX
        cos, sin = np.cos(self.angles[frame]) * zoom, np.sin(self.angles[frame]) * zoom
        linear = np.array([[cos, -sin], [sin, cos]])
        centre = (self.centres[frame] + self.camera[frame]) % self.size
        middle = (_TEXTURE_PX - 1) / 2
        shift = centre - linear @ np.array([middle, middle])
        # Pixel centres are integers: scaling about the corner (-0.5, -0.5) keeps them aligned.
        matrix: Floats = np.column_stack([linear, shift + 0.5]) * scale - np.array([[0, 0, 0.5], [0, 0, 0.5]])
        return matrix

    def render(self) -> Image:
        """Render all frames, uint8 RGB [T, size, size, 3]."""
        return np.stack([self.frame(index) for index in range(len(self.angles))])

    def frame(self, index: int) -> Image:
        """Render one frame, uint8 RGB [size, size, 3]."""
        picture = self._paint(index)
        noise = np.random.default_rng((self.noise_seed, index)).standard_normal(picture.shape, np.float32)
        return np.clip(np.rint(picture + self.noise_std * noise), 0, 255).astype(np.uint8)

    def _paint(self, frame: int) -> NDArray[np.float32]:
        side = self.size * _SUPERSAMPLING
        shift = self.camera[frame] * _SUPERSAMPLING - self.size * _SUPERSAMPLING / 2
        matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
        canvas = cv2.warpAffine(self.background, matrix, (side, side), borderMode=cv2.BORDER_WRAP)
        placed = self.sprite_matrix(frame, _SUPERSAMPLING)
        for offset_x in (-side, 0, side):
            for offset_y in (-side, 0, side):
                matrix = placed + np.array([[0, 0, offset_x], [0, 0, offset_y]])
                if not _touches(matrix, side):
                    continue
                colour = cv2.warpAffine(self.sprite, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
                opacity = cv2.warpAffine(self.outline, matrix, (side, side))
                canvas = cv2.blendLinear(colour, canvas, opacity, 1 - opacity)
        return cv2.resize(canvas, (self.size, self.size), interpolation=cv2.INTER_AREA).astype(np.float32)


def sample_scene(label: str, params: SynthesizeParams, seed: tuple[int, ...]) -> Scene:
    """Draw a scene of class ``label``; equal seeds give equal scenes on every machine.

    Raises:
        ValueError: ``label`` is not one of ``CLASSES``.
    """
    if label not in CLASSES:
        raise ValueError(f"label {label!r} is not a motion primitive; known: {', '.join(CLASSES)}")
    rng = np.random.default_rng(seed)
    num_frames, size = params.num_frames, params.size
    time = np.arange(num_frames) - (num_frames - 1) / 2  # (T,), 0 at the centre

    centres = rng.uniform(0, size, 2) + _displacement(label, time, params, rng)  # (T, 2)
    angles = rng.uniform(0, 2 * np.pi) + _TURNS.get(label, 0) * np.radians(rng.uniform(*TURN_DEGREES)) * time

    # Sizes: sprites that do not grow stay at one moment of a growing one.
    growth = np.log(rng.uniform(*ZOOM))
    moment = time * _ZOOMS[label] if label in _ZOOMS else np.full(num_frames, rng.choice(time))
    sides = size * rng.uniform(*SPRITE_SIZE) * np.exp(growth * moment)

    # The camera drifts in a straight line.
    heading = rng.uniform(0, 2 * np.pi)
    drift_px = rng.uniform(0, params.drift_px)
    camera = np.outer(time - time[0], drift_px * np.array([np.cos(heading), np.sin(heading)]))  # (T, 2)

    sprite, outline = _sprite(rng)
    return Scene(
        label=label,
        centres=centres,
        angles=angles,
        sides=sides,
        camera=camera,
        sprite=sprite,
        outline=outline,
        background=_background(rng, 2 * size * _SUPERSAMPLING),
        size=size,
        noise_seed=int(rng.integers(2**63)),
        noise_std=NOISE_STD,
    )


def _displacement(label: str, time: Floats, params: SynthesizeParams, rng: np.random.Generator) -> Floats:
    """Return the [T, 2] displacement of the sprite's centre.

    Every class draws the same random numbers, so that the remaining draws do not depend on the class.
    """
    speed, radius = rng.uniform(*params.speed_px), rng.uniform(*SWING_PX)
    phase = rng.uniform(0, 2 * np.pi) + 2 * np.pi * time / rng.uniform(*PERIOD_FRAMES)
    if label in _DIRECTIONS:
        return np.outer(time * speed, _DIRECTIONS[label])
    if label in _ORBITS:
        return radius * np.column_stack([np.cos(phase), _ORBITS[label] * np.sin(phase)])
    if label in _SHAKES:
        return radius * np.outer(np.sin(phase), _SHAKES[label])
    return np.zeros((len(time), 2))


def _touches(matrix: Floats, side: int) -> bool:
    """Return whether the texture's square, mapped by ``matrix``, overlaps the canvas."""
    corners = np.array([[x, y, 1] for x in (0, _TEXTURE_PX) for y in (0, _TEXTURE_PX)]) @ matrix.T
    return bool((corners.max(axis=0) >= -1).all() and (corners.min(axis=0) <= side).all())


def _sprite(rng: np.random.Generator) -> tuple[Image, NDArray[np.float32]]:
    """Draw a random star-shaped polygon with stripes in two colours; return texture and opacity."""
    num_corners = int(rng.integers(3, 8))
    turn = 2 * np.pi * (np.arange(num_corners) + rng.uniform(-0.25, 0.25, num_corners)) / num_corners
    radius = rng.uniform(0.55, 1.0, num_corners) * _TEXTURE_PX * 0.48
    corners = _TEXTURE_PX / 2 + radius[:, None] * np.column_stack([np.cos(turn), np.sin(turn)])
    bright, dark = rng.integers(150, 256, 3), rng.integers(0, 106, 3)
    ys, xs = np.mgrid[:_TEXTURE_PX, :_TEXTURE_PX]
    heading, width = rng.uniform(0, np.pi), rng.uniform(0.22, 0.45) * _TEXTURE_PX
    wave = np.sin(2 * np.pi * ((xs * np.cos(heading) + ys * np.sin(heading)) / width + rng.uniform()))
    sprite = np.where(wave[..., None] > 0, bright, dark).astype(np.uint8)
    mask = np.zeros(sprite.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(corners * 16).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    return sprite, (mask / 255).astype(np.float32)


def _background(rng: np.random.Generator, side: int) -> Image:
    """Draw a smooth, periodic random texture, mid grey on average: RGB [side, side, 3]."""
    cells, margin = 8, 2  # a wrapped margin makes the interpolated texture periodic
    coarse = np.pad(rng.uniform(70, 186, (cells, cells, 3)), ((margin, margin), (margin, margin), (0, 0)), mode="wrap")
    padded = side // cells * (cells + 2 * margin)
    smooth = cv2.resize(coarse.astype(np.float32), (padded, padded), interpolation=cv2.INTER_CUBIC)
    start = side // cells * margin
    return np.clip(np.rint(smooth[start : start + side, start : start + side]), 0, 255).astype(np.uint8)
