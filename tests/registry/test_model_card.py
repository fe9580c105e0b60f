from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mme.config import Params, load_params
from mme.manifest import Manifest
from mme.registry.model_card import CardContent, _clip_frames, _data_name, _more_data
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[2]


def test_card_names_the_data_set_of_finetuning() -> None:
    raw = load_params(ROOT / "params.yaml").model_dump()
    raw["datasets"] = {"hmdb51": raw["ingest"] | {"source": "hmdb51", "root": "data/raw/hmdb"}}
    assert _data_name(Params.model_validate(raw)) == "motion-primitives"
    raw["finetune"]["data"] = "data/hmdb51"
    assert _data_name(Params.model_validate(raw)) == "hmdb"


def test_card_says_what_a_clip_is_by_time() -> None:
    config = tiny_config(fps=12.5)
    assert _clip_frames(config) == "4 frames of a video at 12.5 per second, one every 0.16 s,"
    parts = config.model_copy(update={"clip": config.clip.model_copy(update={"sampling": "segments"})})
    assert _clip_frames(parts) == "4 frames of a video at 12.5 per second, one from each of 4 equal parts,"


def test_card_counts_the_corrections_that_were_trained_on() -> None:
    raw = load_params(ROOT / "params.yaml").model_dump()
    raw["datasets"] = {"feedback": raw["ingest"] | {"source": "feedback", "root": "kept"}}
    raw["finetune"]["more_data"] = "data/feedback"
    more = {"data": "data/feedback", "digest": "abc", "added": 12, "held out": 2}
    config = tiny_config(provenance={"more_data": more})
    content = CardContent(config, Params.model_validate(raw), Manifest([], "data"), 1, [])
    assert _more_data(content) == (
        " Added for training: 12 corrections by callers of the service, `data/feedback`, digest `abc`; left out of"
        " them: 2 (among the videos of validation or test)."
    )
    assert _more_data(replace(content, config=tiny_config())) == ""
