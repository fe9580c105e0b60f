"""What a pretrained model believes of motion it does not see."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch.utils.data import default_collate

from mme.config import CELLS_PER_PATCH_SIDE
from mme.data.masked.clips import PretrainDataset
from mme.models.encoder import model_input
from mme.training.pretrain import PretrainModule

HIDDEN_BRIGHTNESS = 0.35
TRUE_COLOUR, PREDICTED_COLOUR = "#3ddc84", "#ff5fa2"


@torch.inference_mode()
def draw_predictions(module: PretrainModule, dataset: PretrainDataset, count: int) -> Figure | None:
    """True and predicted trajectories of hidden tokens on the clip's first tubelet, one panel a clip.

    Trajectories start at the cells' centres and are drawn in clip pixels (camera motion removed), except under
    ``patch_std``, whose units a patch cannot undo; hidden patches are darkened. None where the objective has no
    positions.
    """
    if "position" not in module.model.target_shapes:
        return None
    module.eval()
    spread = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    batch = default_collate([dataset[0, int(index)] for index in spread])
    batch = {name: value.to(module.device) for name, value in batch.items()}
    predicted = module.model(model_input(batch["clip"], module.params.clip), batch["hidden"])["position"].float()
    unit = 1.0 if module.params.pretrain.position_norm == "none" else module.params.pretrain.patch_std_floor_px
    predicted = predicted * module.position_deviation * unit
    figure = Figure(figsize=(1.6 * len(spread) + 1, 6.4), layout="constrained")
    axes = figure.subplots(2, (len(spread) + 1) // 2, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, axis in zip(range(len(spread)), axes.flat, strict=False):
        arrays = [value[row].cpu().numpy() for value in (batch["hidden"], batch["position"] * unit, predicted)]
        _draw_clip(axis, batch["clip"][row, 0].cpu().numpy(), module, arrays, batch["valid"][row].cpu().numpy())
    handles = [Line2D([], [], color=colour, lw=2) for colour in (TRUE_COLOUR, PREDICTED_COLOUR)]
    figure.legend(handles, ["true", "predicted"], loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"Motion of hidden patches over {module.params.pretrain.length} frames, held-out clips")
    return figure


def _draw_clip(
    axis: Axes,
    frame: NDArray[np.uint8],
    module: PretrainModule,
    arrays: list[NDArray[np.float32]],
    valid: NDArray[np.bool_],
) -> None:
    hidden, true, predicted = arrays
    _, rows, columns = module.model.encoder.grid
    patch = module.model.encoder.patch_size
    first = hidden[: rows * columns].astype(bool)  # tokens of the first tubelet
    shade = np.where(first.reshape(rows, columns).repeat(patch, 0).repeat(patch, 1), HIDDEN_BRIGHTNESS, 1.0)
    axis.imshow((frame * shade[..., None]).astype(np.uint8))
    starts = _cell_centres(rows, columns, patch)[first]  # (m, C, 2)
    for steps, colour in ((true, TRUE_COLOUR), (predicted, PREDICTED_COLOUR)):
        moved = starts[:, :, None] + np.cumsum(steps[: len(starts)], axis=2)
        paths = np.concatenate([starts[:, :, None], moved], axis=2)[valid[: len(starts)]]  # (lines, L + 1, 2)
        axis.add_collection(LineCollection(list(paths), colors=colour, linewidths=1.3))
    axis.set_xlim(-0.5, frame.shape[1] - 0.5)
    axis.set_ylim(frame.shape[0] - 0.5, -0.5)


def _cell_centres(rows: int, columns: int, patch: int) -> NDArray[np.float64]:
    """Centres (x, y) of the cells of one tubelet's tokens, [rows * columns, C, 2]."""
    side = CELLS_PER_PATCH_SIDE
    offsets = (np.arange(side) + 0.5) * patch / side - 0.5
    y, x, cell_y, cell_x = np.meshgrid(
        np.arange(rows) * patch, np.arange(columns) * patch, offsets, offsets, indexing="ij"
    )
    return np.stack([x + cell_x, y + cell_y], axis=-1).reshape(rows * columns, side * side, 2)
