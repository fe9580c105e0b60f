"""Stage ``finetune``: action recognition with the pretrained encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from mme.config import Params, load_params
from mme.data.datasets import LabelledDataset
from mme.data.manifest import Manifest
from mme.files import sha256_file, write_json
from mme.models.checkpoints import FORMAT, FolderConfig, ViewsConfig, save_folder
from mme.models.classifier import MotionClassifier
from mme.stages.pretrain import MANIFEST, nested
from mme.stages.workspace import resumable_run
from mme.training.finetune import FinetuneModule
from mme.training.loop import Curves, build_trainer, fit, loader

PRETRAINED = Path("models/pretrain/model.safetensors")
OUTPUT = Path("models/finetune")
REPORTS = Path("reports/finetune")

SECTIONS = ("run", "clip", "model", "finetune")


def load_encoder(path: Path, classifier: MotionClassifier) -> None:
    """Take encoder and norm from a pretrained model.

    Raises:
        ValueError: they are not there or have other shapes; the message names the file and the keys.
    """
    wanted = {name: value for name, value in classifier.state_dict().items() if not name.startswith("head.")}
    found = {name: value for name, value in load_file(path).items() if name in wanted}
    faults = [name for name, value in wanted.items() if name not in found or found[name].shape != value.shape]
    if faults:
        raise ValueError(f"{path}: missing or of another shape than params.yaml says: {', '.join(sorted(faults))}")
    classifier.load_state_dict(found, strict=False)


def main() -> None:
    """Train, and write the model folder of the best epoch, curves and metrics."""
    params = load_params()
    manifest = Manifest.load(MANIFEST)
    finetune, seed = params.finetune, params.run.seed
    training = LabelledDataset(params, manifest, "train", training=True)
    validation = LabelledDataset(params, manifest, "val", training=False)
    batches = loader(training, finetune.batch_size, seed, True, finetune.num_loader_workers)
    validation_batches = loader(validation, finetune.batch_size, seed, False, 0)
    sections = params.model_dump(mode="json", include=set(SECTIONS))
    start = sha256_file(PRETRAINED) if finetune.init == "pretrained" else None
    with resumable_run("finetune", params, sections, manifest.digest, start) as (run, work):
        run.log_dataset(MANIFEST, manifest.digest, "finetuning")
        torch.manual_seed(seed)
        module = FinetuneModule(params, len(manifest.labels), len(batches))
        if finetune.init == "pretrained":
            load_encoder(PRETRAINED, module.model)
        curves = Curves(work / "curves.csv", run.log_metrics)
        trainer = build_trainer(
            work,
            epochs=finetune.epochs,
            precision=finetune.precision,
            clip_grad=finetune.clip_grad,
            device=params.run.device,
            callbacks=[curves],
        )
        fit(trainer, module, batches, validation_batches, work)
        module.model.load_state_dict(module.best["state"])
        best = curves.rows[module.best["epoch"]]
        metrics = {name: value for name, value in best.items() if name != "epoch"}
        save_folder(OUTPUT, module.model, folder_config(params, manifest, metrics, run.id))
        REPORTS.mkdir(parents=True, exist_ok=True)
        (REPORTS / "curves.csv").write_bytes((work / "curves.csv").read_bytes())
        write_json(REPORTS / "metrics.json", nested(metrics))
        run.log_artifact(REPORTS)


def folder_config(params: Params, manifest: Manifest, metrics: dict[str, float], run_id: str) -> FolderConfig:
    """``config.json`` of the model folder."""
    return FolderConfig(
        format=FORMAT,
        name=params.registry.name,
        model=params.model,
        clip=params.clip,
        views=ViewsConfig(segments=params.evaluate.segments, crops=params.evaluate.crops),
        labels=tuple(manifest.labels),
        provenance={"data_digest": manifest.digest, "params_digest": params.digest(), "run_id": run_id},
        metrics=metrics,
    )


if __name__ == "__main__":
    main()
