"""Textured frames whose motion is known in closed form."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_TEXTURE_PX = 768
_SUPERSAMPLING = 2


@dataclass(frozen=True)
class Similarity:
    """``p -> centre + scale * rotation(p - centre) + shift`` a frame, in pixels, degrees clockwise (y points down)."""

    shift: tuple[float, float] = (0.0, 0.0)
    degrees: float = 0.0
    scale: float = 1.0

    def matrix(self, num_frames: int, centre: tuple[float, float]) -> NDArray[np.float64]:
        """Affine ``[2, 3]`` of ``num_frames`` frames of motion."""
        angle, scale = np.radians(self.degrees * num_frames), self.scale**num_frames
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        middle = np.asarray(centre, dtype=np.float64)
        offset = middle - linear @ middle + np.asarray(self.shift) * num_frames
        return np.column_stack([linear, offset])


@dataclass(frozen=True)
class MovingScene:
    """A textured background, and on it a textured rectangle if ``box`` = (left, top, width, height) is given.

    Both move in frame coordinates: the background with the camera, the box by its own motion (camera included).
    """

    height: int
    width: int
    camera: Similarity = Similarity()
    box: tuple[int, int, int, int] | None = None
    box_motion: Similarity = Similarity()
    noise_std: float = 0.0
    grain_px: float = 1.6
    seed: int = 0

    @property
    def centre(self) -> tuple[float, float]:
        """About which the camera turns and zooms."""
        return (self.width - 1) / 2, (self.height - 1) / 2

    @property
    def box_centre(self) -> tuple[float, float]:
        assert self.box is not None
        left, top, width, height = self.box
        return left + (width - 1) / 2, top + (height - 1) / 2

    def frames(self, num_frames: int) -> NDArray[np.uint8]:
        """RGB ``[T, H, W, 3]``."""
        rng = np.random.default_rng(self.seed + 2)
        back, front = texture(self.seed, self.grain_px), texture(self.seed + 1, self.grain_px)
        result = np.empty((num_frames, self.height, self.width, 3), np.uint8)
        for number in range(num_frames):
            picture = self._warp(back, self.camera.matrix(number, self.centre), (150, 150))
            if self.box is not None:
                move = self.box_motion.matrix(number, self.box_centre)
                mask = np.zeros((_TEXTURE_PX, _TEXTURE_PX), np.float32)
                left, top, width, height = self.box
                corner_x, corner_y = (_SUPERSAMPLING * (value + 150) for value in (left, top))
                mask[corner_y : corner_y + _SUPERSAMPLING * height, corner_x : corner_x + _SUPERSAMPLING * width] = 1.0
                opacity = self._warp(mask, move, (150, 150))[..., None]
                picture += opacity * (self._warp(front, move, (150, 150)) - picture)
            picture += rng.normal(0, 1, picture.shape).astype(np.float32) * self.noise_std
            result[number] = np.clip(np.rint(picture), 0, 255)
        return result

    def background_path(self, points: NDArray[np.floating], num_steps: int) -> NDArray[np.float64]:
        """Positions ``[..., L + 1, 2]`` of background points ``[..., 2]`` of frame 0."""
        return _path(self.camera, self.centre, points, num_steps)

    def box_path(self, points: NDArray[np.floating], num_steps: int) -> NDArray[np.float64]:
        """The same of points on the box."""
        return _path(self.box_motion, self.box_centre, points, num_steps)

    def in_box(self, points: NDArray[np.floating], margin: float) -> NDArray[np.bool_]:
        """Points of frame 0 at least ``margin`` pixels inside the box (outside, if negative)."""
        assert self.box is not None
        left, top, width, height = self.box
        x, y = points[..., 0], points[..., 1]
        return np.asarray(
            (x >= left + margin) & (x < left + width - margin) & (y >= top + margin) & (y < top + height - margin)
        )

    def _warp(
        self, image: NDArray[np.float32], move: NDArray[np.float64], origin: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Show an image, ``_SUPERSAMPLING`` of whose pixels make one of the frame's, moved by ``move``."""
        to_frame = np.vstack([move, [0, 0, 1]])
        inverse = np.linalg.inv(to_frame)  # frame pixel -> unmoved frame pixel
        s = _SUPERSAMPLING
        # Output pixels of the supersampled frame u -> frame (u + 0.5) / s - 0.5 -> unmoved -> image.
        down = np.array([[1 / s, 0, 0.5 / s - 0.5], [0, 1 / s, 0.5 / s - 0.5], [0, 0, 1]])
        up = np.array([[s, 0, s * (origin[0] + 0.5) - 0.5], [0, s, s * (origin[1] + 0.5) - 0.5], [0, 0, 1]])
        matrix = (up @ inverse @ down)[:2]
        size = (self.width * s, self.height * s)
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        large = cv2.warpAffine(image, matrix, size, flags=flags, borderMode=cv2.BORDER_WRAP)
        return cv2.resize(large, (self.width, self.height), interpolation=cv2.INTER_AREA).astype(np.float32)


@functools.cache
def texture(seed: int, grain_px: float) -> NDArray[np.float32]:
    """Random RGB texture ``[768, 768, 3]`` with detail at several sizes, the smallest ``grain_px`` frame pixels."""
    rng = np.random.default_rng(seed)
    total = np.zeros((_TEXTURE_PX, _TEXTURE_PX, 3), np.float32)
    for size, weight in ((1.0, 1.0), (3.0, 1.5), (8.0, 2.0)):
        noise = rng.normal(size=total.shape).astype(np.float32)
        layer = cv2.GaussianBlur(noise, (0, 0), size * grain_px * _SUPERSAMPLING, borderType=cv2.BORDER_REFLECT_101)
        total += weight * layer / layer.std()
    return np.asarray(np.clip((total - total.mean()) / total.std() * 45 + 128, 0, 255), dtype=np.float32)


def _path(
    motion: Similarity, centre: tuple[float, float], points: NDArray[np.floating], num_steps: int
) -> NDArray[np.float64]:
    matrices = np.stack([motion.matrix(number, centre) for number in range(num_steps + 1)])
    flat = np.einsum("lij,pj->pli", matrices[:, :, :2], points.reshape(-1, 2)) + matrices[:, :, 2]
    return np.asarray(flat.reshape(*points.shape[:-1], num_steps + 1, 2), dtype=np.float64)
