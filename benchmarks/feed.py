"""Parts of what a loader process does for one clip of ViT-B/16: ``python -m benchmarks feed``.

A clip is 16 frames of 224 pixels, 4 apart, with HOG along six steps of its trajectories: about 66 frames of a 454 x 256
file in the normal form are decoded. The files are written first: noise with the spectrum of natural images, moved by a
camera, an object before it, and the noise of a sensor. CPU time of one core.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.assembly import VIT_B, changed
from benchmarks.report import Row, record
from benchmarks.speed import stored
from benchmarks.targets import cpu_ms
from mme.config import Params, load_params
from mme.data.masked.clips import PretrainDataset
from mme.manifest import Manifest, Video
from mme.motion.camera import CameraMotion
from mme.motion.store import TrackStore, merge_parts, write_index, write_part
from mme.motion.tracking import StartTracks
from mme.training.pretrain import pretrain_dataset
from mme.video.codec import read_frames
from mme.video.containers import open_stream
from mme.video.crop import Crop, apply_crop
from mme.video.planes import iter_planes

HEIGHT, WIDTH, NUM_FRAMES, FPS = 256, 454, 120, 30.0
NUM_VIDEOS, NUM_CLIPS, NUM_ROUNDS = 8, 16, 7


def texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Colour noise whose amplitude falls with the frequency, as that of filmed scenes; mean 128, deviation 45."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(4, height, width))) / frequency**1.25
    planes = np.fft.irfft2(spectrum, s=(height, width))
    planes /= planes.std(axis=(1, 2), keepdims=True)
    return np.asarray(128 + 45 * (0.9 * planes[:1] + 0.45 * planes[1:]).transpose(1, 2, 0), dtype=np.float32)


def textured_frames(seed: int, num_frames: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Render a video: a moving camera, an object that moves otherwise, the noise of a sensor."""
    rng = np.random.default_rng(seed)
    scene, patch = texture(rng, 2 * height, 2 * width), texture(rng, height // 2, width // 3)
    pan, drift, turn = rng.normal(0, 0.7, 2), rng.normal(0, 1.5, 2), float(rng.normal(0, 0.03))
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for number in range(num_frames):
        camera = np.asarray(cv2.getRotationMatrix2D((width, height), turn * number, 1.0), np.float64)
        camera[:, 2] += pan * number - (width / 2, height / 2)
        picture = cv2.warpAffine(scene, camera, (width, height), borderMode=cv2.BORDER_REFLECT)
        shift = np.eye(2, 3)
        shift[:, 2] = drift * number + (width / 3, height / 4)
        cv2.warpAffine(patch, shift, (width, height), dst=picture, borderMode=cv2.BORDER_TRANSPARENT)
        noise = rng.normal(0, 1.5, (height, width, 3)).astype(np.float32)
        frames[number] = np.clip(picture + noise, 0, 255)
    return frames


def random_tracks(
    rng: np.random.Generator, num_starts: int, shape: tuple[int, int], length: int
) -> Iterator[StartTracks]:
    """Tracks of a moving camera and of points that go their own ways, to spare the time of their extraction."""
    rows, columns = shape
    speed = rng.normal(0, 1, 2) + rng.normal(0, 0.5, (rows, columns, 1, 2))
    homography = np.eye(3)
    homography[:2, 2] = speed.mean(axis=(0, 1, 2))
    for start in range(num_starts):
        displacements = (speed + rng.normal(0, 0.2, (rows, columns, length, 2))).astype(np.float32)
        num_valid = np.where(rng.random(shape) < 0.9, length, length // 2).astype(np.uint8)
        yield StartTracks(
            displacements,
            num_valid,
            CameraMotion(homography, True, 1.0),
            start < num_starts - length,
            (8 * rows, 8 * columns),
        )


def make_video(number: int, folder: Path, params: Params, size: tuple[int, int, int]) -> Video:
    """Write a video and its tracks."""
    num_frames, height, width = size
    video = stored(
        folder / "videos" / f"{number}.mp4",
        textured_frames(number, num_frames, height, width),
        FPS,
        params,
        None,
        "pretrain",
    )
    rng, cell = np.random.default_rng(number), params.trajectories.cell
    starts = random_tracks(rng, num_frames - 1, (height // cell, width // cell), params.trajectories.max_length)
    write_part(folder / "parts" / video.id, starts, cell)
    return video


def make_data(params: Params, folder: Path, num_videos: int, size: tuple[int, int, int], processes: int) -> Manifest:
    """Write videos in the normal form and a store of their tracks.

    Args:
        params: normal form and trajectories.
        folder: for files and tracks.
        num_videos: number of videos.
        size: frames, height and width.
        processes: processes that write.
    """
    (folder / "videos").mkdir(parents=True)
    (folder / "parts").mkdir()
    make = functools.partial(make_video, folder=folder, params=params, size=size)
    with ProcessPoolExecutor(processes) as pool:
        videos = list(pool.map(make, range(num_videos)))
    tracks = folder / "trajectories"
    tracks.mkdir()
    entries = merge_parts(tracks / "0.safetensors", {video.id: folder / "parts" / video.id for video in videos})
    write_index(tracks, entries, params.trajectories.model_dump(mode="json"))
    return Manifest(videos, folder)


def vit_b(params: Params, draws: int = 1, **runtime: Any) -> Params:
    """Return the parameters of ViT-B/16 with HOG along the trajectories, no frame kept in memory."""
    values: dict[str, dict[str, Any]] = {
        "ingest": {"crf": 20},  # of the presets for Kinetics, UCF101 and HMDB51
        "trajectories": {"splits": ("pretrain",)},
        "runtime": {"frame_cache_mb": 0, **runtime},
        "pretrain": {"splits": ("pretrain",), "min_scale": 0.66, "draws_per_decode": draws},
    }
    return changed(changed(params, VIT_B), values)


def clip_ms(*actions: Callable[[int], object]) -> list[float]:
    """Return the CPU time of actions per clip in milliseconds, each the median of rounds over the same clips."""

    def over_clips(action: Callable[[int], object]) -> None:
        for number in range(NUM_CLIPS):
            action(number)

    rounds = cpu_ms(*(functools.partial(over_clips, action) for action in actions), repeats=NUM_ROUNDS)
    return [milliseconds / NUM_CLIPS for milliseconds in rounds]


def bare_decoding(path: Path, num_frames: int) -> None:
    """Decode the first frames of a file and do nothing else."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, _ in enumerate(container.decode(stream), 1):
            if number == num_frames:
                return


def opened(path: Path) -> None:
    """Open a file as the loader does and close it."""
    with open_stream(path, probe_pictures=False):
        pass


class Parts:
    """Actions on the clip of one number each, from files to a sample."""

    def __init__(self, params: Params, manifest: Manifest) -> None:
        self.dataset: PretrainDataset = pretrain_dataset(
            params, manifest, TrackStore(manifest.folder / "trajectories"), ["pretrain"]
        )
        self.paths = [manifest.path_of(video) for video in manifest.rows]
        self.draws = params.pretrain.draws_per_decode
        self.size = params.clip.size
        self.stop = self.dataset.luma_frames[-1] + 1
        self.crop = Crop(8, 60, 212, 212, True)

    def path(self, number: int) -> Path:
        """Return a file."""
        return self.paths[number % len(self.paths)]

    def start(self, number: int) -> int:
        """Return the first frame of a clip."""
        return 7 * number % (NUM_FRAMES - self.dataset.num_frames)

    def planes(self, number: int) -> None:
        """Decode and look at the planes."""
        for _ in iter_planes(self.path(number), self.start(number), self.start(number) + self.stop):
            pass

    def tracks(self, number: int) -> None:
        """Read what is not pixels: draw crop and mask, read tracks."""
        video = self.dataset.tracked.videos[number % len(self.paths)]
        self.dataset._draw(video, number, number % len(self.paths))  # noqa: SLF001

    def sample(self, number: int) -> dict[str, Tensor]:
        """Read a batch of all draws of a decoding."""
        keys = [(number * self.draws + draw, number % len(self.paths)) for draw in range(self.draws)]
        return self.dataset.__getitems__(keys)

    def rgb(self, number: int) -> None:
        """Decode to RGB, cut and resize, as loaders did before."""
        frames = read_frames(self.path(number))[self.start(number) :][: self.stop]
        apply_crop(frames, self.crop, self.size)


def time_parts(params: Params, manifest: Manifest) -> Iterator[Row]:
    """Measure the parts of a sample, then the whole with one and two draws per decoding."""
    parts = Parts(params, manifest)
    of = f"{parts.stop} frames of {WIDTH} x {HEIGHT}, one core"
    num_decoded = parts.stop + 4  # from the keyframe before
    size_kb = sum(path.stat().st_size for path in parts.paths) / len(parts.paths) / NUM_FRAMES / 1e3
    yield Row("stored", size_kb, "kB per frame", of=f"crf {params.ingest.crf}")
    two = Parts(changed(params, {"pretrain": {"draws_per_decode": 2}}), manifest)
    size = sum(value.nbytes for value in parts.sample(0).values())
    bare, opening, planes, tracks, sample, both, transport, rgb = clip_ms(
        lambda number: bare_decoding(parts.path(number), num_decoded),
        lambda number: opened(parts.path(number)),
        parts.planes,
        parts.tracks,
        parts.sample,
        two.sample,
        lambda _: torch.UntypedStorage._new_shared(size).fill_(0),  # noqa: SLF001
        parts.rgb,
    )
    clip = sample + transport
    yield Row("bare decoder", bare, "ms", of=f"{num_decoded} frames")
    yield Row("open", opening, "ms")
    yield Row("open, seek, decode, planes", planes, "ms", of=of)
    yield Row("crop, mask, tracks", tracks, "ms")
    yield Row("cut and resize", sample - planes - tracks, "ms", of="the rest")
    yield Row("transport", transport, "ms", of="shared memory, written once")
    yield Row("size", size / 1e6, "MB per clip")
    yield Row("clip", clip, "ms", at_most=35, of="one draw per decoding")
    yield Row("clip", bare / clip, "x bare decoder", at_least=0.6, of="one draw per decoding")
    yield Row("clip", both / 2 + transport, "ms", at_most=22, of="two draws per decoding")
    yield Row("the same from RGB frames", rgb, "ms", of="whole file decoded, without tracks")


def main() -> None:
    """Run the benchmark and record it."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    params = vit_b(load_params())
    with tempfile.TemporaryDirectory() as name:
        manifest = make_data(params, Path(name), NUM_VIDEOS, (NUM_FRAMES, HEIGHT, WIDTH), 1)
        record("feed", list(time_parts(params, manifest)))


if __name__ == "__main__":
    main()
