"""Stage ``pretrain``: masked motion encoding on videos without labels."""

from __future__ import annotations

import sys

from rich.console import Console

from mme.config import load_params
from mme.config.paths import MODELS_FOLDER, PRETRAINED_FOLDER, REPORTS_FOLDER, start_weights, tracks_folder
from mme.models.checkpoints import save_weights
from mme.motion.store import TrackStore
from mme.stages.workspace import load_manifest, resumable_stage, stage_name, work_folder, write_training_report
from mme.system.errors import one_line_errors
from mme.system.files import atomic_path, sha256_file, write_json
from mme.training.loop.trainer import is_main_process
from mme.training.pretrain import held_out_dataset, pretrain_dataset, run_pretraining, span_frames
from mme.viz.drawing import encode_png
from mme.viz.predictions import draw_predictions

SECTIONS = ("seed", "clip", "model", "pretrain")
NUM_PICTURED = 6


def main(name: str | None = None) -> None:
    """Train, and write weights, curves, metrics and a picture of predictions on held-out clips.

    Args:
        name: pretraining of ``warm_starts``; None for the section ``pretrain``.
    """
    params, stage = load_params(warm_start=name), stage_name("pretrain", name)
    output = PRETRAINED_FOLDER if name is None else MODELS_FOLDER / name
    manifest = load_manifest(params.pretrain.data)
    tracks = TrackStore(tracks_folder(name))
    sections = params.model_dump(mode="json", include=set(SECTIONS))
    start = start_weights(params.pretrain.init)
    depends_on = (sections, manifest.digest, manifest.fps, tracks.params, start and sha256_file(start))
    if not is_main_process():
        run_pretraining(params, manifest, tracks, work_folder(stage, *depends_on), lambda *_: None)
        return
    span = span_frames(params)
    num_videos = len(manifest.videos(params.pretrain.splits))
    num_short = num_videos - len(manifest.videos(params.pretrain.splits, span))
    if num_short:
        reason = f"shorter than the {span} frames that a clip and its trajectories span"
        Console(stderr=True).print(f"left out: {num_short} of {num_videos} videos, {reason}", soft_wrap=True)
    with resumable_stage(stage, params, manifest, "pretraining", *depends_on) as (run, work):
        run.log_metrics({"pretrain/too_short": num_short})
        module, curves = run_pretraining(params, manifest, tracks, work, run.log_metrics)
        output.mkdir(parents=True, exist_ok=True)
        save_weights(output / "model.safetensors", module.model)
        # Mean and deviation of each target: the units of the predictions.
        statistics = {
            name: [mean.tolist(), float(deviation)] for name, (mean, deviation) in module.statistics().items()
        }
        facts = {"fps": manifest.fps, "statistics": statistics, "data_digest": manifest.digest, "run_id": run.id}
        write_json(output / "config.json", {**sections, **facts})
        counts = {"videos/used": num_videos - num_short, "videos/too_short": num_short}
        write_training_report(stage, work, {**curves.rows[-1], **counts})
        pictured = held_out_dataset(params, manifest, tracks)
        if pictured is None:
            pictured = pretrain_dataset(params, manifest, tracks, params.pretrain.splits)
        with atomic_path(REPORTS_FOLDER / stage / "predictions.png") as temporary:
            temporary.write_bytes(encode_png(draw_predictions(module, pictured, NUM_PICTURED)))


if __name__ == "__main__":
    with one_line_errors():
        main(*sys.argv[1:])
