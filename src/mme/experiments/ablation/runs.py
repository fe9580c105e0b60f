"""One training run of the ablation, in a process of its own; a finished run is not repeated."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock

from mme.config import Params
from mme.config.ablation import Budget
from mme.evaluation.multiview import METRIC_DIGITS
from mme.evaluation.probe import Batch, centre_views, encode, probe_metrics
from mme.experiments.ablation.plan import AblationRun, RunResult, few_labels, result_depends_on, run_params
from mme.manifest import MANIFEST_FILE, Manifest
from mme.models.checkpoints import save_weights
from mme.models.encoder import VideoEncoder, model_input
from mme.motion.store import TrackStore
from mme.system.files import digest, read_json, write_json
from mme.tracking import start_noted_run
from mme.training.finetune import FinetuneModule, run_finetuning
from mme.training.loop.callbacks import PeriodicProbe
from mme.training.pretrain import run_pretraining

ViewsBySplit = dict[str, list[Batch]]


@dataclass(frozen=True)
class AblationContext:
    """Values shared by all runs of an ablation.

    Attributes:
        params: the whole of ``params.yaml``.
        budget: budget of the ablation.
        data: folder of ``manifest.parquet``, ``videos`` and ``trajectories``.
        work: folder of unfinished and finished runs.
        code: digest of the code that trains and measures.
        parent_id: MLflow run of the ablation.
    """

    params: Params
    budget: Budget
    data: Path
    work: Path
    code: str
    parent_id: str


def execute_run(context: AblationContext, run: AblationRun) -> RunResult:
    """Train and measure a run, or return the result that an earlier call wrote.

    The folder's name is a digest of everything that decides the result. Output of the training goes to ``log.txt`` in
    the folder; a lock keeps two processes from working on one run.
    """
    manifest = Manifest.load(context.data / MANIFEST_FILE)
    tracks = TrackStore(context.data / "trajectories")
    depends_on = result_depends_on(context.params, context.budget, run)
    key = digest([depends_on, manifest.digest, tracks.params, context.code])
    folder = context.work / f"{run.objective}-{'search' if run.search else 'final'}-{key}"
    folder.mkdir(parents=True, exist_ok=True)

    path = folder / "result.json"
    with FileLock(folder / "lock"):
        if not path.exists():
            with (folder / "log.txt").open("a") as log, redirect_stdout(log), redirect_stderr(log):
                write_json(path, train_run(context, run, folder, manifest, tracks))
            gc.collect()  # trainer and module reference each other and thereby the data set's frames
            for stage in ("pretrain", "finetune"):
                (folder / stage / "last.ckpt").unlink(missing_ok=True)
    result: RunResult = read_json(path)
    return result


def train_run(
    context: AblationContext, run: AblationRun, folder: Path, manifest: Manifest, tracks: TrackStore
) -> RunResult:
    """Pretrain, probe and finetune as one recorded MLflow run below that of the ablation."""
    budget = context.budget
    params = run_params(context.params, budget, run)
    splits = ("train", "val") if run.search else ("train", "val", "test")
    views = {split: list(centre_views(manifest, split, params)) for split in splits}
    tags = {"stage": "ablation", "objective": run.objective}

    with start_noted_run(run.name, params, folder / "run_id", tags=tags, parent_id=context.parent_id) as recorded:
        result: RunResult = {"run": asdict(run), "run_id": recorded.id, "curve": [], "val": {}}
        weights = None

        # Frozen features: of random weights for scratch, else of the encoder after pretraining.
        if run.objective == "scratch":
            torch.manual_seed(run.seed)
            metrics = probe_splits(VideoEncoder(params.model, params.clip), views, params)
        else:
            probe = PeriodicProbe(
                budget.epochs if run.search else budget.probe_every_epochs,
                lambda encoder: probe_splits(encoder, views, params),
                recorded.log_metrics,
            )
            module, _ = run_pretraining(params, manifest, tracks, folder / "pretrain", _ignore, callbacks=[probe])
            weights = folder / "pretrained.safetensors"
            save_weights(weights, module.model)
            metrics = {name: value for name, value in probe.rows[-1].items() if "/" in name}
            result["curve"] = probe.rows
            result["pretrain_s"] = round(probe.seconds, 1)

        # Finetuning: of final runs, and of the search over the finetuning rate of scratch.
        if not run.search or run.objective == "scratch":
            begin = time.perf_counter()
            labelled = few_labels(manifest, budget.labels_per_class, run.seed)
            tuned, _ = run_finetuning(params, labelled, weights, folder / "finetune", _ignore)
            metrics |= {f"{split}/top1": top1(tuned, views[split]) for split in splits if split != "train"}
            result["finetune_s"] = round(time.perf_counter() - begin, 1)

        recorded.log_metrics(metrics, 0 if run.objective == "scratch" else params.pretrain.epochs)
        result["val"] = _of_split(metrics, "val")
        if not run.search:
            result["test"] = _of_split(metrics, "test")
    return result


def probe_splits(encoder: VideoEncoder, views: ViewsBySplit, params: Params) -> dict[str, float]:
    """Return ``SPLIT/probe_top1`` and ``SPLIT/knn_top1``, fitted on ``train``, of every other split."""
    features = {split: encode(encoder, batches, params.clip, params.evaluate.pool) for split, batches in views.items()}
    train = features.pop("train")
    metrics: dict[str, float] = {}
    for split, held_out in features.items():
        metrics |= {f"{split}/{name}": value for name, value in probe_metrics(train, held_out).items()}
    return metrics


@torch.inference_mode()
def top1(module: FinetuneModule, batches: list[Batch]) -> float:
    """Return the share of centre views whose most probable label is the true one."""
    module.eval()
    device = module.model.head.weight.device
    hits, count = 0, 0
    for frames, labels in batches:
        pixels = model_input(torch.from_numpy(frames).to(device), module.params.clip)  # (B, 3, T, S, S)
        predicted = module.model(pixels).argmax(dim=1).cpu()  # (B,)
        hits += int((predicted == torch.from_numpy(labels)).sum())
        count += len(labels)
    return round(hits / count, METRIC_DIGITS)


def _of_split(metrics: Mapping[str, float], split: str) -> dict[str, float]:
    return {name.removeprefix(f"{split}/"): value for name, value in metrics.items() if name.startswith(f"{split}/")}


def _ignore(metrics: Mapping[str, float], epoch: int) -> None:
    """Record no metrics per epoch in MLflow; they are in the run's ``curves.csv``."""
