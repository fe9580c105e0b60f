"""Hidden tokens of a batch, and the stored tracks at their cells.

Coordinates: pixel centres are at integers ``(x, y)``; see `mme.motion.tracking`. B clips, M hidden tokens per clip,
C = 4 cells per token, L steps per track. Everything is batched and runs on the device of its input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from torch import Tensor
from torch.nn.functional import embedding_bag

from mme.config import CELLS_PER_PATCH_SIDE, ClipParams, ModelParams, PretrainParams
from mme.motion.tracking import TrackSlice
from mme.video.crop import Crop

CELLS_PER_TOKEN = CELLS_PER_PATCH_SIDE**2

NODE_TOLERANCE = 1e-6
"""Grid spacings within which a cell's centre lies on a stored node."""


class MaskedBatch(TypedDict):
    """A batch of masked clips as loader processes read it; nothing in it is computed from pixels or tracks.

    Attributes:
        hidden: mask of the tokens in (time, y, x) order, ``True`` = hidden, the same number M in each row.
        luma: brightness of the frames `mme.targets.base.luma_frames`, 16 (black) to 235 (white).
        chroma: the two planes of colour of the T frames that the model sees, at half size; 128 = no colour.
        displacements: stored tracks ``p_{t+1} - p_t`` from each tubelet's first frame, source pixels; K tubelets, and
            grids of R x Q nodes, padded to the largest of the data set.
        num_valid: leading valid steps of each track.
        homographies: camera motion of each step; absent where it was not estimated.
        grid: rows and columns of nodes that the video has.
        node_px: spacing of the nodes, source pixels.
        crop: left, top, width and height of the clip in the source frame, pixel edges.
        flip: clips that are mirrored.
    """

    hidden: Bool[Tensor, "B N"]
    luma: UInt8[Tensor, "B F H W"]
    chroma: UInt8[Tensor, "B T 2 H/2 W/2"]
    displacements: NotRequired[Float[Tensor, "B K R Q L 2"]]
    num_valid: NotRequired[UInt8[Tensor, "B K R Q"]]
    homographies: NotRequired[Float32[Tensor, "B K L 3 3"]]
    grid: NotRequired[Int64[Tensor, "B 2"]]
    node_px: NotRequired[Int64[Tensor, " B"]]
    crop: NotRequired[Float64[Tensor, "B 4"]]
    flip: NotRequired[Bool[Tensor, " B"]]


@dataclass(frozen=True)
class TargetSpec:
    """Geometry of a clip's tokens, and the parameters of the targets.

    Attributes:
        height, width: frame size of a clip, pixels.
        patch_size: side of a token, clip pixels; a cell is half of it.
        tubelet_frames: frames of a token that the model sees.
        num_tubelets: tubelets in a clip.
        tubelet_stride: raw frames from the start of a tubelet to the start of the next.
        length: L, steps of a track.
        position_norm, patch_std_floor_px, log_scale_px: see `mme.targets.position.Position`.
        hog_steps: HOG at ``all`` steps of the track or at the ``first`` only.
        hog_window_px: side of the HOG window, clip pixels.
        hog_norm_floor: see `mme.targets.hog.hog_at`.
    """

    height: int
    width: int
    patch_size: int
    tubelet_frames: int
    num_tubelets: int
    tubelet_stride: int
    length: int
    position_norm: Literal["none", "patch_std", "log"]
    patch_std_floor_px: float
    log_scale_px: float
    hog_steps: Literal["all", "first"]
    hog_window_px: int
    hog_norm_floor: float

    @classmethod
    def from_params(cls, clip: ClipParams, model: ModelParams, pretrain: PretrainParams) -> TargetSpec:
        """Take geometry and parameters from ``params.yaml``."""
        return cls(
            height=clip.size,
            width=clip.size,
            patch_size=model.patch_size,
            tubelet_frames=model.tubelet_frames,
            num_tubelets=clip.num_frames // model.tubelet_frames,
            tubelet_stride=model.tubelet_frames * clip.stride_frames,
            length=pretrain.length,
            position_norm=pretrain.position_norm,
            patch_std_floor_px=pretrain.patch_std_floor_px,
            log_scale_px=pretrain.log_scale_px,
            hog_steps=pretrain.hog_steps,
            hog_window_px=pretrain.hog_window_px,
            hog_norm_floor=pretrain.hog_norm_floor,
        )

    @property
    def cell(self) -> int:
        """Side of a cell, clip pixels."""
        return self.patch_size // CELLS_PER_PATCH_SIDE

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of a clip in (time, height, width)."""
        return self.num_tubelets, self.height // self.patch_size, self.width // self.patch_size

    @property
    def num_hog_steps(self) -> int:
        """Steps of a track at which HOG is taken."""
        return self.length if self.hog_steps == "all" else 1

    @property
    def seen_frames(self) -> list[int]:
        """Raw frames, counted from the clip's first, that the model sees."""
        stride = self.tubelet_stride // self.tubelet_frames
        return [start + stride * frame for start in self.starts(0) for frame in range(self.tubelet_frames)]

    @property
    def dense_frames(self) -> list[int]:
        """Raw frames that the model sees or HOG is taken from; ascending, each once."""
        hog_frames = {start + step for start in self.starts(0) for step in range(self.num_hog_steps)}
        return sorted(hog_frames.union(self.seen_frames))

    def starts(self, clip_start: int) -> list[int]:
        """Raw frames at which the tracks of a clip start."""
        return [clip_start + tubelet * self.tubelet_stride for tubelet in range(self.num_tubelets)]


