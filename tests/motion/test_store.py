from __future__ import annotations

import errno
import json
import multiprocessing
import pickle
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from mme.motion.camera import CameraMotion
from mme.motion.store import TrackEntry, TrackStore, merge_parts, read_part, write_index, write_part
from mme.motion.tracking import StartTracks, TrackSlice

HEIGHT, WIDTH, CELL, LENGTH = 24, 40, 8, 5


def random_starts(seed: int, num_starts: int) -> list[StartTracks]:
    rng = np.random.default_rng(seed)
    shape = (HEIGHT // CELL, WIDTH // CELL)
    return [
        StartTracks(
            displacements=rng.normal(0, 3, (*shape, LENGTH, 2)).astype(np.float32),
            num_valid=rng.integers(0, LENGTH + 1, shape).astype(np.uint8),
            camera=CameraMotion(np.eye(3) + rng.normal(0, 0.01, (3, 3)), bool(rng.integers(2)), 0.5),
            complete=number + LENGTH <= num_starts,
            frame_size=(HEIGHT, WIDTH),
        )
        for number in range(num_starts)
    ]


VIDEOS = {"cat": random_starts(1, 9), "a video.with-odd_ID": random_starts(2, 4), "bird": random_starts(3, 6)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, the first of two videos."""
    root = tmp_path_factory.mktemp("tracks")
    parts = {}
    for video_id, starts in VIDEOS.items():
        parts[video_id] = root / "parts" / video_id
        write_part(parts[video_id], starts, CELL)
    entries: dict[str, TrackEntry] = {}
    for name, chosen in (("0", ["cat", "a video.with-odd_ID"]), ("1", ["bird"])):
        entries |= merge_parts(root / f"{name}.safetensors", {video_id: parts[video_id] for video_id in chosen})
    write_index(root, entries, {"cell": CELL})
    return root


def expect(tracks: TrackSlice, video_id: str, starts: list[int], length: int) -> None:
    stored = VIDEOS[video_id]
    assert tracks.displacements.dtype == np.float16
    assert tracks.displacements.shape == (len(starts), HEIGHT // CELL, WIDTH // CELL, length, 2)
    for row, start in enumerate(starts):
        expected = stored[start].displacements[:, :, :length]
        np.testing.assert_allclose(tracks.displacements[row], expected, rtol=2**-11, atol=1e-7)
        np.testing.assert_array_equal(tracks.num_valid[row], np.minimum(stored[start].num_valid, length))
        for step in range(length):
            later = start + step
            homography = stored[later].camera.homography if later < len(stored) else np.eye(3)
            np.testing.assert_allclose(tracks.homographies[row, step], homography, rtol=1e-6, atol=1e-7)
    assert (tracks.cell, tracks.height, tracks.width) == (CELL, HEIGHT, WIDTH)
    assert tracks.starts.tolist() == starts


@pytest.mark.parametrize("video_id", VIDEOS)
@pytest.mark.parametrize("length", [1, 3, LENGTH])
def test_read_returns_the_written_tracks(folder: Path, video_id: str, length: int) -> None:
    store = TrackStore(folder)
    expect(store.read(video_id, [0, 3, 1], length), video_id, [0, 3, 1], length)
    assert store.num_starts(video_id) == len(VIDEOS[video_id])


def test_index_lists_videos_and_params(folder: Path) -> None:
    store = TrackStore(folder)
    assert store.ids == sorted(VIDEOS)
    assert "cat" in store
    assert "dog" not in store
    assert store.params == {"cell": CELL}


def test_missing_video_error_names_the_video(folder: Path) -> None:
    with pytest.raises(KeyError, match="'dog'"):
        TrackStore(folder).read("dog", [0], 1)


@pytest.mark.parametrize(
    ("starts", "length", "message"), [([9], 2, "start frame 9"), ([-1], 2, "-1"), ([0], 6, "length 6")]
)
def test_start_or_length_out_of_range_is_refused(folder: Path, starts: list[int], length: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"cat.*{message}"):
        TrackStore(folder).read("cat", starts, length)


def test_folder_without_index_of_this_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"index\.json"):
        TrackStore(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"format": 99, "params": {}, "videos": {}}))
    with pytest.raises(ValueError, match="99"):
        TrackStore(tmp_path)


def test_shards_are_memory_mapped(folder: Path) -> None:
    store = TrackStore(folder)
    tensor = store._shard("0.safetensors").tensor("cat", "displacements")
    assert not tensor.flags.owndata
    assert not tensor.flags.writeable
    assert tensor.flags.aligned
    store.read("cat", [0], 1).displacements[:] = 7  # a copy, so the file is unchanged
    expect(store.read("cat", [0], 1), "cat", [0], 1)


def test_damaged_shard_error_names_the_file(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    data = (folder / "0.safetensors").read_bytes()
    for damaged in (data[:-3], data[:40], b"", b"no shard" * 9):
        (tmp_path / "copy" / "0.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"0\.safetensors"):
            TrackStore(tmp_path / "copy").read("cat", [0], 1)
    (tmp_path / "copy" / "1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"1\.safetensors"):
        TrackStore(tmp_path / "copy").read("bird", [0], 1)


def test_store_is_picklable(folder: Path) -> None:
    store = TrackStore(folder)
    store.read("cat", [0], 1)
    expect(pickle.loads(pickle.dumps(store)).read("cat", [2], 2), "cat", [2], 2)


def _read_in_child(store: TrackStore, pipe: Any) -> None:
    pipe.send(store.read("cat", [2], 2).displacements)


def test_store_reads_after_a_fork(folder: Path) -> None:
    store = TrackStore(folder)
    expected = store.read("cat", [2], 2).displacements
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()
    child = context.Process(target=_read_in_child, args=(store, sender))
    child.start()
    np.testing.assert_array_equal(receiver.recv(), expected)
    child.join()


def test_shards_are_valid_safetensors(folder: Path) -> None:
    tensors = load_file(folder / "0.safetensors")
    names = ("displacements", "homographies", "num_valid", "trusted")
    assert sorted(tensors) == sorted(f"{video}/{name}" for video in ("cat", "a video.with-odd_ID") for name in names)
    assert tensors["cat/displacements"].dtype == np.float16
    assert tensors["cat/displacements"].shape == (9, HEIGHT // CELL, WIDTH // CELL, LENGTH, 2)
    trusted = [start.camera.trusted for start in VIDEOS["cat"]]
    np.testing.assert_array_equal(tensors["cat/trusted"], trusted)


def test_entry_counts_valid_points_and_trusted_starts(tmp_path: Path) -> None:
    starts = random_starts(4, 7)
    entry = write_part(tmp_path / "part", starts, CELL)
    whole = [start.num_valid == LENGTH for start in starts if start.complete]
    assert entry["num_points"] == 3 * (HEIGHT // CELL) * (WIDTH // CELL)
    assert entry["num_whole"] == np.sum(whole)
    assert entry["num_trusted"] == sum(start.camera.trusted for start in starts)
    assert entry["num_starts"] == 7
    assert read_part(tmp_path / "part") == entry


def test_digest_depends_on_content_only(tmp_path: Path) -> None:
    first = write_part(tmp_path / "1", random_starts(1, 3), CELL)
    again = write_part(tmp_path / "2", random_starts(1, 3), CELL)
    other = write_part(tmp_path / "3", random_starts(2, 3), CELL)
    assert first["digest"] == again["digest"] != other["digest"]


def test_failed_part_leaves_no_files(tmp_path: Path) -> None:
    def broken() -> Iterator[StartTracks]:
        yield from random_starts(1, 2)
        raise ValueError("the video ends here")

    with pytest.raises(ValueError, match="ends here"):
        write_part(tmp_path / "part", broken(), CELL)
    assert list(tmp_path.iterdir()) == []
    assert read_part(tmp_path / "part") is None


def test_full_disk_leaves_no_shard(tmp_path: Path) -> None:
    write_part(tmp_path / "part", random_starts(1, 50), CELL)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="large") as caught:
            merge_parts(tmp_path / "out" / "0.safetensors", {"video": tmp_path / "part"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert list((tmp_path / "out").iterdir()) == []


@given(st.floats(-64, 64))
def test_half_precision_error_is_within_the_documented_bound(pixels: float) -> None:
    assert abs(float(np.float16(pixels)) - pixels) <= max(abs(pixels) * 2**-11, 1e-7)
