"""Releasing a model: the folder that is served, its version in the registry, and the champion it has to beat."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mme.config import Params
from mme.manifest import Manifest
from mme.models.checkpoints import CONFIG_FILE, FolderConfig, ViewsConfig, content_digest, load_folder
from mme.registry.gate import Champion
from mme.registry.model_card import Facts, write_card
from mme.system.files import atomic_path, digest, write_json
from mme.tracking import Package, Version, find_alias, find_version, get_version, git_commit, register, tag_version

CARD_FILE = "README.md"


@dataclass(frozen=True)
class Candidate:
    """A finetuned model with what is known of it.

    Attributes:
        params: of the pipeline.
        manifest: of the data.
        metrics: of the evaluation, under names such as ``test/top1``.
        per_class: rows of the evaluation's table.
    """

    params: Params
    manifest: Manifest
    metrics: Mapping[str, float]
    per_class: Sequence[Mapping[str, str]]

    @property
    def gate_value(self) -> float:
        """The figure that the gate looks at.

        Raises:
            ValueError: the evaluation does not have it.
        """
        name = self.params.registry.metric
        if name not in self.metrics:
            raise ValueError(f"registry.metric: {name!r} is none of the evaluation's metrics {sorted(self.metrics)}")
        return self.metrics[name]


def flat(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested metrics under names such as ``test/top1``."""
    figures: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            figures |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            figures[prefix + name] = float(value)
    return figures


def export(candidate: Candidate, source: Path, output: Path, run_id: str) -> FolderConfig:
    """Write the model folder that is served: ``source`` with its evaluation, its provenance and a model card.

    Its views are the evaluation's, so that what is served is what was measured.

    Raises:
        ValueError: ``source`` is not a sound model folder.
    """
    model, trained = load_folder(source)
    provenance = {
        **trained.provenance,
        "git_commit": git_commit(),
        "register_run_id": run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    evaluated = candidate.params.evaluate
    config = trained.model_copy(
        update={
            "name": candidate.params.registry.name,
            "views": ViewsConfig(segments=evaluated.segments, crops=evaluated.crops),
            "provenance": provenance,
            "metrics": {**trained.metrics, **candidate.metrics},
        }
    )
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    card = write_card(Facts(config, candidate.params, candidate.manifest, num_parameters, candidate.per_class))
    with atomic_path(output) as folder:
        # DVC's outputs are read-only links into its cache; what is changed has to be a file of its own.
        shutil.copytree(source, folder, copy_function=shutil.copyfile)
        write_json(folder / CONFIG_FILE, config.model_dump(mode="json"))
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return config


def publish(candidate: Candidate, config: FolderConfig, folder: Path) -> tuple[Version, bool]:
    """The registry's version of an exported folder, and whether it was made now.

    A version is known by its content digest, so publishing the same model again only renews what was measured.
    """
    params, manifest = candidate.params, candidate.manifest
    name, metric, value = params.registry.name, params.registry.metric, candidate.gate_value
    videos = manifest.videos(params.evaluate.split)
    content = content_digest(folder)
    tags = {
        "digest": content,
        "metric": metric,
        "value": repr(value),
        "evaluated_on": digest([[video.id, video.sha256, video.label] for video in videos]),
        "data_digest": manifest.digest,
        "params_digest": params.digest(),
        "git_commit": str(config.provenance["git_commit"]),
    }
    known = find_version(name, content)
    if known is not None:
        tag_version(known, tags)
        return get_version(name, known.number), False
    description = f"{len(config.labels)} labels, {metric} {value:.4g} on {len(videos)} videos. Card: {CARD_FILE}."
    return register(name, Package(folder, manifest.path_of(videos[0]), description, tags)), True


def champion_to_beat(version: Version) -> Champion | None:
    """The present champion, unless the version is it."""
    champion = find_alias(version.name, "champion")
    if champion is None or champion.number == version.number:
        return None
    comparable = all(champion.tags.get(key) == version.tags[key] for key in ("metric", "evaluated_on"))
    return Champion(champion.number, float(champion.tags["value"]) if comparable else None)
