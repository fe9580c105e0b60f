"""Stage ``finetune``: action recognition with the pretrained encoder."""

from __future__ import annotations

from collections import Counter

from pydantic import JsonValue
from rich.console import Console
from rich.text import Text

from mme.config import FinetuneParams, Params, load_params
from mme.config.data import NO_DATA
from mme.config.paths import FINETUNED_FOLDER, start_weights
from mme.evaluation.chance import unlearned
from mme.manifest import Manifest
from mme.models.checkpoints import FOLDER_FORMAT, FolderConfig, ViewsConfig, save_folder
from mme.stages.workspace import load_manifest, resumable_stage, work_folder, write_training_report
from mme.system.errors import one_line_errors
from mme.system.files import sha256_file
from mme.training.finetune import run_finetuning
from mme.training.loop.trainer import is_main_process

SECTIONS = ("seed", "clip", "model", "finetune")


def main() -> None:
    """Train, and write the model folder of the best epoch, curves and metrics."""
    params = load_params()
    manifest, more = load_training_data(params.finetune)
    sections = params.model_dump(mode="json", include=set(SECTIONS))
    start = start_weights(params.finetune.init)
    depends_on = (sections, manifest.digest, manifest.fps, start and sha256_file(start))
    if not is_main_process():
        run_finetuning(params, manifest, start, work_folder("finetune", *depends_on), lambda *_: None)
        return
    with resumable_stage("finetune", params, manifest, "finetuning", *depends_on) as (run, work):
        module, curves = run_finetuning(params, manifest, start, work, run.log_metrics)
        best = curves.rows[module.best["epoch"]]
        metrics = {name: value for name, value in best.items() if name != "epoch"}
        save_folder(FINETUNED_FOLDER, module.model, folder_config(params, manifest, metrics, run.id, more))
        write_training_report("finetune", work, best)
    counts = Counter(video.label for video in manifest.videos("val"))
    fault = unlearned("val", metrics["val/top1"], [counts[label] for label in manifest.labels])
    if fault is not None:
        Console(stderr=True).print(Text(f"warning: {fault}"), soft_wrap=True)


def load_training_data(finetune: FinetuneParams) -> tuple[Manifest, dict[str, JsonValue]]:
    """Load the data set with the training videos of the further one, and say which these are; empty for none."""
    manifest = load_manifest(finetune.data)
    if finetune.more_data == NO_DATA:
        return manifest, {}
    further = load_manifest(finetune.more_data)
    manifest, counts = manifest.with_training_videos_of(further)
    if is_main_process():
        text = ", ".join(f"{counts[name]} {name}" for name in ("added", "known", "held out", "label unknown"))
        Console(stderr=True).print(Text(f"{finetune.more_data}: {text}"))
    return manifest, {"data": finetune.more_data, "digest": further.digest, **counts}


def folder_config(
    params: Params, manifest: Manifest, metrics: dict[str, float], run_id: str, more: dict[str, JsonValue]
) -> FolderConfig:
    """``config.json`` of the model folder; ``more`` describes the further data set.

    Raises:
        ValueError: the videos of the manifest have several frame rates.
    """
    return FolderConfig(
        format=FOLDER_FORMAT,
        name=params.registry.name,
        model=params.model,
        clip=params.clip,
        fps=manifest.fps,
        views=ViewsConfig(segments=params.evaluate.segments, crops=params.evaluate.crops),
        pool=params.finetune.pool,
        labels=tuple(manifest.labels),
        provenance={"data_digest": manifest.digest, "params_digest": params.digest(), "run_id": run_id}
        | ({"more_data": more} if more else {}),
        metrics=metrics,
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
