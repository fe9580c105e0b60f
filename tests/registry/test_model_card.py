from __future__ import annotations

from pathlib import Path

from mme.config import Params, load_params
from mme.registry.model_card import _clip_frames, _data_name
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
