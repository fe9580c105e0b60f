"""One training run of the ablation, in a process of its own; a finished one is not run again."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from filelock import FileLock
from pytorch_lightning.callbacks import Callback

from mme.config import ClipParams, Params
from mme.config.ablation import Budget
from mme.config.names import nest
from mme.evaluation.probe import Batch, centre_views, encode, knn, linear_probe
from mme.experiments.ablation.plan import Cell, Result, cell_params, depends_on, few_labels
from mme.manifest import Manifest
from mme.models.checkpoints import save_weights
from mme.models.encoder import VideoEncoder, model_input
from mme.motion.store import TrackStore
from mme.system.files import digest, read_json, write_json, write_text
from mme.tracking import Run, start_run
from mme.training.finetune import FinetuneModule, run_finetuning
from mme.training.pretrain import PretrainModule, run_pretraining

DIGITS = 6
Views = dict[str, list[Batch]]


@dataclass(frozen=True)
class Site:
    """What all cells of an ablation share.

    Attributes:
        params: the whole of ``params.yaml``.
        budget: of the ablation.
        data: folder of ``manifest.parquet``, ``videos`` and ``trajectories``.
        work: folder of unfinished and finished cells.
        code: digest of the code that trains and measures.
        parent: id of the run that the cells' runs are nested in.
    """

    params: Params
    budget: Budget
    data: Path
    work: Path
    code: str
    parent: str


class ProbeCurve(Callback):
    """Probes the encoder every few epochs; what that takes counts as no training time."""

    def __init__(self, views: Views, every_epochs: int, run: Run) -> None:
        self.views, self.every_epochs, self.run = views, every_epochs, run
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self._begin = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._begin = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop it, and probe if it is time."""
        self.seconds += time.perf_counter() - self._begin
        epoch = trainer.current_epoch + 1
        if epoch % self.every_epochs and epoch != trainer.max_epochs:
            return
        assert isinstance(pl_module, PretrainModule)
        figures = probe(pl_module.model.encoder, self.views, pl_module.params.clip)
        self.rows.append({"epoch": epoch, "seconds": round(self.seconds, 1), **figures})
        self.run.log_metrics(figures, epoch)

    def state_dict(self) -> dict[str, Any]:
        """The curve so far."""
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the curve of an interrupted run."""
        self.rows, self.seconds = list(state_dict["rows"]), state_dict["seconds"]


def probe(encoder: VideoEncoder, views: Views, clip: ClipParams) -> dict[str, float]:
    """``SPLIT/probe_top1`` and ``SPLIT/knn_top1`` of every split but ``train``, on whose features they rest."""
    features = {split: encode(encoder, batches, clip) for split, batches in views.items()}
    train = features.pop("train")
    figures = {}
    for split, held_out in features.items():
        figures[f"{split}/probe_top1"] = round(linear_probe(train, held_out), DIGITS)
        figures[f"{split}/knn_top1"] = round(knn(train, held_out), DIGITS)
    return figures


@torch.inference_mode()
def top1(module: FinetuneModule, batches: list[Batch]) -> float:
    """Share of centre views whose most probable label is theirs."""
    module.eval()
    device, hits, count = module.model.head.weight.device, 0, 0
    for frames, labels in batches:
        logits = module.model(model_input(torch.from_numpy(frames).to(device), module.params.clip))
        hits += int((logits.argmax(dim=1).cpu() == torch.from_numpy(labels)).sum())
        count += len(labels)
    return round(hits / count, DIGITS)


def cell_folder(site: Site, cell: Cell, manifest: Manifest, tracks: TrackStore) -> Path:
    """Where a cell works and leaves its result; its name follows from everything that the result follows from."""
    key = digest([depends_on(site.params, site.budget, cell), manifest.digest, tracks.params, site.code])
    return site.work / f"{cell.objective}-{'search' if cell.search else 'final'}-{key}"


def run_cell(site: Site, cell: Cell) -> Result:
    """Train and measure a cell, or give what it left when it ran before.

    The output of the training goes to ``log.txt`` in the cell's folder. Two processes never work on one cell.
    """
    manifest, tracks = Manifest.load(site.data / "manifest.parquet"), TrackStore(site.data / "trajectories")
    folder = cell_folder(site, cell, manifest, tracks)
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "result.json"
    with FileLock(folder / "lock"):
        if not done.exists():
            with (folder / "log.txt").open("a") as log, redirect_stdout(log), redirect_stderr(log):
                write_json(done, train_cell(site, cell, folder, manifest, tracks))
            gc.collect()  # trainer and module hold each other, and with them the frames of the data set
            for name in ("pretrain", "finetune"):
                (folder / name / "last.ckpt").unlink(missing_ok=True)
    result: Result = read_json(done)
    return result


def train_cell(site: Site, cell: Cell, folder: Path, manifest: Manifest, tracks: TrackStore) -> Result:
    """Pretrain, probe and finetune as one recorded run, nested in the ablation's."""
    params, budget = cell_params(site.params, site.budget, cell), site.budget
    note = folder / "run_id"
    former = note.read_text(encoding="utf-8") if note.exists() else None
    tags = {"stage": "ablation", "mlflow.parentRunId": site.parent, "objective": cell.objective}
    with start_run(cell.name, params, tags=tags, resume_run_id=former) as run:
        write_text(note, run.id)
        splits = ("train", "val") if cell.search else ("train", "val", "test")
        views = {split: list(centre_views(manifest, split, params)) for split in splits}
        result: Result = {"cell": asdict(cell), "run_id": run.id, "curve": []}
        figures: dict[str, float] = {}
        weights = None
        if cell.objective == "scratch":
            torch.manual_seed(cell.seed)
            figures |= probe(VideoEncoder(params.model, params.clip), views, params.clip)
        else:
            every = budget.epochs if cell.search else budget.probe_every_epochs
            curve = ProbeCurve(views, every, run)
            work = folder / "pretrain"
            module, _ = run_pretraining(params, manifest, tracks, work, _ignore, callbacks=[curve])
            weights = folder / "pretrained.safetensors"
            save_weights(weights, module.model)
            figures |= {name: value for name, value in curve.rows[-1].items() if "/" in name}
            result |= {"curve": curve.rows, "pretrain_s": round(curve.seconds, 1)}
        if not cell.search or cell.objective == "scratch":
            begin = time.perf_counter()
            labelled = few_labels(manifest, budget.labels_per_class, cell.seed)
            tuned, _ = run_finetuning(params, labelled, weights, folder / "finetune", _ignore)
            figures |= {f"{split}/top1": top1(tuned, views[split]) for split in splits if split != "train"}
            result["finetune_s"] = round(time.perf_counter() - begin, 1)
        run.log_metrics(figures, 0 if cell.objective == "scratch" else params.pretrain.epochs)
    return result | nest(figures, "/")


def _ignore(metrics: Mapping[str, float], epoch: int) -> None:
    """Losses of the epochs stand in the cell's ``curves.csv``."""
