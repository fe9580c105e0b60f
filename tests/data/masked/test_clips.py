from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mme.data.masked.clips import PretrainDataset
from mme.manifest import Manifest
from mme.motion.store import TrackStore
from tests.small_data import make_small_data, small_params


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_small_data(folder, small_params())
    return folder


@pytest.mark.parametrize("hog_steps", ["all", "first"])
@pytest.mark.parametrize("objective", ["mme", "trajectory", "hog", "pixel"])
def test_a_batch_is_its_samples_one_by_one_to_the_bit(folder: Path, hog_steps: str, objective: str) -> None:
    params = small_params(pretrain={"hog_steps": hog_steps, "objective": objective, "min_scale": 0.6})
    manifest = Manifest.load(folder / "manifest.parquet")
    dataset = PretrainDataset(params, manifest, TrackStore(folder / "trajectories"), ["pretrain"])
    keys = [(epoch, index) for epoch in range(2) for index in (3, 0, 7)]
    for key, sample in zip(keys, dataset.__getitems__(keys), strict=True):
        alone = dataset[key]
        assert sample.keys() == alone.keys()
        for name, value in sample.items():
            assert torch.equal(value, alone[name])
