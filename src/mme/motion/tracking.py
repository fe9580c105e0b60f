"""Trajectories of a video: the grid of cell centres tracked along the raw flow from every frame.

Conventions, stated here once for the package: pixel centres are at integer coordinates ``(x, y)``; arrays are indexed
``[..., y, x]``; a cell of ``cell`` pixels covers pixels ``i * cell .. i * cell + cell - 1``, so its centre is at
``(i + 0.5) * cell - 0.5``. Step k of the start frame s goes from frame s + k to s + k + 1.

Tracks follow the raw flow, so that points stay on the thing they started on; camera motion is stored beside them and
taken out when a target is assembled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mme.config import TrajectoriesParams
from mme.motion.camera import CameraMotion, camera_shift, estimate_homography
from mme.motion.flow import DenseFlow, gray_frames


@dataclass(frozen=True)
class TrackSlice:
    """Tracks from S start frames of one video, in pixels of its frames.

    Attributes:
        displacements: float32 ``[S, h, w, L, 2]``, ``p_{t+1} - p_t`` on the raw flow; zero from the first invalid step.
        num_valid: uint8 ``[S, h, w]``, leading steps that are valid: the point stays within the frame's pixel centres
            and, if asked for, the flow is forward-backward consistent.
        homographies: float32 ``[S, L, 3, 3]``, camera motion of each step; identity where untrusted or past the end.
        starts: int64 ``[S]``, start frames.
        cell: grid spacing, pixels.
        height, width: frame size, pixels.
    """

    displacements: NDArray[np.float32]
    num_valid: NDArray[np.uint8]
    homographies: NDArray[np.float32]
    starts: NDArray[np.int64]
    cell: int
    height: int
    width: int

    def positions(self) -> NDArray[np.float32]:
        """Raw positions ``p_t .. p_{t+L}``, float32 ``[S, h, w, L + 1, 2]``."""
        grid = cell_centres(self.height, self.width, self.cell)[None, :, :, None, :]
        moved = np.cumsum(self.displacements, axis=3, dtype=np.float32) + grid
        return np.concatenate([np.broadcast_to(grid, (*moved.shape[:3], 1, 2)), moved], axis=3)

    def residuals(self) -> NDArray[np.float32]:
        """Camera-compensated displacements ``(p_{t+1} - p_t) - (H_t(p_t) - p_t)``, float32 ``[S, h, w, L, 2]``."""
        before = self.positions()[..., :-1, :]
        return np.asarray(self.displacements - camera_shift(self.homographies[:, None, None], before), dtype=np.float32)


@dataclass(frozen=True)
class Tracks:
    """Tracks from every frame but the last of one video.

    Attributes:
        displacements, num_valid: as in `TrackSlice`, S = T - 1.
        homographies: float32 ``[T - 1, 3, 3]``, camera motion from frame t to t + 1.
        trusted: bool ``[T - 1]``, whether a homography could be trusted; the identity where not.
        cell, height, width: as in `TrackSlice`.
    """

    displacements: NDArray[np.float32]
    num_valid: NDArray[np.uint8]
    homographies: NDArray[np.float32]
    trusted: NDArray[np.bool_]
    cell: int
    height: int
    width: int

    def select(self, starts: Sequence[int], length: int) -> TrackSlice:
        """The tracks of ``length`` steps from the frames ``starts``."""
        index = np.asarray(starts, dtype=np.int64)
        return TrackSlice(
            displacements=self.displacements[index, :, :, :length],
            num_valid=np.minimum(self.num_valid[index], length).astype(np.uint8),
            homographies=step_homographies(self.homographies, index, length),
            starts=index,
            cell=self.cell,
            height=self.height,
            width=self.width,
        )


@dataclass(frozen=True)
class StartTracks:
    """Tracks from one start frame.

    Attributes:
        displacements: float32 ``[h, w, L, 2]``, as in `TrackSlice`.
        num_valid: uint8 ``[h, w]``, as in `TrackSlice`.
        camera: motion of the camera from this frame to the next.
        complete: whether the video has L frames after this one.
        frame_size: height and width, pixels.
    """

    displacements: NDArray[np.float32]
    num_valid: NDArray[np.uint8]
    camera: CameraMotion
    complete: bool
    frame_size: tuple[int, int]


def cell_centres(height: int, width: int, cell: int) -> NDArray[np.float32]:
    """Centres ``(x, y)`` of all whole cells of a frame, float32 ``[h, w, 2]``."""
    xs = (np.arange(width // cell, dtype=np.float32) + 0.5) * cell - 0.5
    ys = (np.arange(height // cell, dtype=np.float32) + 0.5) * cell - 0.5
    return np.stack(np.meshgrid(xs, ys), axis=-1)


def step_homographies(homographies: NDArray[np.float32], starts: NDArray[np.int64], length: int) -> NDArray[np.float32]:
    """Camera motion ``[S, L, 3, 3]`` of each step of each start out of ``[T - 1, 3, 3]``; identity past the end."""
    frames = starts[:, None] + np.arange(length)
    steps = homographies.take(frames, axis=0, mode="clip")
    steps[frames >= len(homographies)] = np.eye(3, dtype=np.float32)
    return steps


def extract(frames: Iterable[NDArray[np.uint8]], params: TrajectoriesParams) -> Tracks:
    """Tracks of a whole video in memory; see `iter_tracks`."""
    starts = list(iter_tracks(frames, params))
    return Tracks(
        displacements=np.stack([start.displacements for start in starts]),
        num_valid=np.stack([start.num_valid for start in starts]),
        homographies=np.stack([start.camera.homography for start in starts]).astype(np.float32),
        trusted=np.array([start.camera.trusted for start in starts]),
        cell=params.cell,
        height=starts[0].frame_size[0],
        width=starts[0].frame_size[1],
    )


def iter_tracks(frames: Iterable[NDArray[np.uint8]], params: TrajectoriesParams) -> Iterator[StartTracks]:
    """Tracks from each frame but the last, in order; holds ``max_length`` start frames and two frames, no more.

    Args:
        frames: uint8 RGB ``[H, W, 3]`` each, in order.
        params: flow, camera, grid and length.

    Raises:
        ValueError: fewer than two frames, or a frame of another size or type than the first.
    """
    dense = DenseFlow(params.flow, params.median_px)
    tracker: GridTracker | None = None
    cameras: list[CameraMotion] = []
    previous: NDArray[np.uint8] | None = None
    for gray in gray_frames(frames):
        if previous is not None:
            tracker = tracker or GridTracker(gray.shape[0], gray.shape[1], params.cell, params.max_length)
            forward = dense.pair(previous, gray)
            backward = dense.pair(gray, previous) if params.forward_backward else None
            cameras.append(_camera(forward, previous, params))
            if tracker.step(forward, backward):
                yield StartTracks(*tracker.pop(), cameras.pop(0), True, gray.shape)
        previous = gray
    if tracker is None or previous is None:
        raise ValueError("a video of fewer than 2 frames has no motion")
    for camera in cameras:
        yield StartTracks(*tracker.pop(), camera, False, previous.shape)


def _camera(flow: NDArray[np.float32], gray: NDArray[np.uint8], params: TrajectoriesParams) -> CameraMotion:
    if not params.compensate_camera:
        return CameraMotion(np.eye(3), False, 0.0)
    return estimate_homography(flow, params.camera_threshold_px, params.camera_min_inliers, gray)


class GridTracker:
    """Tracks the cell centres of the last ``length`` frames, all starts together, one flow at a time.

    Starts live in a ring of ``length`` slots; start s is in slot ``s % length``.
    """

    def __init__(self, height: int, width: int, cell: int, length: int) -> None:
        grid = cell_centres(height, width, cell)
        if not grid.size:
            raise ValueError(f"cell: {cell} px does not fit into a frame of {width} x {height} px")
        self._length = length
        self._limit = (width - 1, height - 1)
        self._shape = grid.shape[:2]
        self._grid = grid.reshape(-1, 2)  # (P, 2)
        num_points = len(self._grid)
        self._positions = np.zeros((length, num_points, 2), dtype=np.float32)
        self._alive = np.zeros((length, num_points), dtype=bool)
        self._displacements = np.zeros((length, num_points, length, 2), dtype=np.float32)
        self._num_valid = np.zeros((length, num_points), dtype=np.uint8)
        self._num_steps = 0
        self._num_popped = 0

    def step(self, forward: NDArray[np.float32], backward: NDArray[np.float32] | None) -> bool:
        """Start a grid on this flow's first frame and move all grids along it.

        Args:
            forward: ``[H, W, 2]`` flow to the next frame.
            backward: ``[H, W, 2]`` flow from the next frame back, or None to leave consistency unchecked.

        Returns:
            Whether the oldest start has all its steps and must be popped before the next step.
        """
        time = self._num_steps
        slot = time % self._length
        self._positions[slot] = self._grid
        self._alive[slot] = True
        self._displacements[slot] = 0
        self._num_valid[slot] = 0
        slots = np.arange(max(0, time - self._length + 1), time + 1)
        steps = time - slots
        slots %= self._length

        position = self._positions[slots]  # (K, P, 2)
        moved = sample_bilinear(forward, position)
        arrived = position + moved
        alive = self._alive[slots]
        alive &= self._inside(arrived)
        arrived = np.where(alive[..., None], arrived, position)
        if backward is not None:
            alive &= consistent(moved, sample_bilinear(backward, arrived))
            arrived = np.where(alive[..., None], arrived, position)
        self._displacements[slots, :, steps] = np.where(alive[..., None], moved, 0)
        self._num_valid[slots] += alive
        self._alive[slots] = alive
        self._positions[slots] = arrived
        self._num_steps += 1
        return self._num_steps - self._num_popped >= self._length

    def _inside(self, points: NDArray[np.float32]) -> NDArray[np.bool_]:
        x, y = points[..., 0], points[..., 1]
        return np.asarray((x >= 0) & (x <= self._limit[0]) & (y >= 0) & (y <= self._limit[1]))

    def pop(self) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Displacements ``[h, w, L, 2]`` and valid steps ``[h, w]`` of the oldest start."""
        assert self._num_popped < self._num_steps
        slot = self._num_popped % self._length
        self._num_popped += 1
        displacements = self._displacements[slot].reshape(*self._shape, self._length, 2)
        return displacements.copy(), self._num_valid[slot].reshape(self._shape).copy()


