from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mme.config import load_params
from mme.config.edit import write_values

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    return path


def test_only_the_values_change_and_the_difference_is_shown(file: Path) -> None:
    before = file.read_text(encoding="utf-8")
    difference = write_values(
        file, {"pretrain.mask_ratio": 0.75, "pretrain.length": 4, "pretrain.hog_steps": "all"}, write=True
    )
    changed = [line for line in difference.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert [line[0] for line in changed] == ["-", "-", "-", "+", "+", "+"]
    after = file.read_text(encoding="utf-8")
    assert after.count("#") == before.count("#")
    params = load_params(file)
    assert (params.pretrain.mask_ratio, params.pretrain.length, params.pretrain.hog_steps) == (0.75, 4, "all")
    former = load_params(ROOT / "params.yaml").pretrain.model_dump()
    write_values(file, {f"pretrain.{name}": former[name] for name in ("mask_ratio", "length", "hog_steps")}, write=True)
    assert file.read_text(encoding="utf-8") == before


def test_small_numbers_stay_numbers(file: Path) -> None:
    write_values(file, {"pretrain.lr": 1e-5}, write=True)
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["pretrain"]["lr"] == 1e-5


def test_nothing_is_written_on_request_or_if_the_result_would_be_wrong(file: Path) -> None:
    before = file.read_bytes()
    assert write_values(file, {"pretrain.mask_ratio": 0.85}, write=False)
    with pytest.raises(ValueError, match="max_length"):
        write_values(file, {"pretrain.length": 99}, write=True)
    with pytest.raises(ValueError, match=r"params.yaml: has no pretrain.nothing"):
        write_values(file, {"pretrain.nothing": 1}, write=True)
    assert file.read_bytes() == before


def test_the_same_values_are_no_difference(file: Path) -> None:
    assert write_values(file, {"pretrain.mask_ratio": load_params(file).pretrain.mask_ratio}, write=True) == ""
