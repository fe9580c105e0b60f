"""Stage ``finetune``: action recognition with the pretrained encoder."""

from __future__ import annotations

from pathlib import Path

from mme.config import Params, load_params
from mme.manifest import MANIFEST_FILE, Manifest
from mme.models.checkpoints import FORMAT, FolderConfig, ViewsConfig, save_folder
from mme.stages.workspace import metrics_by_split, resumable_run, work_folder
from mme.system.errors import one_line_errors
from mme.system.files import sha256_file, write_json
from mme.training.finetune import run_finetuning
from mme.training.loop.trainer import is_main_process

PRETRAINED = Path("models/pretrain/model.safetensors")
OUTPUT = Path("models/finetune")
REPORTS = Path("reports/finetune")

SECTIONS = ("seed", "clip", "model", "finetune")


def main() -> None:
    """Train, and write the model folder of the best epoch, curves and metrics."""
    params = load_params()
    manifest_file = Path(params.finetune.data, MANIFEST_FILE)
    manifest = Manifest.load(manifest_file)
    sections = params.model_dump(mode="json", include=set(SECTIONS))
    pretrained = PRETRAINED if params.finetune.init == "pretrained" else None
    start = None if pretrained is None else sha256_file(pretrained)
    depends_on = (sections, manifest.digest, start)
    if not is_main_process():
        run_finetuning(params, manifest, pretrained, work_folder("finetune", *depends_on), lambda *_: None)
        return
    with resumable_run("finetune", params, *depends_on) as (run, work):
        run.log_dataset(manifest_file, manifest.digest, "finetuning")
        module, curves = run_finetuning(params, manifest, pretrained, work, run.log_metrics)
        best = curves.rows[module.best["epoch"]]
        metrics = {name: value for name, value in best.items() if name != "epoch"}
        save_folder(OUTPUT, module.model, folder_config(params, manifest, metrics, run.id))
        REPORTS.mkdir(parents=True, exist_ok=True)
        (REPORTS / "curves.csv").write_bytes((work / "curves.csv").read_bytes())
        write_json(REPORTS / "metrics.json", metrics_by_split(best))
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
    with one_line_errors():
        main()