class TokenTracks(NamedTuple):
    """Tracks of the cells of hidden tokens, in the pixels of their clips.

    Attributes:
        tubelet: tubelet of each token.
        path: raw positions ``p_t .. p_{t+L}``.
        displacements: ``p_{t+1} - p_t`` without the camera's motion.
        valid: cells whose track is valid at every step and stays in the clip's frame.
    """

    tubelet: Int64[Tensor, "B M"]
    path: Float32[Tensor, "B M C L1 2"]
    displacements: Float32[Tensor, "B M C L 2"]
    valid: Bool[Tensor, "B M C"]


class HiddenTokens:
    """Inputs of a target: the tracks, dense frames and pixels of the hidden tokens of a batch.

    Args:
        batch: as the loader read it, on the device of the model.
        spec: geometry of the tokens.
        count: hidden tokens of each clip, M.
        read_tubelets: gives the normalised pixels of the tokens; called only if a target reads them.
    """

    def __init__(
        self,
        batch: MaskedBatch,
        spec: TargetSpec,
        count: int,
        read_tubelets: Callable[[], Float[Tensor, "B M P"]] | None = None,
    ) -> None:
        self.batch = batch
        self.spec = spec
        self.count = count
        self._read_tubelets = read_tubelets

    @functools.cached_property
    def tracks(self) -> TokenTracks:
        """Tracks of the tokens' cells."""
        return token_tracks(self.batch, self.spec, self.count)

    @property
    def luma(self) -> UInt8[Tensor, "B F H W"]:
        """Brightness of the frames `TargetSpec.dense_frames`, 16 (black) to 235 (white)."""
        return self.batch["luma"]

    @property
    def tubelets(self) -> Float[Tensor, "B M P"]:
        """Normalised pixels of the tokens, in (channel, frame, y, x) order."""
        assert self._read_tubelets is not None, "pixels are given in the training step only: see Target.centre"
        return self._read_tubelets()


def stored_tracks(tracks: TrackSlice, crop: Crop, grid: tuple[int, int], camera: bool) -> dict[str, Tensor]:
    """Fields of `MaskedBatch` that hold the tracks of one clip, without the batch axis.

    Args:
        tracks: from the first frame of each tubelet.
        crop: part of the source frame that the clip shows.
        grid: rows and columns to pad to, so that the tracks of differently large videos make up a batch.
        camera: add the camera's motion.
    """
    num_tubelets, rows, columns, length, _ = tracks.displacements.shape
    displacements = np.zeros((num_tubelets, *grid, length, 2), tracks.displacements.dtype)
    displacements[:, :rows, :columns] = tracks.displacements
    num_valid = np.zeros((num_tubelets, *grid), dtype=np.uint8)
    num_valid[:, :rows, :columns] = tracks.num_valid
    fields = {
        "displacements": torch.from_numpy(displacements),
        "num_valid": torch.from_numpy(num_valid),
        "grid": torch.tensor([rows, columns]),
        "node_px": torch.tensor(tracks.cell),
        "crop": torch.tensor([crop.left, crop.top, crop.width, crop.height], dtype=torch.float64),
        "flip": torch.tensor(crop.flip),
    }
    if camera:
        fields["homographies"] = torch.from_numpy(tracks.homographies)
    return fields


