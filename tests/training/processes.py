"""What one process of a distributed training does in a test: ``torchrun processes.py DATA OUTPUT DEVICE``.

Trains in several ways and writes the global losses of every step, the recorded metrics and a digest of the weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mme  # noqa: F401 - first of all, because it mends what importing torchvision needs

# isort: split
import torch
import torch.distributed
from pytorch_lightning import Callback, LightningModule, Trainer

from mme.config import Params
from mme.config.edit import with_values
from mme.manifest import Manifest
from mme.motion.store import TrackStore
from mme.training.finetune import run_finetuning
from mme.training.loop.module import TrainingModule
from mme.training.loop.trainer import is_main_process
from mme.training.pretrain import run_pretraining
from tests.small_data import small_params, split_options

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 280.0
NUM_STEPS = 12
FINETUNINGS = {"finetune": "none", "sampling": "sampling", "loss": "loss"}
VARIANTS: dict[str, dict[str, Any]] = {"plain": {}, "parts": {"accumulate": 2}, "draws": {"draws_per_decode": 2}}


class GlobalLosses(Callback):
    """Losses of the global batch, step by step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.losses.append(float(trainer.strategy.reduce(pl_module.step_losses["loss"].clone(), reduce_op="mean")))


def params_of(num_processes: int, device: str, **options: Any) -> Params:
    """Four epochs of three steps in pretraining, three of two in finetuning, without what is drawn for a process."""
    runtime, options = split_options(options)
    return small_params(
        runtime={"device": device, "devices": num_processes, **runtime},
        pretrain={"epochs": 4, "batch_size": 4, **options},
        finetune={"epochs": 3, "batch_size": 4, "mixup": 0.0, "cutmix": 0.0, "drop_path": 0.0},
    )


def digest_of(module: torch.nn.Module) -> str:
    content = b"".join(value.cpu().numpy().tobytes() for value in module.state_dict().values())
    return hashlib.sha256(content).hexdigest()


def train(data: Path, work: Path, num_processes: int, device: str = "cpu") -> dict[str, Any]:
    """What each way of training came to, seen from this process."""
    manifest, found = Manifest.load(data / "manifest.parquet"), {}
    tracks = TrackStore(data / "trajectories")
    for name, options in VARIANTS.items():
        params, seen = params_of(num_processes, device, **options), GlobalLosses()
        module, curves = run_pretraining(params, manifest, tracks, work / name, lambda *_: None, [seen])
        found[name] = {"losses": seen.losses, "rows": curves.rows, "weights": digest_of(module.model)}
    for name, balance in FINETUNINGS.items():
        params, seen = params_of(num_processes, device), GlobalLosses()
        params = with_values(params, {"finetune.balance": balance})
        classifier, curves = run_finetuning(params, unequal(manifest), None, work / name, lambda *_: None, [seen])
        found[name] = {"losses": seen.losses, "rows": curves.rows, "weights": digest_of(classifier.model)}
    return found


def unequal(manifest: Manifest) -> Manifest:
    """Leave the first class two training videos and the others one or two fewer."""
    return manifest.without(["train-5", "train-6"])


def launched(data: Path, output: Path, num_processes: int, device: str = "cpu") -> list[dict[str, Any]]:
    """What each of several processes found, started by torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), *sys.path]),
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    answer = subprocess.run(
        [*launcher, __file__, str(data), str(output), device],
        env=environment, cwd=output, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-8000:]
    ranks = range(num_processes)
    return [json.loads((output / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in ranks]


if __name__ == "__main__":
    torch.set_num_threads(1)
    output = Path(sys.argv[2])
    result = train(Path(sys.argv[1]), output / "work", int(os.environ["WORLD_SIZE"]), sys.argv[3])
    result["backend"] = torch.distributed.get_backend()
    (output / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(result), encoding="utf-8")
    assert is_main_process() == (os.environ["RANK"] == "0")
