"""Model card: use, data, results, limits, parameters and provenance of a registered model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Template

import yaml

from mme.config import Params
from mme.config.data import FEEDBACK, SYNTHETIC, data_name
from mme.config.paths import PRETRAINED_FOLDER, RANDOM
from mme.evaluation.chance import chance_accuracy, wilson_interval
from mme.manifest import SPLITS, Manifest
from mme.models.checkpoints import FolderConfig
from mme.system.markdown import code_span, markdown_table

_CARD = Template("""\
---
$header---

# $name

Names the action in a short video: one of $num_labels labels. A video transformer with $millions million parameters,
$training.

## Use

For telling apart the actions it was trained on, in videos that show one of them.

A clip is $frames at $size x $size pixels. The answer averages
$segments clips along the video x $crops crops. Videos of any frame rate are sampled by time, larger ones are resized.

```python
from mme.evaluation.classifier import Classifier

classifier = Classifier.load("models:/$name@champion")
print(classifier.classify("video.mp4").predictions)
```

Labels: $labels.

## Data

$data, digest `$digest`. Files left out as unusable: $quarantined.$more

$videos

## Results

On the split `$split`. Chance is $chance where all labels are equally frequent.

$metrics

$classes

## Limits

$limits

## Parameters

```yaml
$parameters```

## Provenance