def token_tracks(batch: MaskedBatch, spec: TargetSpec, count: int) -> TokenTracks:
    """Interpolate the stored tracks at the cells of the ``count`` hidden tokens, and bring them into the clip's frame.

    A track is the bilinear mean of the four stored ones around the cell's centre, extrapolated linearly beyond the
    outermost nodes. Its number of valid steps is the smallest of the four.
    """
    hidden, stored = batch["hidden"], batch["displacements"]
    if stored.shape[1] != spec.num_tubelets:
        raise ValueError(f"{stored.shape[1]} start frames for {spec.num_tubelets} tubelets")
    if stored.shape[4] < spec.length:
        raise ValueError(f"tracks of {stored.shape[4]} steps are shorter than length {spec.length}")
    stored = stored[..., : spec.length, :].float()
    left, top, crop_width, crop_height = batch["crop"].unbind(dim=1)  # (B) each
    rows, columns = batch["grid"].unbind(dim=1)
    num_clips, num_tubelets, num_rows, num_columns, length, _ = stored.shape
    # Their number is given: a device that had to report it would make the host wait.
    tokens = hidden.nonzero_static(size=num_clips * count)[:, 1].view(num_clips, count)  # (B, M)
    tubelet, y, x = _cells(spec, hidden.device)[:, tokens]  # (B, M, C) each

    # Centres of the clip's rows and columns of cells in the source frame, and the nodes on either side of each.
    nodes_x = _nodes(spec.width, spec.cell, left, crop_width, batch["flip"], batch["node_px"], columns)
    nodes_y = _nodes(spec.height, spec.cell, top, crop_height, None, batch["node_px"], rows)
    start_x, left_node, right_node, weight_x = (line.gather(1, x.flatten(1)).view(x.shape) for line in nodes_x)
    start_y, upper_node, lower_node, weight_y = (line.gather(1, y.flatten(1)).view(y.shape) for line in nodes_y)

    # The four nodes of each cell as places in the flattened grids, and their bilinear weights.
    clip = torch.arange(num_clips, device=hidden.device)[:, None, None]
    plane = (clip * num_tubelets + tubelet) * num_rows
    upper, lower = (plane + upper_node) * num_columns, (plane + lower_node) * num_columns
    place = torch.stack([upper + left_node, upper + right_node, lower + left_node, lower + right_node], dim=-1)
    rest_x, rest_y = 1 - weight_x, 1 - weight_y
    weight = torch.stack([rest_y * rest_x, rest_y * weight_x, weight_y * rest_x, weight_y * weight_x], dim=-1)

    # A weighted sum of table rows: the displacements (B, M, C, L, 2).
    flat = embedding_bag(
        place.view(-1, 4), stored.reshape(-1, length * 2), per_sample_weights=weight.view(-1, 4).float(), mode="sum"
    )
    displacements = flat.view(*place.shape[:3], length, 2)
    num_valid = batch["num_valid"].flatten().index_select(0, place.flatten()).view_as(place).amin(dim=-1)  # (B, M, C)

    # Positions are sums of displacements; the camera's motion is taken off at these positions.
    starts = torch.stack([start_x, start_y], dim=-1).float()  # (B, M, C, 2)
    path = torch.cat([starts[:, :, :, None], displacements], dim=3)  # (B, M, C, L + 1, 2)
    for step in range(1, length + 1):  # L wide additions take a tenth of the time of cumsum over so short an axis
        path[..., step, :] += path[..., step - 1, :]
    if "homographies" in batch:
        steps = batch["homographies"][clip[:, :, 0], tubelet[:, :, 0], :length]  # (B, M, L, 3, 3)
        displacements = displacements - camera_shift_of(steps[:, :, None], path[..., :-1, :])

    # Source pixels to clip pixels: shift, scale, mirror.
    size = _frame_size(spec, hidden.device)
    scale = (size / torch.stack([crop_width, crop_height], dim=-1)).float().view(-1, 1, 1, 1, 2)
    origin = torch.stack([left - 0.5, top - 0.5], dim=-1).float().view(-1, 1, 1, 1, 2)
    mirrored = batch["flip"].float()
    sign = torch.stack([1 - 2 * mirrored, torch.ones_like(mirrored)], dim=-1).view(-1, 1, 1, 1, 2)
    far_edge = torch.stack([mirrored * (spec.width - 1), torch.zeros_like(mirrored)], dim=-1).view(-1, 1, 1, 1, 2)
    path = ((path - origin) * scale - 0.5) * sign + far_edge
    displacements = displacements * (scale * sign)

    inside = ((path >= -0.5) & (path <= size - 0.5)).flatten(3).all(dim=-1)  # (B, M, C)
    return TokenTracks(tubelet[:, :, 0], path, displacements, (num_valid >= spec.length) & inside)


