from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mme.config import RuntimeParams, TrajectoriesParams
from mme.manifest import Manifest, Video
from mme.motion.extract import Extraction, Extractor, extract_part
from mme.motion.store import TrackStore, read_part
from mme.motion.tracking import extract_tracks
from mme.video.codec import read_frames, write_video
from mme.video.planes import iter_planes
from tests.reference.moving_scene import MovingScene, Similarity
from tests.targets.cases import trajectories_params

NUM_VIDEOS, NUM_FRAMES = 7, 9


def params(**changes: object) -> TrajectoriesParams:
    return trajectories_params(**{"cell": 8, "max_length": 3, "splits": ("train",)} | changes)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Seven videos, three shards."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(NUM_VIDEOS):
        scene = MovingScene(32, 48, Similarity((0.5 * number - 1, 0.7)), noise_std=1.0, seed=number)
        path = folder / "videos" / f"video-{number}.mp4"
        write_video(path, scene.frames(NUM_FRAMES + number), 16, 14, 8)
        row = Video(
            id=path.stem,
            path=path.name,
            sha256=f"{number:064}",
            label=None,
            split="train",
            group=None,
            num_frames=NUM_FRAMES + number,
            fps=16,
            width=48,
            height=32,
            status="ok",
            reason=None,
            source_path=path.name,
            source_fps=16,
        )
        rows.append(row)
    return Manifest(rows, folder)


