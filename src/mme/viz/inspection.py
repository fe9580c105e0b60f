"""Pictures of one video: tracks, camera motion, validity, HOG, mask, and the predictions of a model."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from mme.config import ClipParams, ModelParams, Params, PretrainParams, frames_needed
from mme.data.masked.masking import draw_mask
from mme.models.checkpoints import load_state
from mme.models.encoder import gather_tokens, model_input
from mme.models.masked_motion import MaskedMotionModel
from mme.motion.tracking import Tracks, TrackSlice, extract_tracks
from mme.system.files import read_json
from mme.targets.base import compute_targets
from mme.targets.drawing import Canvas
from mme.targets.grid import HiddenTokens, MaskedBatch, TargetSpec, stored_tracks
from mme.targets.position import POSITION, drawn_units
from mme.video.crop import Crop, apply_crop, resize
from mme.video.reader import read_metadata
from mme.video.resampling import iter_resampled
from mme.video.sampling import fitted_size
from mme.viz.drawing import Picture, dimmed, scale_to_height, titled_row
from mme.viz.glyphs import draw_hidden, draw_hog, draw_validity
from mme.viz.tracks import STILL_PX, PreviewRow, contact_sheet, direction_colours, draw_crosses, draw_path, spaced_cells

_HEIGHT_PX = 300


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model and the unit of its outputs.

    Attributes:
        network: of the stage ``pretrain``, in evaluation mode.
        clip, model, pretrain: sections that it was trained with.
        fps: frames per second that its clip counts in.
        deviation: predicted displacement of 1 in the units of the target; None if it predicts no positions.
    """

    network: MaskedMotionModel
    clip: ClipParams
    model: ModelParams
    pretrain: PretrainParams
    fps: float
    deviation: float | None

    @classmethod
    def load(cls, folder: Path) -> Pretrained:
        """Load the result of the stage ``pretrain``.

        Raises:
            ValueError: a file is missing or damaged, or was written by another version; the message names it.
        """
        path = folder / "config.json"
        config = read_json(path)
        try:
            clip, model = ClipParams(**config["clip"]), ModelParams(**config["model"])
            pretrain, statistics = PretrainParams(**config["pretrain"]), config["statistics"]
            fps = float(config["fps"])
        except (KeyError, TypeError, ValidationError) as error:
            raise ValueError(f"{path}: not of this version's stage pretrain: {error}") from error
        network = MaskedMotionModel(model, clip, pretrain)
        load_state(folder / "model.safetensors", network)
        deviation = float(statistics[POSITION.name][1]) if POSITION.name in statistics else None
        return cls(network.eval(), clip, model, pretrain, fps, deviation)

    @torch.inference_mode()
    def predict(self, clip: NDArray[np.uint8], hidden: NDArray[np.bool_]) -> NDArray[np.float32] | None:
        """Return displacements ``[M, C, L, 2]`` of hidden tokens as the target has them; None if it predicts none."""
        if self.deviation is None:
            return None
        pixels = model_input(torch.from_numpy(clip)[None], self.clip)
        chosen = torch.from_numpy(hidden)[None]
        visible = gather_tokens(self.network.encoder.patchify(pixels), ~chosen, int((~hidden).sum()))
        predicted = self.network(visible, chosen)[POSITION.name][0]
        return np.asarray(predicted.numpy() * self.deviation, dtype=np.float32)


