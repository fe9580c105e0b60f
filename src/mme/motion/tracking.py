"""Track the cell centres of a grid along the raw flow, from every frame of a video.

Conventions of the package: pixel centres are at integer coordinates ``(x, y)``; arrays are indexed
``[..., y, x]``; a cell of ``cell`` pixels covers pixels ``i * cell .. i * cell + cell - 1``, so its centre is at
``(i + 0.5) * cell - 0.5``. Step k of the start frame s goes from frame s + k to s + k + 1.

Tracks follow the raw flow, so that points stay on the object they started on. Camera motion is stored beside the tracks
and subtracted when targets are computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8

from mme.config import TrajectoriesParams
from mme.motion.camera import CameraMotion, camera_shift, estimate_homography
from mme.motion.flow import DenseFlow, gray_frames


@dataclass(frozen=True)
class TrackSlice:
    """Tracks from S start frames of one video, in pixels of its frames.

    Attributes:
        displacements: ``p_{t+1} - p_t`` on the raw flow, in half precision if they were stored; zero from the first
            invalid step.
        num_valid: number of leading steps that are valid: the point stays within the pixel centres of the frame and,
            if this was extracted, the flow is forward-backward consistent.
        homographies: camera motion of each step; identity where untrusted or past the end of the video.
        starts: start frames.
        cell: grid spacing, pixels.
        height, width: frame size, pixels.
    """

    displacements: Float[np.ndarray, "S h w L 2"]
    num_valid: UInt8[np.ndarray, "S h w"]
    homographies: Float32[np.ndarray, "S L 3 3"]
    starts: Int64[np.ndarray, " S"]
    cell: int
    height: int
    width: int

    def positions(self) -> Float32[np.ndarray, "S h w positions 2"]:
        """Return the L + 1 raw positions ``p_t .. p_{t+L}``."""
        grid = cell_centres(self.height, self.width, self.cell)[None, :, :, None, :]  # (1, h, w, 1, 2)
        moved = np.cumsum(self.displacements, axis=3, dtype=np.float32) + grid  # (S, h, w, L, 2)
        start = np.broadcast_to(grid, (*moved.shape[:3], 1, 2))  # (S, h, w, 1, 2)
        return np.concatenate([start, moved], axis=3)

    def residuals(self) -> Float32[np.ndarray, "S h w L 2"]:
        """Return the camera-compensated displacements ``(p_{t+1} - p_t) - (H_t(p_t) - p_t)``."""
        before = self.positions()[..., :-1, :]  # (S, h, w, L, 2)
        homographies = self.homographies[:, None, None]  # (S, 1, 1, L, 3, 3)
        return np.asarray(self.displacements - camera_shift(homographies, before), dtype=np.float32)


@dataclass(frozen=True)
class Tracks:
    """Tracks from every frame but the last of one video.

    Attributes:
        displacements, num_valid: as in `TrackSlice`, with S = T - 1 start frames.
        homographies: camera motion from frame t to t + 1; the identity where not trusted.
        trusted: whether the homography is trusted.
        cell, height, width: as in `TrackSlice`.
    """

    displacements: Float32[np.ndarray, "S h w L 2"]
    num_valid: UInt8[np.ndarray, "S h w"]
    homographies: Float32[np.ndarray, "S 3 3"]
    trusted: Bool[np.ndarray, " S"]
    cell: int
    height: int
    width: int

    def select(self, starts: Sequence[int], length: int) -> TrackSlice:
        """Return the tracks of ``length`` steps from the frames ``starts``."""
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
        displacements, num_valid: as in `TrackSlice`.
        camera: camera motion from this frame to the next.
        complete: whether the video has L frames after this one.
        frame_size: height and width, pixels.
    """

    displacements: Float32[np.ndarray, "h w L 2"]
    num_valid: UInt8[np.ndarray, "h w"]
    camera: CameraMotion
    complete: bool
    frame_size: tuple[int, int]


