"""Stage ``register``: export the evaluated model with its card, and let it into the registry through the gate."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from mme.config import load_params
from mme.config.names import flatten
from mme.config.paths import EXPORTED_FOLDER, FINETUNED_FOLDER, REPORTS_FOLDER
from mme.evaluation.answers import Answers, count_answers, softmax
from mme.evaluation.chance import unlearned
from mme.registry.aliases import apply_verdict, audit, audit_history
from mme.registry.gate import ALIASES, Verdict, judge
from mme.registry.publish import CARD_FILE, Candidate, champion_to_beat, export_folder, publish
from mme.stages.workspace import load_manifest, recorded_stage
from mme.system.errors import one_line_errors
from mme.system.files import read_json, write_json
from mme.tracking import Run, Version, explaining, store_kind

EVALUATION = REPORTS_FOLDER / "evaluate"
RECEIPT = REPORTS_FOLDER / "register.json"


def main() -> None:
    """Export, register unless a version with this content exists, judge, and write the receipt.

    Raises:
        ValueError: an input is missing or damaged, or the evaluation does not have the gate's metric.
        StoreError: the registry was lost; the stage can be run again and does the rest.
    """
    params = load_params()
    manifest = load_manifest(params.finetune.data)
    candidate = Candidate(params, manifest, read_metrics(), read_per_class(), read_answers())
    value = candidate.gate_value
    split = params.evaluate.split
    counts = [int(row["num_videos"]) for row in candidate.per_class]
    fault = unlearned(split, candidate.metrics[f"{split}/top1"], counts)
    with recorded_stage("register", params, manifest, split) as run, explaining():
        config = export_folder(candidate, FINETUNED_FOLDER, EXPORTED_FOLDER, run.id)
        version, created = publish(candidate, config, EXPORTED_FOLDER)
        # A run that lost the registry after creating the version has left no line.
        if created or not any(line["action"] == "register" for line in audit_history(version.name, version.number)):
            audit(version, "register", reason=f"{params.registry.metric} {value:.4g}")
        version, verdict = apply_verdict(version, judge(params.registry, value, champion_to_beat(version)))
        record_version(run, version, verdict, {params.registry.metric: value})
        run.set_tags({"better_than_chance": str(fault is None).lower()})
        write_json(RECEIPT, {**receipt(version, verdict, candidate.metrics), "created": created, "run_id": run.id})
    console = Console(stderr=True)
    console.print(Text(f"{version.address}, {verdict.alias or 'no alias'}: {verdict.reason}"))
    if fault is not None:
        console.print(Text(f"warning: {fault}"), soft_wrap=True)


def read_metrics() -> dict[str, float]:
    """Return the numbers of the evaluation under names such as ``test/top1``."""
    flat = flatten(read_json(EVALUATION / "metrics.json"), "/")
    return {name: float(value) for name, value in flat.items() if isinstance(value, int | float)}


def read_per_class() -> list[dict[str, str]]:
    """Rows of the evaluation's table."""
    with (EVALUATION / "per_class.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_answers() -> Answers:
    """Count the answers of the evaluation, from its logits."""
    prefix = "logit/"
    with (EVALUATION / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [name.removeprefix(prefix) for name in rows[0] if name.startswith(prefix)]
    logits = np.array([[float(row[f"{prefix}{label}"]) for label in labels] for row in rows])  # (N, K)
    return count_answers(softmax(logits), labels)


def record_version(run: Run, version: Version, verdict: Verdict, metrics: Mapping[str, float]) -> None:
    """Record version, verdict and card with the run of the stage."""
    run.log_metrics({**metrics, "gate/passed": float(verdict.passed)})
    run.set_tags({"model_version": str(version.number), "model_digest": version.tags["digest"]})
    run.log_artifact(EXPORTED_FOLDER / CARD_FILE)


def receipt(version: Version, verdict: Verdict, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return the result of the stage, for people and for ``mme summary``."""
    return {
        "name": version.name,
        "version": version.number,
        "address": version.address,
        "alias": next((alias for alias in ALIASES if alias in version.aliases), None),
        "digest": version.tags["digest"],
        "gate": {"passed": verdict.passed, "reason": verdict.reason},
        "metrics": dict(metrics),
        "store": store_kind(),
    }


if __name__ == "__main__":
    with one_line_errors():
        main()
