from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mme.data.masked.clips import PretrainDataset, TrackedVideos
from mme.manifest import Manifest
from mme.models.encoder import rgb_of
from mme.motion.store import TrackStore
from mme.targets.base import OBJECTIVES
from mme.targets.hog import luma_of
from mme.training.pretrain import held_out_dataset, pretrain_dataset, span_frames
from mme.video.codec import read_frames
from mme.video.crop import Crop, apply_crop
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
    tracked = TrackedVideos(manifest, TrackStore(folder / "trajectories"), ["pretrain"], 1, frame_cache_mb=0)
    dataset = PretrainDataset(tracked, params.clip, params.model, params.pretrain, mask_ratio=0.6, seed=0)
    inputs = {name for target in OBJECTIVES[objective] for name in target.inputs}
    for key in [(epoch, index) for epoch in range(2) for index in (3, 0, 7)]:
        sample, again = dataset[key], dataset[key]
        assert sample.keys() == again.keys()
        for name, value in sample.items():
            assert torch.equal(value, again[name])
        assert ("displacements" in sample) == ("tracks" in inputs)
        assert len(sample["luma"]) == len(dataset.luma_frames)
        assert set(dataset.luma_frames) >= set(dataset.spec.seen_frames)
        assert ("luma" in inputs and hog_steps == "all") == (dataset.luma_frames != dataset.spec.seen_frames)
        assert sample["chroma"].shape == (params.clip.num_frames, 2, params.clip.size // 2, params.clip.size // 2)
        assert sample["hidden"].sum() == round(0.6 * 16) * 2


@pytest.mark.parametrize("frame_cache_mb", [0, 64])
def test_a_sample_shows_the_crop_of_its_frames(folder: Path, frame_cache_mb: float) -> None:
    params = small_params(pretrain={"objective": "mme", "min_scale": 0.6})
    manifest = Manifest.load(folder / "manifest.parquet")
    tracked = TrackedVideos(manifest, TrackStore(folder / "trajectories"), ["pretrain"], 1, frame_cache_mb)
    dataset = PretrainDataset(tracked, params.clip, params.model, params.pretrain, mask_ratio=0.6, seed=0)
    sample, video = dataset[0, 3], tracked.videos[3]
    left, top, width, height = sample["crop"].tolist()
    assert [edge % 2 for edge in (left, top, width, height)] == [0, 0, 0, 0]
    crop = Crop(top, left, height, width, bool(sample["flip"]))

    whole = apply_crop(read_frames(manifest.path_of(video)), crop, params.clip.size)
    expected = luma_of(whole).astype(int)
    found = sample["luma"].numpy().astype(int)
    errors = [np.abs(expected[start + np.array(dataset.luma_frames)] - found).mean() for start in range(16 - 9)]
    start = int(np.argmin(errors))
    assert errors[start] < 2 < min(error for error in errors if error != errors[start])

    seen = [dataset.luma_frames.index(frame) for frame in dataset.spec.seen_frames]
    shown = rgb_of(sample["luma"][seen], sample["chroma"]).numpy().astype(int)
    assert np.abs(shown - whole[start + np.array(dataset.spec.seen_frames)]).mean() < 6


def test_videos_shorter_than_clip_and_trajectories_are_left_out(folder: Path) -> None:
    params = small_params()
    whole = Manifest.load(folder / "manifest.parquet")
    span = span_frames(params)
    rows = [replace(video, num_frames=span - (number % 2)) for number, video in enumerate(whole.rows)]
    manifest, tracks = Manifest(rows, folder), TrackStore(folder / "trajectories")
    dataset = pretrain_dataset(params, manifest, tracks, ["pretrain"])
    assert {video.num_frames for video in dataset.tracked.videos} == {span}
    assert len(dataset) == 6
    samples = [dataset[epoch, index] for epoch in range(3) for index in range(len(dataset))]
    assert len({sample["luma"].shape for sample in samples}) == 1
    held_out = held_out_dataset(params, manifest, tracks)
    assert held_out is not None
    assert len(held_out) == 2

    short = Manifest([replace(video, num_frames=span - 1) for video in rows], folder)
    assert held_out_dataset(params, short, tracks) is None
    message = rf"all 12 videos of splits \['pretrain'\] are shorter than {span} frames, which a clip and its traj"
    with pytest.raises(ValueError, match=message):
        pretrain_dataset(params, short, tracks, ["pretrain"])
