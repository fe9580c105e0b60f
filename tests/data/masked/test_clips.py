from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mme.data.masked.clips import PretrainDataset, TrackedVideos
from mme.manifest import Manifest
from mme.motion.store import TrackStore
from mme.targets.base import OBJECTIVES
from mme.targets.hog import luma_of
from tests.small_data import make_small_data, small_params


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_small_data(folder, small_params())
    return folder


@pytest.mark.parametrize("hog_steps", ["all", "first"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_sample_holds_what_its_objective_reads(folder: Path, hog_steps: str, objective: str) -> None:
    params = small_params(pretrain={"hog_steps": hog_steps, "objective": objective, "min_scale": 0.6})
    manifest = Manifest.load(folder / "manifest.parquet")
    tracked = TrackedVideos(manifest, TrackStore(folder / "trajectories"), ["pretrain"], frame_cache_mb=0)
    dataset = PretrainDataset(tracked, params.clip, params.model, params.pretrain, mask_ratio=0.6, seed=0)
    inputs = {name for target in OBJECTIVES[objective] for name in target.inputs}
    for key in [(epoch, index) for epoch in range(2) for index in (3, 0, 7)]:
        sample, again = dataset[key], dataset[key]
        assert sample.keys() == again.keys()
        for name, value in sample.items():
            assert torch.equal(value, again[name])
        assert ("displacements" in sample) == ("tracks" in inputs)
        assert ("luma" in sample) == ("luma" in inputs)
        assert sample["clip"].dtype == torch.uint8
        assert sample["hidden"].sum() == round(0.6 * 16) * 2


def test_luma_is_that_of_the_frames_of_the_clip(folder: Path) -> None:
    params = small_params(pretrain={"objective": "mme", "min_scale": 0.6})
    manifest = Manifest.load(folder / "manifest.parquet")
    tracked = TrackedVideos(manifest, TrackStore(folder / "trajectories"), ["pretrain"], frame_cache_mb=0)
    dataset = PretrainDataset(tracked, params.clip, params.model, params.pretrain, mask_ratio=0.6, seed=0)
    sample = dataset[0, 3]
    shown = [frame * params.clip.stride_frames for frame in range(params.clip.num_frames)]
    both = [frame for frame in dataset.spec.hog_frames if frame in shown]
    assert len(both) >= 2
    for frame in both:
        expected = luma_of(sample["clip"][shown.index(frame)][None].numpy())[0]
        assert np.array_equal(sample["luma"][dataset.spec.hog_frames.index(frame)].numpy(), expected)