$provenance
""")


_LEFT_OUT = {
    "known": "training videos already",
    "held out": "among the videos of validation or test",
    "label unknown": "of other labels",
}


@dataclass(frozen=True)
class CardContent:
    """Input of a card.

    Attributes:
        config: ``config.json`` of the exported model folder.
        params: parameters of the pipeline.
        manifest: manifest of the data.
        num_parameters: parameters of the classifier.
        per_class: rows of the evaluation's table, with ``label``, ``num_videos`` and ``top1``.
    """

    config: FolderConfig
    params: Params
    manifest: Manifest
    num_parameters: int
    per_class: Sequence[Mapping[str, str]]


def model_card(content: CardContent) -> str:
    """Return the card as Markdown with a YAML header."""
    config, params, manifest = content.config, content.params, content.manifest
    split = params.evaluate.split

    # Usable videos and their frames per split, and quarantined files per reason.
    counts = Counter(row.split for row in manifest.rows if row.status == "ok")
    frames: Counter[str] = Counter()
    for row in manifest.videos(SPLITS):
        frames[row.split] += row.num_frames
    reasons = Counter(str(row.reason) for row in manifest.quarantined)

    metrics = {name: value for name, value in config.metrics.items() if name.startswith(f"{split}/")}
    classes = [
        (code_span(row["label"]), row["num_videos"], "-" if not row["top1"] else f"{float(row['top1']):.1%}")
        for row in content.per_class
    ]
    sections = params.model_dump(mode="json", include={"trajectories", "clip", "model", "pretrain", "finetune"})
    parameters = {"seed": params.seed, **sections}

    return _CARD.substitute(
        frames=_clip_frames(config),
        size=config.clip.size,
        header=yaml.safe_dump(_header(content), sort_keys=False, allow_unicode=True),
        name=config.name,
        num_labels=len(config.labels),
        millions=f"{content.num_parameters / 1e6:.2f}",
        training=_training(params),
        segments=config.views.segments,
        crops=config.views.crops,
        labels=", ".join(map(code_span, config.labels)),
        data=code_span(_data_name(params)),
        digest=manifest.digest,
        quarantined=", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none",
        more=_more_data(content),
        videos=markdown_table(
            ("split", "videos", "frames"), [(name, counts[name], frames[name]) for name in SPLITS if counts[name]]
        ),
        split=split,
        chance=f"{1 / len(config.labels):.1%}",
        metrics=markdown_table(("metric", "value"), [(name, f"{metrics[name]:.4g}") for name in sorted(metrics)]),
        classes=markdown_table(("label", "videos", "top-1"), classes),
        limits="\n".join(f"- {limit}" for limit in _limits(content)),
        parameters=yaml.safe_dump(parameters, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True),
        provenance=markdown_table(("name", "value"), config.provenance.items()),
    )


def _clip_frames(config: FolderConfig) -> str:
    """Describe the frames of a clip, by time."""
    clip = config.clip
    if clip.sampling == "segments":
        parts = f"one from each of {clip.num_frames} equal parts"
        return f"{clip.num_frames} frames of a video at {config.fps:g} per second, {parts},"
    seconds = clip.stride_frames / config.fps
    if clip.snippets > 1:
        snippets = f"{clip.snippets} snippets, spread over the video, of {clip.num_frames} frames"
        return f"{snippets} at {config.fps:g} per second, one every {seconds:.3g} s,"
    return f"{clip.num_frames} frames of a video at {config.fps:g} per second, one every {seconds:.3g} s,"


def _more_data(content: CardContent) -> str:
    """Describe the further training videos."""
    more = content.config.provenance.get("more_data")
    if not isinstance(more, dict):
        return ""
    _, ingest = content.params.dataset(str(more["data"]))
    what = "corrections by callers of the service" if ingest.source == FEEDBACK else "further training videos"
    left_out = [f"{more[name]} ({why})" for name, why in _LEFT_OUT.items() if more.get(name)]
    return (
        f" Added for training: {more.get('added', 0)} {what}, {code_span(str(more['data']))}, digest"
        f" `{more['digest']}`; left out of them: {', '.join(left_out) or 'none'}."
    )


def _header(content: CardContent) -> dict[str, object]:
    config, split = content.config, content.params.evaluate.split
    data = _data_name(content.params)
    results = [
        {"type": name, "value": config.metrics[f"{split}/{name}"]}
        for name in ("top1", "top5", "mean_class_accuracy")
        if f"{split}/{name}" in config.metrics
    ]
    entry = {
        "task": {"type": "video-classification"},
        "dataset": {"name": data, "type": "video", "split": split},
        "metrics": results,
    }
    return {
        "license": "apache-2.0",
        "library_name": "mme",
        "pipeline_tag": "video-classification",
        "tags": ["video", "action-recognition", "masked-motion-encoding"],
        "datasets": [data],
        "model-index": [{"name": config.name, "results": [entry]}],
    }


def _training(params: Params) -> str:
    pretrain, finetune = params.pretrain, params.finetune
    labelled = f"trained for {finetune.epochs} epochs on labelled videos"
    if finetune.init == RANDOM:
        return f"{labelled}, without pretraining"
    if finetune.init != PRETRAINED_FOLDER.name:
        return f"{labelled}, from the weights `{finetune.init}`"
    start = "" if pretrain.init == RANDOM else f"from the weights `{pretrain.init}`, "
    return (
        f"{start}pretrained for {pretrain.epochs} epochs without labels (masked prediction, objective"
        f" `{pretrain.objective}`; {pretrain.mask_ratio:.0%} of the tokens masked), then {labelled}"
    )


def _limits(content: CardContent) -> Iterable[str]:
    params, metrics = content.params, content.config.metrics
    if params.ingest.source == SYNTHETIC:
        yield "Trained on synthetic videos of drawn shapes only: its answers for filmed videos have no meaning."
    yield (
        f"A small model trained on little data: {len(content.manifest.videos('train'))} labelled videos. It is a"
        " baseline of this pipeline, not comparable in size or accuracy with the models of the method's authors."
    )
    top1 = metrics.get(f"{params.evaluate.split}/top1")
    num_tested = sum(int(row["num_videos"]) for row in content.per_class)
    if top1 is not None and num_tested:
        low, high = wilson_interval(top1, num_tested)
        chance = chance_accuracy([int(row["num_videos"]) for row in content.per_class])
        verdict = "" if low > chance else f" That is no better than chance, {chance:.1%}."
        yield (
            f"Top-1 was measured on {num_tested} videos: its 95 % confidence interval is {low:.1%} to {high:.1%}."
            f"{verdict}"
        )
    yield "It always returns one of its labels, also for a video that shows none of them; it has no reject class."
    span_s = content.config.clip.span_frames / content.config.fps
    if content.config.clip.sampling == "stride" and content.config.clip.snippets == 1:
        yield f"Motion between the sampled clips ({span_s:.2g} s each) is not seen."
    yield (
        f"Videos of fewer than {content.config.fps:g} frames per second are classified with repeated frames, in which"
        " motion stutters; slow motion looks like another speed."
    )
    weak = [code_span(row["label"]) for row in content.per_class if row["top1"] and float(row["top1"]) < 0.5]
    if weak:
        yield f"Wrong more often than right on: {', '.join(weak)}."


def _data_name(params: Params) -> str:
    """Name the data set that the model was finetuned and evaluated on."""
    _, ingest = params.dataset(params.finetune.data)
    return data_name(ingest.source, ingest.root)