def camera_shift_of(homography: Float[Tensor, "*#S 3 3"], points: Float[Tensor, "*#S 2"]) -> Float[Tensor, "*S 2"]:
    """Shift of static points by the camera, ``H(p) - p``: `mme.motion.camera.camera_shift` for tensors."""
    x, y = points.unbind(dim=-1)
    h = homography
    perspective = h[..., 2, 0] * x + h[..., 2, 1] * y + (h[..., 2, 2] - 1)  # depth - 1
    shift_x = (h[..., 0, 0] - 1 - perspective) * x + h[..., 0, 1] * y + h[..., 0, 2]
    shift_y = h[..., 1, 0] * x + (h[..., 1, 1] - 1 - perspective) * y + h[..., 1, 2]
    return torch.stack([shift_x, shift_y], dim=-1) / (perspective + 1)[..., None]


@functools.lru_cache(maxsize=8)
def _frame_size(spec: TargetSpec, device: torch.device) -> Float32[Tensor, " 2"]:
    """Width and height of a clip."""
    return torch.tensor([spec.width, spec.height], dtype=torch.float32, device=device)


@functools.lru_cache(maxsize=8)
def _cells(spec: TargetSpec, device: torch.device) -> Int64[Tensor, "3 N C"]:
    """Tubelet, row and column of the cells of all tokens; tokens in (tubelet, y, x) order, cells in (y, x) order."""
    side = CELLS_PER_PATCH_SIDE
    axes = [torch.arange(size) for size in (*spec.grid, side, side)]
    tubelet, row, column, cell_y, cell_x = torch.meshgrid(*axes, indexing="ij")
    cells = torch.stack([tubelet, row * side + cell_y, column * side + cell_x])
    return cells.reshape(3, -1, side * side).to(device)


def cell_positions(spec: TargetSpec) -> Float[Tensor, "N C 2"]:
    """Centres ``(x, y)`` of the cells of all tokens, clip pixels."""
    _, y, x = _cells(spec, torch.device("cpu"))
    return (torch.stack([x, y], dim=-1) + 0.5) * spec.cell - 0.5


class _Nodes(NamedTuple):
    """Source coordinate of each line of cells, the stored lines on either side, and the weight of the second."""

    centre: Float64[Tensor, "B n"]
    low: Int64[Tensor, "B n"]
    high: Int64[Tensor, "B n"]
    weight: Float64[Tensor, "B n"]


def _nodes(
    size: int,
    cell: int,
    begin: Float64[Tensor, " B"],
    extent: Float64[Tensor, " B"],
    flip: Bool[Tensor, " B"] | None,
    node_px: Int64[Tensor, " B"],
    num_nodes: Int64[Tensor, " B"],
) -> _Nodes:
    """Map the lines of cells along one axis of the clip (``size`` pixels) to the stored grid.

    A centre on a node uses that node alone, so that an invalid neighbour cannot spoil it.
    """
    distance = (torch.arange(size // cell, device=begin.device, dtype=torch.float64) + 0.5) * cell  # from the edge
    distance = distance.expand(len(begin), -1)  # (B, n)
    if flip is not None:
        distance = torch.where(flip[:, None], size - distance, distance)
    centre = begin[:, None] - 0.5 + distance * (extent / size)[:, None]

    last = (num_nodes[:, None] - 1).double()
    place = (centre + 0.5) / node_px[:, None] - 0.5  # in node spacings from the first node
    nearest = place.round().clamp(min=0).minimum(last)
    on_node = ((place - nearest).abs() < NODE_TOLERANCE) | (last == 0)
    below = place.floor().clamp(min=0).minimum((last - 1).clamp(min=0))
    low = torch.where(on_node, nearest, below)
    high = torch.where(on_node, nearest, below + 1)
    weight = torch.where(on_node, 0.0, place - low)
    return _Nodes(centre, low.long(), high.long(), weight)
