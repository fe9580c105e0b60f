"""The model card: what a registered model is for, what it learned from, how well it does and where it fails."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import yaml

from mme.config import Params
from mme.manifest import Manifest
from mme.models.checkpoints import FolderConfig

SPLITS = ("pretrain", "train", "val", "test")
SYNTHETIC = "motion-primitives"

OBJECTIVES = {
    "mme": "masked motion encoding: displacements of tracked points and the histograms of gradients along their way",
    "trajectory": "masked prediction of the displacements of tracked points",
    "hog": "masked prediction of histograms of oriented gradients",
    "pixel": "masked prediction of normalised pixels",
}


@dataclass(frozen=True)
class Facts:
    """What a card is written from.

    Attributes:
        config: the exported model folder's ``config.json``.
        params: of the pipeline.
        manifest: of the data.
        num_parameters: of the classifier.
        per_class: rows of the evaluation's table, with ``label``, ``num_videos`` and ``top1``.
    """

    config: FolderConfig
    params: Params
    manifest: Manifest
    num_parameters: int
    per_class: Sequence[Mapping[str, str]]


def write_card(facts: Facts) -> str:
    """The card as Markdown with a YAML header."""
    config, params = facts.config, facts.params
    summary = (
        f"Names the action in a short video: one of {len(config.labels)} labels. A video transformer with"
        f" {facts.num_parameters / 1e6:.2f} million parameters, {_training(params)}."
    )
    sections = [
        f"---\n{yaml.safe_dump(_header(facts), sort_keys=False)}---",
        f"# {config.name}",
        summary,
        "## Use\n\n" + _use(facts),
        "## Data\n\n" + _data(facts.manifest, params),
        "## Results\n\n" + _results(facts),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(facts)),
        "## Parameters\n\n" + _parameters(params),
        "## Provenance\n\n" + _table(("what", "value"), config.provenance.items()),
    ]
    return "\n\n".join(sections) + "\n"


def _header(facts: Facts) -> dict[str, object]:
    split = facts.params.evaluate.split
    results = [
        {"type": name, "value": facts.config.metrics[f"{split}/{name}"]}
        for name in ("top1", "top5")
        if f"{split}/{name}" in facts.config.metrics
    ]
    return {
        "license": "apache-2.0",
        "library_name": "mme",
        "pipeline_tag": "video-classification",
        "tags": ["video", "action-recognition", "masked-motion-encoding"],
        "datasets": [_data_name(facts.params)],
        "model-index": [
            {
                "name": facts.config.name,
                "results": [
                    {
                        "task": {"type": "video-classification"},
                        "dataset": {"name": _data_name(facts.params), "type": "video", "split": split},
                        "metrics": results,
                    }
                ],
            }
        ],
    }


def _training(params: Params) -> str:
    pretrain, finetune = params.pretrain, params.finetune
    labelled = f"trained for {finetune.epochs} epochs on labelled videos"
    if finetune.init == "scratch":
        return f"{labelled}, without pretraining"
    return (
        f"pretrained for {pretrain.epochs} epochs without labels ({OBJECTIVES[pretrain.objective]};"
        f" {pretrain.mask_ratio:.0%} of the tokens hidden), then {labelled}"
    )


def _use(facts: Facts) -> str:
    config = facts.config
    clip, views = config.clip, config.views
    return f"""For telling apart the actions it was trained on, in videos that show one of them.

It reads {clip.num_frames} frames, every {clip.stride_frames}. one, at {clip.size} x {clip.size} pixels, and averages
{views.segments} clips along the video x {views.crops} crops. Longer or larger videos are sampled and resized.

```python
from mme.evaluation.classifier import Classifier

classifier = Classifier.load("models:/{config.name}@champion")
print(classifier.classify("video.mp4").predictions)
```

Labels: {", ".join(f"`{label}`" for label in config.labels)}."""


def _data(manifest: Manifest, params: Params) -> str:
    counts = Counter(row.split for row in manifest.rows if row.status == "ok")
    frames: Counter[str] = Counter()
    for row in manifest.videos(SPLITS):
        frames[row.split] += row.num_frames
    table = _table(
        ("split", "videos", "frames"), [(split, counts[split], frames[split]) for split in SPLITS if counts[split]]
    )
    reasons = Counter(str(row.reason) for row in manifest.quarantined)
    bad = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none"
    return f"`{_data_name(params)}`, digest `{manifest.digest}`. Files left out as unusable: {bad}.\n\n{table}"


def _results(facts: Facts) -> str:
    split, labels = facts.params.evaluate.split, facts.config.labels
    figures = {name: value for name, value in facts.config.metrics.items() if name.startswith(f"{split}/")}
    chance = f"Chance is {1 / len(labels):.1%} where all labels are equally frequent."
    table = _table(("metric", "value"), [(name, f"{value:.4g}") for name, value in sorted(figures.items())])
    classes = [
        (row["label"], row["num_videos"], "-" if not row["top1"] else f"{float(row['top1']):.1%}")
        for row in facts.per_class
    ]
    return f"On the split `{split}`. {chance}\n\n{table}\n\n{_table(('label', 'videos', 'top-1'), classes)}"


def _parameters(params: Params) -> str:
    """What decided the result, as it stood in ``params.yaml``."""
    sections = params.model_dump(mode="json", include={"trajectories", "clip", "model", "pretrain", "finetune"})
    values = {"run": {"seed": params.run.seed}, **sections}
    return f"```yaml\n{yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)}```"


def _limits(facts: Facts) -> Iterable[str]:
    params, clip = facts.params, facts.config.clip
    if params.ingest.source == SYNTHETIC:
        yield "Learned from synthetic videos of drawn shapes alone: it says nothing sensible about filmed ones."
    num_videos = len(facts.manifest.videos("train"))
    num_tested = sum(int(row["num_videos"]) for row in facts.per_class)
    yield (
        f"A small model on little data: {num_videos} labelled videos. It is a baseline of this pipeline, comparable"
        " neither in size nor in accuracy with the models of the method's authors."
    )
    top1 = facts.config.metrics.get(f"{params.evaluate.split}/top1")
    if top1 is not None and num_tested:
        margin = 1.96 * math.sqrt(top1 * (1 - top1) / num_tested)
        yield f"Top-1 was measured on {num_tested} videos: its 95 % confidence interval is +-{100 * margin:.1f} points."
    yield "It always names one of its labels, also for a video that shows none of them; it was not taught to refuse."
    yield f"What happens between the sampled clips ({clip.span_frames} frames each) goes unseen."
    weak = [row["label"] for row in facts.per_class if row["top1"] and float(row["top1"]) < 0.5]
    if weak:
        yield f"Wrong more often than right on: {', '.join(weak)}."


def _data_name(params: Params) -> str:
    return SYNTHETIC if params.ingest.source == SYNTHETIC else params.ingest.root.name


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
