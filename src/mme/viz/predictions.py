"""Picture of targets and predictions of hidden tokens."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils.data import default_collate

from mme.data.masked.clips import PretrainDataset
from mme.models.encoder import rgb_of
from mme.targets.grid import CELLS_PER_TOKEN
from mme.targets.position import POSITION, drawn_units
from mme.training.pretrain import PretrainModule
from mme.viz.drawing import BACKGROUND, MARGIN_PX, Picture, titled_row
from mme.viz.glyphs import draw_hidden

_PANEL_PX = 256


@torch.inference_mode()
def draw_predictions(module: PretrainModule, dataset: PretrainDataset, count: int) -> Picture:
    """Draw what the hidden tokens of each clip's first tubelet should and do predict, one panel per clip.

    The objective's first target is drawn, in its own units. Hidden tokens are darkened.
    """
    module.eval()
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    batch = default_collate([dataset[0, int(index)] for index in chosen])
    prepared = module.prepare({name: value.to(module.device) for name, value in batch.items()})
    target = module.model.targets[0]
    predicted = module.model(prepared["tubelets"], prepared["hidden"])[target.name].float()
    values = [
        module.unstandardise(target.name, standard).cpu().numpy() for standard in (prepared[target.name], predicted)
    ]
    valid = cells_of(prepared[f"{target.name}_valid"]).cpu().numpy()  # (B, M, C)

    spec = dataset.spec
    per_tubelet = batch["hidden"].shape[1] // spec.num_tubelets
    panels = []
    first_frames = rgb_of(batch["luma"][:, 0], batch["chroma"][:, 0]).numpy()  # (B, S, S, 3)
    for row, (frame, hidden) in enumerate(zip(first_frames, batch["hidden"].numpy(), strict=True)):
        first = hidden[:per_tubelet]  # tokens of the first tubelet
        number = int(first.sum())
        shown = (values[0][row, :number], values[1][row, :number])
        panels.append(draw_hidden(frame, first, target, shown, valid[row, :number], spec, _PANEL_PX))

    # Two rows of panels.
    margins = ((0, MARGIN_PX), (0, MARGIN_PX), (0, 0))
    padded = [np.pad(panel, margins, constant_values=BACKGROUND[0]) for panel in panels]
    if len(padded) > 1 and len(padded) % 2:
        padded.append(np.full_like(padded[0], BACKGROUND[0]))
    rows = np.split(np.stack(padded), min(2, len(padded)))
    sheet = np.vstack([np.hstack(list(row)) for row in rows])
    units = drawn_units(spec.position_norm) if target is POSITION else ""
    title = f"{target.label} of hidden patches{units}: green true, pink predicted"
    width = max(sheet.shape[1], 2 * _PANEL_PX) + 2 * MARGIN_PX  # room for the title
    return titled_row([(title, sheet)], width)


def cells_of(valid: Bool[Tensor, "B M *V"]) -> Bool[Tensor, "B M C"]:
    """Validity of each cell, of targets that have one per cell or one per token."""
    return valid if valid.ndim > 2 else valid[:, :, None].expand(-1, -1, CELLS_PER_TOKEN)
