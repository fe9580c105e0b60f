"""Stage ``pretrain``: masked motion encoding on videos without labels."""

from __future__ import annotations

from pathlib import Path

import torch

from mme.config import load_params
from mme.data.datasets import PretrainDataset
from mme.data.manifest import Manifest
from mme.files import write_json
from mme.models.checkpoints import save_weights
from mme.plots import save_figure
from mme.stages.workspace import resumable_run
from mme.targets.store import TrackStore
from mme.training.loop import Curves, build_trainer, fit, loader
from mme.training.pictures import draw_predictions
from mme.training.pretrain import PretrainModule, target_statistics

MANIFEST = Path("data/manifest.parquet")
TRACKS = Path("data/trajectories")
OUTPUT = Path("models/pretrain")
REPORTS = Path("reports/pretrain")

SECTIONS = ("run", "clip", "model", "pretrain")
NUM_PICTURED = 6


def main() -> None:
    """Train, and write weights, curves, metrics and a picture of predictions on held-out clips."""
    params = load_params()
    manifest, tracks = Manifest.load(MANIFEST), TrackStore(TRACKS)
    training = PretrainDataset(params, manifest, tracks, params.pretrain.splits)
    has_held_out = bool(manifest.videos("val")) and "val" in params.trajectories.splits
    held_out = PretrainDataset(params, manifest, tracks, ["val"] if has_held_out else params.pretrain.splits)
    pretrain, seed = params.pretrain, params.run.seed
    batches = loader(training, pretrain.batch_size, seed, True, pretrain.num_loader_workers)
    held_out_batches = loader(held_out, pretrain.batch_size, seed, False, 0)
    sections = params.model_dump(mode="json", include=set(SECTIONS))
    with resumable_run("pretrain", params, sections, manifest.digest, tracks.params) as (run, work):
        run.log_dataset(MANIFEST, manifest.digest, "pretraining")
        torch.manual_seed(seed)
        module = PretrainModule(params, target_statistics(training), len(batches))
        curves = Curves(work / "curves.csv", run.log_metrics)
        trainer = build_trainer(
            work,
            epochs=pretrain.epochs,
            precision=pretrain.precision,
            clip_grad=pretrain.clip_grad,
            device=params.run.device,
            callbacks=[curves],
        )
        fit(trainer, module, batches, held_out_batches if has_held_out else None, work)
        OUTPUT.mkdir(parents=True, exist_ok=True)
        save_weights(OUTPUT / "model.safetensors", module.model)
        write_json(OUTPUT / "config.json", {**sections, "data_digest": manifest.digest, "run_id": run.id})
        REPORTS.mkdir(parents=True, exist_ok=True)
        (REPORTS / "curves.csv").write_bytes((work / "curves.csv").read_bytes())
        metrics = {name: value for name, value in curves.rows[-1].items() if name != "epoch"}
        write_json(REPORTS / "metrics.json", nested(metrics))
        figure = draw_predictions(module, held_out, NUM_PICTURED)
        if figure is not None:
            save_figure(figure, REPORTS / "predictions.png")
        run.log_artifact(REPORTS)


def nested(metrics: dict[str, float]) -> dict[str, dict[str, float]]:
    """``{"val/top1": x}`` as ``{"val": {"top1": x}}``, the form that DVC shows as a table."""
    groups: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = value
    return groups


if __name__ == "__main__":
    main()
