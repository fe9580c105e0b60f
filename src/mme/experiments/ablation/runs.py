"""One training run of the ablation, in a process of its own; a finished run is not repeated."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock

from mme.config import Params
from mme.config.ablation import SCRATCH, Budget
from mme.config.paths import start_weights
from mme.evaluation.multiview import METRIC_DIGITS
from mme.evaluation.probe import Batch, centre_views, encode, probe_metrics, start_encoder
from mme.experiments.ablation.plan import (
    AblationRun,
    RunResult,
    few_labels,
    finetuned_depends_on,
    frozen_depends_on,
    of_fold,
    run_params,
)
from mme.manifest import MANIFEST_FILE, Manifest
from mme.models.checkpoints import save_weights
from mme.models.encoder import VideoEncoder, model_input
from mme.motion.store import TrackStore
from mme.system.files import digest, read_json, sha256_file, write_json
from mme.tracking import Run, start_noted_run
from mme.training.finetune import FinetuneModule, run_finetuning
from mme.training.loop.callbacks import PeriodicProbe
from mme.training.pretrain import run_pretraining

ViewsBySplit = dict[str, list[Batch]]

FROZEN_RESULT = "result.json"
PRETRAINED_FILE = "pretrained.safetensors"


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


@dataclass(frozen=True)
class _Place:
    """Folder and file of a run's result, both named by digests of all that decides it, and what the run reads."""

    folder: Path
    path: Path
    manifest: Manifest
    tracks: TrackStore


def _place(context: AblationContext, run: AblationRun, finetuned: bool) -> _Place:
    manifest = Manifest.load(context.data / MANIFEST_FILE)
    if run.fold is not None:
        assert context.budget.folds is not None
        manifest = of_fold(manifest, context.budget.folds, run.fold)
    tracks = TrackStore(context.data / "trajectories")
    start = start_weights(run.init)
    parts = [frozen_depends_on(context.params, context.budget, run), manifest.digest, tracks.params, context.code]
    if start is not None:
        parts.append(sha256_file(start))
    folder = context.work / f"{run.objective}-{'search' if run.search else 'final'}-{digest(parts)}"
    name = FROZEN_RESULT
    if finetuned:
        name = f"finetuned-{digest(finetuned_depends_on(context.params, context.budget, run))}.json"
    return _Place(folder, folder / name, manifest, tracks)


def stored_result(context: AblationContext, run: AblationRun, finetuned: bool) -> RunResult | None:
    """Return the result of a run that an earlier call wrote; None if there is none."""
    path = _place(context, run, finetuned).path
    return read_json(path) if path.exists() else None


def execute_run(context: AblationContext, run: AblationRun, finetuned: bool) -> RunResult:
    """Pretrain and measure the frozen encoder, or finetune it, or return the result that an earlier call wrote.

    Output of the training goes to ``log.txt`` in the run's folder; a lock keeps two processes from working on one run.

    Args:
        context: of the ablation.
        run: the run.
        finetuned: True to finetune the encoder, which is pretrained first if it has not been.
    """
    place = _place(context, run, finetuned)
    folder, frozen_path = place.folder, place.folder / FROZEN_RESULT
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not place.path.exists():
            with (folder / "log.txt").open("a") as log, redirect_stdout(log), redirect_stderr(log):
                if not frozen_path.exists():
                    write_json(frozen_path, train_run(context, run, folder, place.manifest, place.tracks))
                if finetuned:
                    work = place.path.with_suffix("")
                    write_json(place.path, finetune_run(context, run, work, place.manifest, read_json(frozen_path)))
            gc.collect()  # trainer and module reference each other and thereby the data set's frames
            for checkpoint in folder.glob("*/last.ckpt"):
                checkpoint.unlink()
    result: RunResult = read_json(place.path)
    return result


def train_run(
    context: AblationContext, run: AblationRun, folder: Path, manifest: Manifest, tracks: TrackStore
) -> RunResult:
    """Pretrain and probe as one recorded MLflow run below that of the ablation."""
    budget = context.budget
    params = run_params(context.params, budget, run)
    splits = ("train", "val") if run.search else ("train", "val", "test")
    views = {split: list(centre_views(manifest, split, params)) for split in splits}

    with _recorded(context, run, folder, params) as recorded:
        result: RunResult = {"run": asdict(run), "run_id": recorded.id, "curve": [], "val": {}}

        # Frozen features: of the start for scratch, else of the encoder after pretraining.
        if run.objective == SCRATCH:
            metrics = probe_splits(start_encoder(params), views, params)
        else:
            probe = PeriodicProbe(
                budget.epochs if run.search else budget.probe_every_epochs,
                lambda encoder: probe_splits(encoder, views, params),
                recorded.log_metrics,
            )
            module, _ = run_pretraining(params, manifest, tracks, folder / "pretrain", _ignore, callbacks=[probe])
            save_weights(folder / PRETRAINED_FILE, module.model)
            metrics = {name: value for name, value in probe.rows[-1].items() if "/" in name}
            result["curve"] = probe.rows
            result["pretrain_s"] = round(probe.seconds, 1)

        recorded.log_metrics(metrics, 0 if run.objective == SCRATCH else params.pretrain.epochs)
        result["val"] = _of_split(metrics, "val")
        if not run.search:
            result["test"] = _of_split(metrics, "test")
    return result


def finetune_run(
    context: AblationContext, run: AblationRun, work: Path, manifest: Manifest, frozen: RunResult
) -> RunResult:
    """Finetune the encoder of a run and add the accuracy to its result, and to its MLflow run."""
    folder = work.parent
    budget = context.budget
    params = run_params(context.params, budget, run)
    weights = start_weights(run.init) if run.objective == SCRATCH else folder / PRETRAINED_FILE
    with _recorded(context, run, folder, params) as recorded:
        begin = time.perf_counter()
        labelled = few_labels(manifest, budget.labels_per_class, run.seed)
        tuned, _ = run_finetuning(params, labelled, weights, work, _ignore)
        seconds = time.perf_counter() - begin

        metrics = {"val/top1": top1(tuned, centre_views(manifest, "val", params))}
        result: RunResult = {**frozen, "val": {**frozen["val"], "top1": metrics["val/top1"]}}
        if "test" in frozen:
            metrics["test/top1"] = top1(tuned, centre_views(manifest, "test", params))
            result["test"] = {**frozen["test"], "top1": metrics["test/top1"]}
        recorded.log_metrics(metrics, 0 if run.objective == SCRATCH else params.pretrain.epochs)
    return {**result, "finetune_s": round(seconds, 1)}


def _recorded(context: AblationContext, run: AblationRun, folder: Path, params: Params) -> AbstractContextManager[Run]:
    tags = {"stage": "ablation", "objective": run.objective}
    return start_noted_run(run.name, params, folder / "run_id", tags=tags, parent_id=context.parent_id)


def probe_splits(encoder: VideoEncoder, views: ViewsBySplit, params: Params) -> dict[str, float]:
    """Return ``SPLIT/probe_top1`` and ``SPLIT/knn_top1``, fitted on ``train``, of every other split."""
    features = {split: encode(encoder, batches, params.clip, params.evaluate.pool) for split, batches in views.items()}
    train = features.pop("train")
    measured = probe_metrics(train, features)
    return {f"{split}/{name}": value for split, metrics in measured.items() for name, value in metrics.items()}


@torch.inference_mode()
def top1(module: FinetuneModule, batches: Iterable[Batch]) -> float:
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