def consistent(forward: NDArray[np.float32], backward: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether going forward and back ends where it began: ``|f + b|^2 <= 0.01 (|f|^2 + |b|^2) + 0.5``.

    The test of Sundaram, Brox & Keutzer (ECCV 2010), equation 5, in pixels.
    """
    gap = _squared_norm(forward + backward)
    slack = 0.01 * (_squared_norm(forward) + _squared_norm(backward)) + 0.5
    return np.asarray(gap <= slack)


def _squared_norm(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    x, y = vectors[..., 0], vectors[..., 1]  # much faster than a sum over an axis of two
    return np.asarray(x * x + y * y)


def sample_bilinear(field: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bilinear samples ``[..., 2]`` of ``[H, W, 2]`` at points within the pixel centres.

    Exact in float32; ``cv2.remap`` is faster but rounds positions to 1/32 pixel.
    """
    height, width = field.shape[:2]
    flat = np.ascontiguousarray(field).view(np.complex64).reshape(-1)  # one gather for both components
    x, y = points[..., 0], points[..., 1]
    x0 = np.minimum(x.astype(np.int32), width - 2)
    y0 = np.minimum(y.astype(np.int32), height - 2)
    wx, wy = x - x0.astype(np.float32), y - y0.astype(np.float32)
    index = y0 * width + x0
    top, top_right = flat.take(index), flat.take(index + 1)
    bottom, bottom_right = flat.take(index + width), flat.take(index + width + 1)
    top += (top_right - top) * wx
    bottom += (bottom_right - bottom) * wx
    top += (bottom - top) * wy
    return np.asarray(top.view(np.float32), dtype=np.float32).reshape(points.shape)
