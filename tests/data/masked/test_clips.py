from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mme.data.frames import SEED_PRETRAIN, PlaneCache, sample_rng
from mme.data.masked.clips import PretrainDataset, TrackedVideos
from mme.manifest import Manifest
from mme.models.encoder import rgb_of
from mme.motion.store import TrackStore
from mme.targets.base import OBJECTIVES
from mme.training.pretrain import held_out_dataset, pretrain_dataset, span_frames
from mme.video.codec import GOP_FRAMES, read_frames
from mme.video.colour import luma_of
from mme.video.crop import Crop, apply_crop
from mme.video.planes import YuvFrame
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
    dataset = PretrainDataset(tracked, params.clip, params.model, params.pretrain, seed=0)
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
    dataset = PretrainDataset(tracked, params.clip, params.model, params.pretrain, seed=0)
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


class Counting(PlaneCache):
    """Notes the frames of each decoding."""

    def __init__(self) -> None:
        super().__init__(0)
        self.ranges: list[tuple[int, int]] = []

    def read(self, path: Path, start: int, stop: int, video_bytes: int) -> Iterator[YuvFrame]:
        self.ranges.append((start, stop))
        return super().read(path, start, stop, video_bytes)


def draws_dataset(folder: Path, draws: int) -> tuple[PretrainDataset, Counting]:
    params = small_params(
        pretrain={"objective": "mme", "min_scale": 0.6, "batch_size": 6, "epochs": 6, "draws_per_decode": draws}
    )
    manifest = Manifest.load(folder / "manifest.parquet")
    dataset = pretrain_dataset(params, manifest, TrackStore(folder / "trajectories"), ["pretrain"])
    dataset.tracked.cache = Counting()
    return dataset, dataset.tracked.cache


def test_draws_of_one_decoding_decode_once_and_are_those_drawn_alone(folder: Path) -> None:
    dataset, cache = draws_dataset(folder, 3)
    keys = [(6, 2), (7, 2), (8, 2), (3, 5), (4, 5), (5, 5), (9, 5)]
    together = dataset.__getitems__(keys)
    assert len(cache.ranges) == 3
    for number, key in enumerate(keys):
        alone = dataset[key]
        assert together.keys() == alone.keys()
        for name, values in together.items():
            assert torch.equal(values[number], alone[name]), name
    for name in ("hidden", "luma", "chroma"):
        assert len({values.numpy().tobytes() for values in together[name]}) == len(keys)


def test_starts_of_one_decoding_lie_between_two_keyframes_and_each_is_drawn_uniformly(folder: Path) -> None:
    dataset, _ = draws_dataset(folder, 3)
    video = replace(dataset.tracked.videos[0], num_frames=dataset.num_frames - 1 + 20)  # 20 starts
    starts = np.array(
        [
            [
                dataset._start(sample_rng(SEED_PRETRAIN, dataset.seed, draw, 0), video, draw, 0)
                for draw in range(3 * n, 3 * n + 3)
            ]
            for n in range(2000)
        ]
    )
    assert (starts // GOP_FRAMES == starts[:, :1] // GOP_FRAMES).all()
    for column in starts.T:
        counts = np.bincount(column, minlength=20)
        assert len(counts) == 20
        assert abs(counts / 100 - 1).max() < 0.45  # four deviations
    assert 0.05 < (starts[:, 1] == starts[:, 2]).mean() < 0.3


def test_one_draw_per_decoding_starts_where_the_first_of_several_does(folder: Path) -> None:
    one, three = draws_dataset(folder, 1)[0], draws_dataset(folder, 3)[0]
    for name, value in one[3, 4].items():
        assert torch.equal(value, three[3, 4][name])
