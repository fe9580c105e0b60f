"""Evaluate the finetuned model on a split and write its figures, tables and pictures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mme.config import load_params
from mme.config.paths import FINETUNED_FOLDER, REPORTS_FOLDER
from mme.evaluation.classifier import Classifier
from mme.evaluation.multiview import Evaluation, calibration, confusion_pairs, evaluate, metrics, per_class, predictions
from mme.evaluation.probe import frozen_metrics
from mme.stages.workspace import load_manifest, recorded_stage
from mme.system.errors import one_line_errors
from mme.system.files import atomic_path, write_json
from mme.viz.plots import calibration_figure, confusion_figure, save_figure


def main() -> None:
    """Evaluate the model of ``models/finetune``.

    Raises:
        ValueError: the inputs do not fit together, or a video of the split cannot be read. The report is written
            before the latter is raised, and lists the videos.
    """
    params = load_params()
    manifest = load_manifest(params.finetune.data)
    report = REPORTS_FOLDER / "evaluate"
    classifier = Classifier.load(FINETUNED_FOLDER, params.runtime.device)
    with recorded_stage("evaluate", params, manifest, params.evaluate.split) as run:
        evaluation = evaluate(classifier, manifest, params.evaluate, params.runtime)
        figures = {**metrics(evaluation), **frozen_metrics(params, manifest)}
        write_evaluation(evaluation, figures, params.evaluate.split, report)
        run.log_metrics({f"{params.evaluate.split}/{name}": value for name, value in figures.items()})
        if evaluation.unreadable:
            run.log_artifact(report)
            listed = "; ".join(f"{video.id}: {video.reason}" for video in evaluation.unreadable)
            raise ValueError(f"{len(evaluation.unreadable)} videos of {params.evaluate.split} are unreadable: {listed}")


def write_evaluation(evaluation: Evaluation, figures: dict[str, float | int], split: str, folder: Path) -> None:
    """Write ``metrics.json`` (figures under the split's name), the tables and the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "metrics.json",
        {split: figures, "unreadable": {video.id: video.reason for video in evaluation.unreadable}},
    )
    write_table(per_class(evaluation), folder / "per_class.csv")
    write_table(confusion_pairs(evaluation), folder / "confusion.csv")
    write_table(predictions(evaluation), folder / "predictions.csv")
    save_figure(confusion_figure(evaluation.confusion, evaluation.labels), folder / "confusion.png")
    save_figure(calibration_figure(calibration(evaluation), figures["calibration_error"]), folder / "calibration.png")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV file, atomically and with equal bytes for equal tables."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


if __name__ == "__main__":
    with one_line_errors():
        main()
