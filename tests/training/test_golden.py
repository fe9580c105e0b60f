"""The first losses of fixed runs against those kept as text: a change of the numbers has to be meant.

After a change that is meant: ``python -m tests.training.test_golden`` writes the file anew; say in the commit why.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import mme  # noqa: F401 - first of all, because it mends what importing torchvision needs

# isort: split
import pytest
import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback

from mme.manifest import Manifest
from mme.motion.store import TrackStore
from mme.training.finetune import run_finetuning
from mme.training.loop.module import TrainingModule
from mme.training.pretrain import run_pretraining
from tests.small_data import make_small_data, small_params

GOLDEN = Path(__file__).parents[1] / "golden" / "first_losses.txt"
RUNS = ("mme", "trajectory", "hog", "pixel", "scratch")
TOLERANCE = 2e-3
"""Relative. Other processors round otherwise, from the encoder of the videos on; a changed method shows at once."""

HEADER = """\
# Losses of the first steps on the small data set of the tests, seed 0, CPU: pretraining by objective, and finetuning.
# Written by `python -m tests.training.test_golden`; compared with a relative tolerance, see there.
"""


class Losses(Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.values.append(float(pl_module.step_losses["loss"]))


def first_losses(run: str, manifest: Manifest, work: Path) -> list[float]:
    """Three epochs of pretraining with an objective, or of finetuning from scratch."""
    losses = Losses()
    pretrain = {} if run == "scratch" else {"objective": run}
    params = small_params(runtime={"device": "cpu"}, pretrain=pretrain)
    if run == "scratch":
        run_finetuning(params, manifest, None, work, lambda *_: None, [losses])
    else:
        tracks = TrackStore(manifest.folder / "trajectories")
        run_pretraining(params, manifest, tracks, work, lambda *_: None, [losses])
    return losses.values


def read_golden() -> dict[str, list[float]]:
    lines = [line.split() for line in GOLDEN.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {name: [float(value) for value in values] for name, *values in lines}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_small_data(tmp_path_factory.mktemp("data"), small_params())


@pytest.mark.parametrize("run", RUNS)
def test_the_first_losses_are_those_kept(run: str, data: Manifest, tmp_path: Path) -> None:
    losses = first_losses(run, data, tmp_path)
    assert len(losses) >= 6
    assert losses == pytest.approx(read_golden()[run], rel=TOLERANCE)


def write_golden() -> None:
    lines = []
    with tempfile.TemporaryDirectory() as name:
        manifest = make_small_data(Path(name), small_params())
        for run in RUNS:
            losses = first_losses(run, manifest, Path(name) / f"work-{run}")
            lines.append(" ".join([run, *(f"{loss:.6f}" for loss in losses)]))
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_golden()