def run(manifest: Manifest, folder: Path, num_workers: int = 1, **changes: object) -> Extraction:
    """Extract into ``folder/tracks``."""
    options = {"videos_per_shard": 3, **changes}
    runtime = {name: options.pop(name) for name in set(options) & set(RuntimeParams.model_fields)}
    extractor = Extractor(manifest, params(**options), folder / "work", RuntimeParams.model_validate(runtime))
    result = extractor.run(num_workers, lambda _: None)
    extractor.finish(folder / "tracks", result)
    return result


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def uninterrupted(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files written by an uninterrupted run with one worker."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(manifest, folder)
    return contents(folder / "tracks")


def test_shards_contain_the_tracks_of_every_video(manifest: Manifest, tmp_path: Path) -> None:
    result = run(manifest, tmp_path)
    assert result.failures == {}
    store = TrackStore(tmp_path / "tracks")
    assert store.ids == sorted(video.id for video in manifest.rows)
    assert store.params["cell"] == 8
    assert sorted(path.name for path in (tmp_path / "tracks").iterdir()) == [
        "index.json",
        *(f"tracks-{number:05d}.safetensors" for number in range(3)),
    ]
    for video in manifest.rows:
        assert store.num_starts(video.id) == video.num_frames - 1
        luma = (planes.y.copy() for planes in iter_planes(manifest.path_of(video)))
        expected = extract_tracks(luma, params()).select([0, 4], 3)
        tracks = store.read(video.id, [0, 4], 3)
        np.testing.assert_allclose(tracks.displacements, expected.displacements, rtol=2**-11, atol=1e-7)
        np.testing.assert_array_equal(tracks.num_valid, expected.num_valid)
    assert list((tmp_path / "work").iterdir()) == []


def test_tracks_of_luma_are_those_of_rgb_frames(manifest: Manifest) -> None:
    """RGB is rounded and clipped, so luma computed from it differs by a level or two from that in the file."""
    path = manifest.path_of(manifest.rows[0])
    luma = extract_tracks((planes.y.copy() for planes in iter_planes(path)), params())
    rgb = extract_tracks(read_frames(path), params())
    distance = np.linalg.norm(luma.displacements - rgb.displacements, axis=-1)
    assert np.median(distance) < 0.03
    assert np.mean(luma.num_valid != rgb.num_valid) < 0.1


def test_result_is_independent_of_the_number_of_workers(
    manifest: Manifest, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    run(manifest, tmp_path, num_workers=2)
    assert contents(tmp_path / "tracks") == uninterrupted


def test_missing_ray_names_the_package(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'mme\[ray\]'"):
        run(manifest, tmp_path, executor="ray")


_CHILD = """
import sys, time
from pathlib import Path
from mme.motion import extract as extraction
from tests.motion.test_extract import params
from mme.config import RuntimeParams
from mme.manifest import Manifest

folder = Path(sys.argv[1])
manifest = Manifest.load(sys.argv[2])
extractor = extraction.Extractor(manifest, params(), folder / "work", RuntimeParams(videos_per_shard=3))

def report(count):
    print("done", count, flush=True)
    time.sleep(60 if list((folder / "work").glob("*/entries/*.json")) else 0.2)  # to be killed in

extractor.run(2, report)
"""


def test_resume_after_sigkill_is_bitwise_identical(
    manifest: Manifest, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    listing = tmp_path / "data" / "manifest.parquet"
    manifest.save(listing)
    (tmp_path / "data" / "videos").symlink_to(manifest.folder / "videos")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(tmp_path), str(listing)], stdout=subprocess.PIPE, text=True, env=env
    )
    assert child.stdout is not None
    with child.stdout:
        while not list((tmp_path / "work").glob("*/entries/*.json")):
            assert child.stdout.readline().startswith("done")
        child.send_signal(signal.SIGKILL)
    child.wait()
    shards = list((tmp_path / "work").glob("*/shards/*.safetensors"))
    assert 1 <= len(shards) < 3
    made = {path: path.stat().st_mtime_ns for path in shards}
    (key,) = (tmp_path / "work").iterdir()
    (key / "parts" / ".video-9.abc").mkdir()  # temporary folder of an interrupted part

    moved = Manifest.load(listing)
    extractor = Extractor(moved, params(), tmp_path / "work", RuntimeParams(videos_per_shard=3))
    counts: list[int] = []
    result = extractor.run(2, counts.append)
    sizes = [min(3, NUM_VIDEOS - 3 * number) for number in (int(path.stem.rsplit("-", 1)[1]) for path in shards)]
    assert counts[0] == sum(sizes)  # videos of complete shards are not extracted again
    assert sum(counts) == NUM_VIDEOS
    assert {path: path.stat().st_mtime_ns for path in shards} == made
    extractor.finish(tmp_path / "tracks", result)
    assert contents(tmp_path / "tracks") == uninterrupted


def test_workers_die_with_a_killed_parent(manifest: Manifest, tmp_path: Path) -> None:
    listing = tmp_path / "data" / "manifest.parquet"
    manifest.save(listing)
    (tmp_path / "data" / "videos").symlink_to(manifest.folder / "videos")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MME_TEST_MARK": str(tmp_path)}
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(tmp_path), str(listing)], stdout=subprocess.PIPE, text=True, env=env
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline().startswith("done")
        assert child.stdout.readline().startswith("done")
        child.send_signal(signal.SIGKILL)
    child.wait()
    mark = f"MME_TEST_MARK={tmp_path}".encode()
    deadline = time.monotonic() + 30
    while _processes_with(mark):
        assert time.monotonic() < deadline, "workers outlive the process that started them"
        time.sleep(0.1)


def _processes_with(mark: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:  # gone, or another user's
            continue
    return found


def test_complete_part_is_not_extracted_again(manifest: Manifest, tmp_path: Path) -> None:
    video = manifest.rows[0]
    folder = tmp_path / "part"
    assert extract_part(manifest.path_of(video), video.num_frames, folder, params()) is None
    before = (folder / "displacements").stat().st_mtime_ns
    assert extract_part(Path("is not read"), video.num_frames, folder, params()) is None
    assert (folder / "displacements").stat().st_mtime_ns == before


def damage(manifest: Manifest, folder: Path) -> Manifest:
    """Truncate the second video and declare a wrong number of frames for the third."""
    rows = manifest.rows
    (folder / "videos").mkdir(parents=True)
    for row in rows:
        data = manifest.path_of(row).read_bytes()
        (folder / "videos" / row.path).write_bytes(data[: len(data) // 2] if row is rows[1] else data)
    rows[2] = dataclasses.replace(rows[2], num_frames=50)
    return Manifest(rows, folder)


@pytest.mark.slow
@pytest.mark.timeout(900)  # Ray starts eight processes
def test_ray_and_local_results_are_equal(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Ray of this machine with two workers, with bad videos, and paths relative to the caller's folder."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.chdir(tmp_path)
    damaged = damage(manifest, Path("data"))
    local, on_ray = (run(damaged, Path(executor), num_workers=2, executor=executor) for executor in ("local", "ray"))
    assert contents(Path("ray/tracks")) == contents(Path("local/tracks"))
    assert sorted(on_ray.failures) == sorted(local.failures) == ["video-1", "video-2"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_bad_videos_are_reported_and_others_extracted(manifest: Manifest, tmp_path: Path, num_workers: int) -> None:
    result = run(damage(manifest, tmp_path / "data"), tmp_path, num_workers)
    assert sorted(result.failures) == ["video-1", "video-2"]
    assert "truncated" in result.failures["video-1"]
    assert "11 frames decoded, the manifest has 50" in result.failures["video-2"]
    assert TrackStore(tmp_path / "tracks").ids == [f"video-{number}" for number in (0, 3, 4, 5, 6)]


def test_shard_of_bad_videos_only_is_not_written(manifest: Manifest, tmp_path: Path) -> None:
    result = run(damage(manifest, tmp_path / "data"), tmp_path, videos_per_shard=1)
    assert len(result.entries) == 5
    assert len(list((tmp_path / "tracks").glob("*.safetensors"))) == 5


def test_unwritable_work_folder_is_an_os_error(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file in the way")
    with pytest.raises(OSError, match="work") as caught:
        run(manifest, tmp_path)
    assert caught.value.errno in {errno.ENOTDIR, errno.EEXIST}


def test_full_disk_error_names_video_and_folder(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mme.motion.extract.write_part", full)
    video = manifest.rows[0]
    with pytest.raises(OSError, match=r"No space left.*video-0\.mp4.*part"):
        extract_part(manifest.path_of(video), video.num_frames, tmp_path / "part", params())
    assert read_part(tmp_path / "part") is None


def test_unfinished_work_keeps_its_shard_size(manifest: Manifest, tmp_path: Path) -> None:
    """Other groups of videos would not fit the shards that are done."""
    begun = Extractor(manifest, params(), tmp_path / "work", RuntimeParams(videos_per_shard=3))
    begun.run(1, lambda _: None)
    resumed = Extractor(manifest, params(), tmp_path / "work", RuntimeParams(videos_per_shard=2))
    counts: list[int] = []
    result = resumed.run(1, counts.append)
    assert counts == [NUM_VIDEOS]
    assert len(result.entries) == NUM_VIDEOS


def test_finish_removes_superseded_work(manifest: Manifest, tmp_path: Path) -> None:
    Extractor(manifest, params(cell=4), tmp_path / "work").run(1, lambda _: None)
    run(manifest, tmp_path)
    assert not list((tmp_path / "work").iterdir())


def test_key_depends_on_parameters_and_videos(manifest: Manifest, tmp_path: Path) -> None:
    def key(videos: Manifest, **changes: object) -> str:
        return Extractor(videos, params(**changes), tmp_path).key

    same = key(manifest)
    assert key(manifest) == same
    assert key(manifest, cell=4) != same
    assert key(manifest, flow="fast") != same
    fewer = Manifest(manifest.rows[:-1], manifest.folder)
    assert key(fewer) != same


def test_split_without_videos_is_an_error(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'val'"):
        Extractor(manifest, params(splits=("val",)), tmp_path)


def test_single_frames_are_left_out_and_counted(manifest: Manifest, tmp_path: Path) -> None:
    still, *others = manifest.rows
    write_video(tmp_path / "videos/still.mp4", np.zeros((1, 32, 48, 3), dtype=np.uint8), 16, 14, 8)
    (tmp_path / "videos" / others[0].path).write_bytes(manifest.path_of(others[0]).read_bytes())
    still = dataclasses.replace(still, path="still.mp4", num_frames=1)
    result = Extractor(Manifest([still, others[0]], tmp_path), params(), tmp_path / "work").run(1, lambda _: None)
    assert (list(result.entries), result.failures) == ([others[0].id], {})
    assert (result.summary()["videos"], result.summary()["single_frame_videos"]) == (1, 1)
    with pytest.raises(ValueError, match=r"no usable videos in splits \['train'\], 1 have a single frame"):
        Extractor(Manifest([still], tmp_path), params(), tmp_path / "work")