@dataclass(frozen=True)
class Inspection:
    """Consecutive frames of a video in the normal form, and their tracks.

    Attributes:
        name: of the video.
        frames: RGB, uint8 ``[T, H, W, 3]``.
        fps: frames per second.
        tracks: from every frame but the last.
        compensated: True if camera motion was estimated.
    """

    name: str
    frames: NDArray[np.uint8]
    fps: float
    tracks: Tracks
    compensated: bool

    @classmethod
    def of(cls, path: Path, params: Params, fps: float, first: int, num_frames: int) -> Inspection:
        """Read ``num_frames`` frames of a video at ``fps``, from the frame ``first`` on, and track them.

        Raises:
            VideoError: the video cannot be decoded.
            ValueError: fewer than two frames are there.
        """
        info = read_metadata(path)
        _, dataset = params.dataset(params.pretrain.data)
        frames: list[NDArray[np.uint8]] = []
        for frame in itertools.islice(iter_resampled(path, fps), first, first + num_frames):
            height, width = fitted_size(frame.shape[0], frame.shape[1], dataset.short_side, info.pixel_aspect)
            frames.append(resize(frame[None], height // 2 * 2, width // 2 * 2)[0])
        if len(frames) < 2:
            raise ValueError(f"{path}: fewer than 2 frames from frame {first} on, at {fps:g} per second")
        tracks = extract_tracks(frames, params.trajectories)
        return cls(path.name, np.stack(frames), fps, tracks, params.trajectories.compensate_camera)

    def liveliest(self, needed: int) -> int:
        """Return the frame with the most motion after compensation, of those that ``needed`` frames can start at.

        Raises:
            ValueError: the stretch is shorter than that.
        """
        last = len(self.frames) - needed
        if last < 0:
            raise ValueError(f"{self.name}: {len(self.frames)} frames are too few, a clip and its tracks span {needed}")
        starts = list(range(0, last + 1, max(1, last // 16)))
        own = np.abs(self.tracks.select(starts, 1).residuals()).mean(axis=(1, 2, 3, 4))
        return starts[int(own.argmax())]

    def facts(self, start: int, length: int) -> str:
        """Describe the share of valid tracks and the frames whose camera motion is trusted."""
        chosen = self.tracks.select([start], length)
        valid = (chosen.num_valid == length).mean()
        trusted = self.tracks.trusted
        camera = f"trusted in {trusted.sum()} of {len(trusted)} frames" if self.compensated else "not estimated"
        return f"{valid:.0%} of the tracks valid; camera's motion {camera}"


def picture(inspection: Inspection, params: Params, start: int, pretrained: Pretrained | None) -> Picture:
    """Draw raw and compensated tracks, validity, HOG stars, and the mask with the motion of hidden tokens."""
    sections = pretrained or params
    clip, pretrain = sections.clip, sections.pretrain
    spec = TargetSpec.from_params(clip, sections.model, pretrain)
    frame, length = inspection.frames[start], pretrain.length
    row = PreviewRow(f"{inspection.name}   frame {start}", frame, inspection.tracks.select([start], length))
    tracked = contact_sheet([row], _HEIGHT_PX)
    tubelets = _hidden_tubelets(inspection, start, spec, clip, pretrain, pretrained)
    window = max(4, round(spec.hog_window_px * min(frame.shape[:2]) / clip.size))
    stars = draw_hog(frame, window, spec.hog_norm_floor, _HEIGHT_PX)
    validity = draw_validity(frame, row.tracks.num_valid[0] / length, row.tracks.cell, _HEIGHT_PX)
    title = f"hidden tokens, green their motion{drawn_units(pretrain.position_norm)}"
    if pretrained and pretrained.deviation is not None:
        title += ", pink what is predicted"
    sheets = [
        tracked,
        titled_row([(inspection.facts(start, length), validity), ("HOG: edges", stars)], tracked.shape[1]),
        titled_row([(title, np.hstack(tubelets))], tracked.shape[1]),
    ]
    return np.vstack(sheets)


def _hidden_tubelets(
    inspection: Inspection,
    start: int,
    spec: TargetSpec,
    clip: ClipParams,
    pretrain: PretrainParams,
    pretrained: Pretrained | None,
) -> list[Picture]:
    """Draw each tubelet of the centre crop from ``start`` on."""
    height, width = inspection.frames.shape[1:3]
    side = min(height, width)
    crop = Crop((height - side) // 2, (width - side) // 2, side, side, False)
    view = apply_crop(inspection.frames[start : start + clip.span_frames], crop, clip.size)
    kind: Literal["tube", "random"] = "tube" if pretrain.mask != "random" else "random"
    hidden = draw_mask(np.random.default_rng(0), spec.grid, pretrain.mask_ratio, kind)
    tracks = inspection.tracks.select(spec.starts(start), spec.length)
    _, *grid = tracks.num_valid.shape
    batch = stored_tracks(tracks, crop, (grid[0], grid[1]), camera=True) | {"hidden": torch.from_numpy(hidden)}
    batch = {name: value[None] for name, value in batch.items()}
    tokens = HiddenTokens(cast(MaskedBatch, batch), spec, int(hidden.sum()))
    true, valid = (part[0].numpy() for part in compute_targets([POSITION], tokens)[POSITION.name])
    predicted = None
    if pretrained is not None:
        predicted = pretrained.predict(np.ascontiguousarray(view[:: clip.stride_frames]), hidden)
    per_tubelet = len(hidden) // spec.num_tubelets
    size = max(clip.size, (2 * 360) // min(spec.num_tubelets, 4))
    tubelets = []
    for number in range(min(spec.num_tubelets, 4)):
        mask = hidden[number * per_tubelet : (number + 1) * per_tubelet]
        before = int(hidden[: number * per_tubelet].sum())
        part = slice(before, before + int(mask.sum()))
        values = (true[part], None if predicted is None else predicted[part])
        frame = view[number * spec.tubelet_stride]
        tubelets.append(draw_hidden(frame, mask, POSITION, values, valid[part], spec, size))
    return tubelets


def animation(inspection: Inspection, length: int, height_px: int = 288) -> NDArray[np.uint8]:
    """Draw the video with moving tracks, uint8 ``[T, H, W, 3]`` of even size.

    Raw tracks are on the left; on the right, each point has a tail of compensated motion that ends at its position.
    New points start every ``length`` frames.
    """
    pictures = []
    for start in range(0, len(inspection.frames) - 1, length):
        tracks = inspection.tracks.select([start], length)
        for step in range(min(length, len(inspection.frames) - 1 - start)):
            frame = inspection.frames[start + step + 1]
            panels = [_tails(frame, tracks, step + 1, own, height_px) for own in (False, True)]
            both = np.hstack(panels)
            pictures.append(both[: both.shape[0] // 2 * 2, : both.shape[1] // 2 * 2])
    return np.stack(pictures)


def _tails(frame: Picture, tracks: TrackSlice, num_steps: int, own: bool, height_px: int) -> Picture:
    """Draw a frame with the first ``num_steps`` steps of every point that is valid to the last of them."""
    scale = height_px / frame.shape[0]
    picture = dimmed(scale_to_height(frame, height_px))
    chosen = (0, *spaced_cells(tracks.cell, scale))
    moved = tracks.positions()[chosen][:, :, : num_steps + 1].reshape(-1, num_steps + 1, 2)
    valid = (tracks.num_valid >= num_steps)[chosen].reshape(-1)
    if own:
        steps = tracks.residuals()[chosen][:, :, :num_steps].reshape(-1, num_steps, 2)
        back = np.cumsum(steps[:, ::-1], axis=1)[:, ::-1]  # from each step to the present
        moved = np.concatenate([moved[:, -1:] - back, moved[:, -1:]], axis=1)
    total = moved[:, -1] - moved[:, 0]
    colours = direction_colours(total)
    moving = valid & (np.hypot(total[:, 0], total[:, 1]) >= STILL_PX)
    path = (moved + 0.5) * scale - 0.5
    draw_crosses(picture, path[~valid, -1])
    canvas = Canvas(picture, scale=1.0)
    for number in np.flatnonzero(moving):
        draw_path(canvas, path[number], colours[number])
    return picture


def needed_frames(params: Params, pretrained: Pretrained | None) -> int:
    """Return the number of frames that a clip and its tracks span."""
    sections = pretrained or params
    return frames_needed(sections.clip, sections.model, sections.pretrain.length)
