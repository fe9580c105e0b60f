"""Publish a model: export its folder, register it as a version, find the champion to compare it with."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mme.config import Params
from mme.evaluation.answers import ANSWERS_FILE, Answers
from mme.manifest import Manifest
from mme.models.checkpoints import CONFIG_FILE, FolderConfig, ViewsConfig, content_digest, load_folder
from mme.registry.gate import Champion
from mme.registry.model_card import CardContent, model_card
from mme.system.files import atomic_path, digest, write_json
from mme.tracking import ModelPackage, RegisteredModel, Version, git_commit

CARD_FILE = "README.md"


@dataclass(frozen=True)
class Candidate:
    """A finetuned model and its evaluation.

    Attributes:
        params: parameters of the pipeline.
        manifest: manifest of the data.
        metrics: evaluation metrics under names such as ``test/top1``.
        per_class: rows of the evaluation's table per label.
        answers: distribution of the answers on the videos of the evaluation.
    """

    params: Params
    manifest: Manifest
    metrics: Mapping[str, float]
    per_class: Sequence[Mapping[str, str]]
    answers: Answers

    @property
    def gate_value(self) -> float:
        """Value of the metric that the gate compares.

        Raises:
            ValueError: the evaluation does not contain the metric.
        """
        name = self.params.registry.metric
        if name not in self.metrics:
            raise ValueError(f"registry.metric: {name!r} is not a metric of the evaluation: {sorted(self.metrics)}")
        return self.metrics[name]


def export_folder(candidate: Candidate, source: Path, output: Path, run_id: str) -> FolderConfig:
    """Write the model folder that is served: ``source`` with the evaluation's metrics and answers, provenance and card.

    The views are those of the evaluation, so that the service runs the model as it was measured.

    Raises:
        ValueError: ``source`` is not a valid model folder.
    """
    model, trained = load_folder(source)
    params = candidate.params
    provenance = {
        **trained.provenance,
        "git_commit": git_commit(),
        "register_run_id": run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    config = trained.model_copy(
        update={
            "name": params.registry.name,
            "views": ViewsConfig(segments=params.evaluate.segments, crops=params.evaluate.crops),
            "provenance": provenance,
            "metrics": {**trained.metrics, **candidate.metrics},
        }
    )
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    card = model_card(CardContent(config, params, candidate.manifest, num_parameters, candidate.per_class))

    with atomic_path(output) as folder:
        # DVC's outputs are read-only links into its cache, so the files are copied before they are changed.
        shutil.copytree(source, folder, copy_function=shutil.copyfile)
        write_json(folder / CONFIG_FILE, config.model_dump(mode="json"))
        write_json(folder / ANSWERS_FILE, candidate.answers.model_dump(mode="json"))
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return config


def publish(candidate: Candidate, config: FolderConfig, folder: Path) -> tuple[Version, bool]:
    """Register an exported folder, or update the version with the same content digest.

    Returns:
        The version, and True if it was created by this call.
    """
    params, manifest = candidate.params, candidate.manifest
    model = RegisteredModel(params.registry.name)
    metric, value = params.registry.metric, candidate.gate_value
    videos = manifest.videos(params.evaluate.split)
    tags = {
        "digest": content_digest(folder),
        "metric": metric,
        "value": repr(value),
        "evaluated_on": digest([[video.id, video.sha256, video.label] for video in videos]),
        "data_digest": manifest.digest,
        "params_digest": params.digest(),
        "git_commit": str(config.provenance["git_commit"]),
    }
    description = f"{len(config.labels)} labels, {metric} {value:.4g} on {len(videos)} videos. Card: {CARD_FILE}."
    known = model.find_digest(tags["digest"])
    if known is None:
        return model.register(ModelPackage(folder, manifest.path_of(videos[0]), description, tags)), True
    known.set_tags(tags)
    known.describe(description)  # that of another evaluation, or of none if the registry was lost after the version
    return model.version(known.number), False


def champion_to_beat(version: Version) -> Champion | None:
    """Return the current champion; None if there is none or the version is it."""
    champion = RegisteredModel(version.name).find_alias("champion")
    if champion is None or champion.number == version.number:
        return None
    comparable = all(champion.tags.get(key) == version.tags[key] for key in ("metric", "evaluated_on"))
    return Champion(champion.number, float(champion.tags["value"]) if comparable else None)
