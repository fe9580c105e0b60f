"""A ``params.yaml`` of an earlier version gets one message that names every change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from mme.config import load_params, presets
from mme.config.edit import write_values
from mme.config.names import MOVED, flatten, nest
from tests.small_data import small_params

ROOT = Path(__file__).parents[2]
EARLIER = Path(__file__).with_name("params_before_runtime.yaml")


def test_every_moved_name_is_listed_at_once() -> None:
    with pytest.raises(ValueError, match="has names of an earlier version") as caught:
        load_params(EARLIER)
    message = str(caught.value)
    assert str(EARLIER) in message
    assert "\n" not in message
    now = flatten(load_params(ROOT / "params.yaml").model_dump())
    before = flatten(yaml.safe_load(EARLIER.read_text(encoding="utf-8")))
    for name in before.keys() - now.keys():
        section = name.rpartition(".")[0]
        assert f"{name} -> " in message or f"{section} -> gone" in message, name


def test_new_names_exist() -> None:
    known = flatten(load_params(ROOT / "params.yaml").model_dump(), depth=3)
    for new in MOVED.values():
        name = new.partition(" (")[0]
        assert name.startswith("gone: ") or name in known, name


def test_data_sets_moved_as_ingest_did(tmp_path: Path) -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["datasets"] = {"own": raw["ingest"] | {"engine": "local"}}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(ValueError, match=r"datasets\.own\.engine -> runtime\.executor"):
        load_params(path)


def test_presets_and_edits_of_an_earlier_file_name_the_changes(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    shutil.copy(EARLIER, path)
    with pytest.raises(ValueError, match=r"run\.num_workers -> runtime\.num_workers"):
        presets.apply("cpu-default", path, write=True)
    shutil.copy(ROOT / "params.yaml", path)
    with pytest.raises(ValueError, match=r"has no run\.seed; run\.seed -> seed"):
        write_values(path, {"run.seed": 1}, write=True)


def test_sweep_of_a_moved_name_gets_the_new_one() -> None:
    with pytest.raises(ValueError, match=r"pretrain\.accumulate -> runtime\.accumulate"):
        small_params(sweep={"fixed": {"pretrain.accumulate": 2}})


def test_flatten_and_nest_are_inverse() -> None:
    values = {"a": {"b": {"c": 1}, "d": [2]}, "e": None}
    assert flatten(values) == {"a.b.c": 1, "a.d": [2], "e": None}
    assert nest(flatten(values)) == values
    assert flatten(values, depth=2) == {"a.b": {"c": 1}, "a.d": [2], "e": None}
    assert nest({"val/top1": 1.0}, "/") == {"val": {"top1": 1.0}}