def cell_centres(height: int, width: int, cell: int) -> Float32[np.ndarray, "h w 2"]:
    """Return the centres ``(x, y)`` of all whole cells of a frame."""
    xs = (np.arange(width // cell, dtype=np.float32) + 0.5) * cell - 0.5  # (w,)
    ys = (np.arange(height // cell, dtype=np.float32) + 0.5) * cell - 0.5  # (h,)
    return np.stack(np.meshgrid(xs, ys), axis=-1)


def step_homographies(
    homographies: Float32[np.ndarray, "steps 3 3"], starts: Int64[np.ndarray, " S"], length: int
) -> Float32[np.ndarray, "S {length} 3 3"]:
    """Select the camera motion of each step of each start; identity past the end of the video."""
    frames = starts[:, None] + np.arange(length)  # (S, L)
    steps = homographies.take(frames, axis=0, mode="clip")  # (S, L, 3, 3)
    steps[frames >= len(homographies)] = np.eye(3, dtype=np.float32)
    return steps


def extract_tracks(frames: Iterable[np.ndarray], params: TrajectoriesParams) -> Tracks:
    """Track a whole video in memory; see `iter_tracks`."""
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


def iter_tracks(frames: Iterable[np.ndarray], params: TrajectoriesParams) -> Iterator[StartTracks]:
    """Yield the tracks from each frame but the last, in order.

    Holds two frames and the tracks of ``max_length`` start frames in memory.

    Args:
        frames: luma, uint8 ``[H, W]`` each, or RGB, uint8 ``[H, W, 3]``, in order.
        params: flow, camera, grid and length.

    Raises:
        ValueError: fewer than two frames, or a frame of another size or type than the first.
    """
    dense = DenseFlow(params.flow, params.median_px)
    tracker: GridTracker | None = None
    cameras: list[CameraMotion] = []
    previous: UInt8[np.ndarray, "H W"] | None = None
    for gray in gray_frames(frames):
        if previous is not None:
            # Flow and camera motion from the previous frame to this one.
            forward = dense.pair(previous, gray)  # (H, W, 2)
            backward = dense.pair(gray, previous) if params.forward_backward else None  # (H, W, 2)
            cameras.append(_camera_motion(forward, previous, params))

            # All tracks one step further; the oldest may now be whole.
            tracker = tracker or GridTracker(gray.shape[0], gray.shape[1], params.cell, params.max_length)
            if tracker.step(forward, backward):
                yield StartTracks(*tracker.pop(), cameras.pop(0), True, gray.shape)
        previous = gray

    # Tracks that the end of the video cut short.
    if tracker is None or previous is None:
        raise ValueError("a video of fewer than 2 frames has no motion")
    for camera in cameras:
        yield StartTracks(*tracker.pop(), camera, False, previous.shape)


def _camera_motion(
    flow: Float32[np.ndarray, "H W 2"], gray: UInt8[np.ndarray, "H W"], params: TrajectoriesParams
) -> CameraMotion:
    if not params.compensate_camera:
        return CameraMotion(np.eye(3), False, 0.0)
    return estimate_homography(flow, params.camera_threshold_px, params.camera_min_inliers, gray)


class GridTracker:
    """Tracker of the cell centres from the last ``length`` frames, all starts together, one flow at a time.

    Starts are kept in a ring of ``length`` slots; start s is in slot ``s % length``.

    Args:
        height, width: frame size, pixels.
        cell: grid spacing, pixels.
        length: steps of a track, L.

    Raises:
        ValueError: the frame has no whole cell.
    """

    def __init__(self, height: int, width: int, cell: int, length: int) -> None:
        grid = cell_centres(height, width, cell)  # (h, w, 2)
        if not grid.size:
            raise ValueError(f"cell: {cell} px does not fit into a frame of {width} x {height} px")
        self._length = length
        self._max_x = width - 1
        self._max_y = height - 1
        self._grid_size = grid.shape[:2]
        self._grid = grid.reshape(-1, 2)  # (P, 2)

        # State of each slot: current positions, points still valid, and the tracks so far.
        num_points = len(self._grid)
        self._positions = np.zeros((length, num_points, 2), dtype=np.float32)
        self._alive = np.zeros((length, num_points), dtype=bool)
        self._displacements = np.zeros((length, num_points, length, 2), dtype=np.float32)
        self._num_valid = np.zeros((length, num_points), dtype=np.uint8)

        self._num_steps = 0
        self._num_popped = 0

    def step(self, forward: Float32[np.ndarray, "H W 2"], backward: Float32[np.ndarray, "H W 2"] | None) -> bool:
        """Start a grid on the first frame of this flow and move all grids along the flow.

        Args:
            forward: flow to the next frame.
            backward: flow from the next frame back, or None to leave consistency unchecked.

        Returns:
            True if the oldest start has all its steps and must be popped before the next step.
        """
        # A new start in its slot.
        time = self._num_steps
        slot = time % self._length
        self._positions[slot] = self._grid
        self._alive[slot] = True
        self._displacements[slot] = 0
        self._num_valid[slot] = 0

        # All K starts under way, and the step that each of them takes now.
        starts = np.arange(max(0, time - self._length + 1), time + 1)  # (K,)
        steps = time - starts  # (K,)
        slots = starts % self._length  # (K,)

        # Move along the forward flow; points that leave the frame become invalid and stay where they were.
        position = self._positions[slots]  # (K, P, 2)
        moved = sample_bilinear(forward, position)  # (K, P, 2)
        arrived = position + moved  # (K, P, 2)
        alive = self._alive[slots]  # (K, P)
        alive &= self._inside(arrived)
        arrived = np.where(alive[..., None], arrived, position)

        # So do points whose backward flow does not lead back.
        if backward is not None:
            alive &= consistent(moved, sample_bilinear(backward, arrived))
            arrived = np.where(alive[..., None], arrived, position)

        # Record the step.
        self._displacements[slots, :, steps] = np.where(alive[..., None], moved, 0)
        self._num_valid[slots] += alive
        self._alive[slots] = alive
        self._positions[slots] = arrived
        self._num_steps += 1
        return self._num_steps - self._num_popped >= self._length

    def _inside(self, points: Float32[np.ndarray, "*points 2"]) -> Bool[np.ndarray, "*points"]:
        """Return which points lie within the pixel centres of the frame."""
        x, y = points[..., 0], points[..., 1]
        return np.asarray((x >= 0) & (x <= self._max_x) & (y >= 0) & (y <= self._max_y))

    def pop(self) -> tuple[Float32[np.ndarray, "h w L 2"], UInt8[np.ndarray, "h w"]]:
        """Remove the oldest start and return its displacements and numbers of valid steps."""
        assert self._num_popped < self._num_steps
        slot = self._num_popped % self._length
        self._num_popped += 1
        displacements = self._displacements[slot].reshape(*self._grid_size, self._length, 2)
        num_valid = self._num_valid[slot].reshape(self._grid_size)
        return displacements.copy(), num_valid.copy()


def consistent(
    forward: Float32[np.ndarray, "*points 2"], backward: Float32[np.ndarray, "*points 2"]
) -> Bool[np.ndarray, "*points"]:
    """Forward-backward test of Sundaram, Brox & Keutzer (ECCV 2010), equation 5, in pixels.

    True where forward and backward flow cancel: ``|f + b|^2 <= 0.01 (|f|^2 + |b|^2) + 0.5``.
    """
    gap = _squared_norm(forward + backward)
    slack = 0.01 * (_squared_norm(forward) + _squared_norm(backward)) + 0.5
    return np.asarray(gap <= slack)


def _squared_norm(vectors: Float32[np.ndarray, "*points 2"]) -> Float32[np.ndarray, "*points"]:
    # Much faster than a sum over an axis of two.
    x, y = vectors[..., 0], vectors[..., 1]
    return np.asarray(x * x + y * y)


def sample_bilinear(
    field: Float32[np.ndarray, "H W 2"], points: Float32[np.ndarray, "*points 2"]
) -> Float32[np.ndarray, "*points 2"]:
    """Sample a vector field bilinearly at points ``(x, y)`` within the pixel centres.

    Exact in float32; ``cv2.remap`` is faster but rounds positions to 1/32 pixel.
    """
    # Two floats as one complex number: one gather for both components.
    height, width = field.shape[:2]
    flat = np.ascontiguousarray(field).view(np.complex64).reshape(-1)  # (H W,)

    # Upper left neighbour and the weights of the lower and right ones.
    x, y = points[..., 0], points[..., 1]
    x0 = np.minimum(x.astype(np.int32), width - 2)
    y0 = np.minimum(y.astype(np.int32), height - 2)
    wx = x - x0.astype(np.float32)
    wy = y - y0.astype(np.float32)

    # The four neighbours, (*points,) each.
    index = y0 * width + x0
    top = flat.take(index)
    top_right = flat.take(index + 1)
    bottom = flat.take(index + width)
    bottom_right = flat.take(index + width + 1)

    # Along x in both rows, then along y; in place, without further arrays.
    top += (top_right - top) * wx
    bottom += (bottom_right - bottom) * wx
    top += (bottom - top) * wy
    return np.asarray(top.view(np.float32), dtype=np.float32).reshape(points.shape)
