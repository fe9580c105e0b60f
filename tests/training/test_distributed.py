"""Two processes that share every batch against one that has it all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mme.manifest import Manifest
from tests.small_data import make_small_data, small_params
from tests.training import processes

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set with three videos to validate on, which two processes cannot share equally."""
    folder = tmp_path_factory.mktemp("data")
    manifest = make_small_data(folder, small_params())
    Manifest([row for row in manifest.rows if row.id != "val-3"], folder).save(folder / "manifest.parquet")
    return folder


@pytest.fixture(scope="module")
def together(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return processes.launched(data, tmp_path_factory.mktemp("together"), 2)


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return processes.train(data, tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.parametrize("name", [*processes.VARIANTS, *processes.FINETUNINGS])
def test_two_processes_have_the_losses_of_one(name: str, alone: dict[str, Any], together: list[dict[str, Any]]) -> None:
    expected, found = alone["plain" if name == "parts" else name], together[0][name]
    assert name in processes.FINETUNINGS or len(expected["losses"]) == processes.NUM_STEPS
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    for row, wanted in zip(found["rows"], expected["rows"], strict=True):
        assert row == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("name", [*processes.VARIANTS, *processes.FINETUNINGS])
def test_processes_end_with_the_same_weights(name: str, together: list[dict[str, Any]]) -> None:
    assert together[0][name]["weights"] == together[1][name]["weights"]


def test_validation_counts_each_video_once(alone: dict[str, Any], together: list[dict[str, Any]]) -> None:
    """A share of three videos, though one process has two of them and the other one."""
    for found in (alone, *together):
        for row in found["finetune"]["rows"]:
            assert 3 * row["val/top1"] == pytest.approx(round(3 * row["val/top1"]), abs=1e-5)
    assert [row["val/top1"] for row in together[0]["finetune"]["rows"]] == pytest.approx(
        [row["val/top1"] for row in alone["finetune"]["rows"]]
    )
