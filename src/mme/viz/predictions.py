"""Picture of targets and predictions of hidden tokens."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils.data import default_collate

from mme.data.masked.clips import PretrainDataset
from mme.targets.drawing import PREDICTED_COLOUR, TRUE_COLOUR
from mme.targets.grid import CELLS_PER_TOKEN
from mme.training.pretrain import PretrainModule
from mme.viz.drawing import MARGIN_PX, Picture, blank_sheet, draw_text
from mme.viz.glyphs import draw_hidden

_PANEL_PX = 256
_TITLE_PX = 34


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
    predicted = module.model(prepared["clip"], prepared["hidden"])[target.name].float()
    values = [
        module.unstandardise(target.name, standard).cpu().numpy() for standard in (prepared[target.name], predicted)
    ]
    valid = cells_of(prepared[f"{target.name}_valid"]).cpu().numpy()  # (B, M, C)

    spec = dataset.spec
    per_tubelet = batch["hidden"].shape[1] // spec.num_tubelets
    panels = []
    for row, (clip, hidden) in enumerate(zip(batch["clip"].numpy(), batch["hidden"].numpy(), strict=True)):
        first = hidden[:per_tubelet]  # tokens of the first tubelet
        number = int(first.sum())
        shown = (values[0][row, :number], values[1][row, :number])
        panels.append(draw_hidden(clip[0], first, target, shown, valid[row, :number], spec, _PANEL_PX))
    return _sheet(panels, f"{target.label} of hidden patches:")


def cells_of(valid: Bool[Tensor, "B M *V"]) -> Bool[Tensor, "B M C"]:
    """Validity of each cell, of targets that have one per cell or one per token."""
    return valid if valid.ndim > 2 else valid[:, :, None].expand(-1, -1, CELLS_PER_TOKEN)


def _sheet(panels: list[Picture], title: str) -> Picture:
    """Two rows of panels under a title with the key to the colours."""
    columns = (len(panels) + 1) // 2
    pitch = _PANEL_PX + MARGIN_PX
    rows = 1 if len(panels) == 1 else 2
    sheet = blank_sheet(_TITLE_PX + rows * pitch, max(columns * pitch + MARGIN_PX, 2 * pitch))
    draw_text(sheet, title, (MARGIN_PX, 22))
    place = MARGIN_PX + 9 * len(title)
    for name, colour in (("true", TRUE_COLOUR), ("predicted", PREDICTED_COLOUR)):
        cv2.putText(sheet, name, (place, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
        place += 60
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        top, left = _TITLE_PX + row * pitch, MARGIN_PX + column * pitch
        sheet[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
    return sheet
