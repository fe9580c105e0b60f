from __future__ import annotations

from pathlib import Path

from mme.config import Params, load_params
from mme.registry.model_card import _data_name

ROOT = Path(__file__).parents[2]


def test_card_names_the_data_set_of_finetuning() -> None:
    raw = load_params(ROOT / "params.yaml").model_dump()
    raw["datasets"] = {"hmdb51": raw["ingest"] | {"source": "hmdb51", "root": "data/raw/hmdb"}}
    assert _data_name(Params.model_validate(raw)) == "motion-primitives"
    raw["finetune"]["data"] = "data/hmdb51"
    assert _data_name(Params.model_validate(raw)) == "hmdb"
