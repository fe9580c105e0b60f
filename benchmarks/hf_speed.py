"""A pretraining step beside one of Hugging Face's VideoMAE, and the time that a step waits for its batch.

``python -m benchmarks hf_speed``. The step of this project has everything that `mme` needs: cropping, reading tracks,
HOG, forward, backward, update. The other is ``VideoMAEForPreTraining`` with pixel targets: forward, which computes
them, backward, update; its input is in memory. Sizes, masks, decoder and optimiser (fused AdamW, as both libraries
train) are the same. The first is measured sequentially, and with the loader process that training has by default.
They take turns on all cores; medians of wall time.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.assembly import VIT_B, Batch, changed
from benchmarks.report import Row, record
from benchmarks.speed import make_videos
from benchmarks.targets import large_frames
from mme.config import Params, load_params
from mme.ingest.motion_primitives import sample_scene
from mme.motion.extract import Extractor
from mme.motion.store import TrackStore
from mme.training.loop.loaders import prepare_worker, training_loader
from mme.training.pretrain import PretrainModule, pretrain_dataset, target_statistics

STEPS = 12


def turns_s(repeats: int, *actions: Callable[[], object]) -> list[float]:
    """Return median wall times in seconds of actions that take turns; the first turn warms up."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(repeats + 1):
        for action, taken in zip(actions, times, strict=True):
            begin = time.perf_counter()
            action()
            taken.append(time.perf_counter() - begin)
    return [statistics.median(taken[1:]) for taken in times]


class Reading(Dataset[dict[str, Tensor]]):
    """A batch, read anew each time."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.batch.read()


def batch_step(batch: Batch, num_workers: int) -> Callable[[], None]:
    """Return a step from cached frames and stored tracks to the update.

    With a loader process, as in training, the next batch is read while a step runs, on the same cores.
    """
    loader = DataLoader(Reading(batch), batch_size=None, num_workers=num_workers, worker_init_fn=prepare_worker)
    batches = iter(loader)
    return lambda: batch.step(next(batches))


def hf_network(params: Params) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """Return VideoMAE in the same sizes, with random pixels and masks of a batch."""
    model, clip, pretrain = params.model, params.clip, params.pretrain
    config = transformers.VideoMAEConfig(
        image_size=clip.size,
        patch_size=model.patch_size,
        num_frames=clip.num_frames,
        tubelet_size=model.tubelet_frames,
        hidden_size=model.dim,
        num_hidden_layers=model.depth,
        num_attention_heads=model.num_heads,
        intermediate_size=round(model.dim * model.mlp_ratio),
        decoder_hidden_size=pretrain.decoder_dim,
        decoder_num_hidden_layers=pretrain.decoder_depth,
        decoder_num_attention_heads=pretrain.decoder_heads,
        decoder_intermediate_size=4 * pretrain.decoder_dim,
    )
    network = transformers.VideoMAEForPreTraining(config).train()
    pixels = torch.randn(pretrain.batch_size, clip.num_frames, 3, clip.size, clip.size)
    side = clip.size // model.patch_size
    places = torch.rand(pretrain.batch_size, side**2).argsort(dim=1) < round(pretrain.mask_ratio * side**2)
    return network, pixels, places.repeat(1, clip.num_frames // model.tubelet_frames)


def hf_step(params: Params) -> Callable[[], None]:
    """Return a step of VideoMAE from pixels to the update."""
    network, pixels, hidden = hf_network(params)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        network(pixels, bool_masked_pos=hidden).loss.backward()
        optimizer.step()

    return step


def compare_libraries(name: str, batch: Batch, repeats: int) -> Iterator[Row]:
    """Measure both libraries in turn."""
    size = batch.params.pretrain.batch_size
    sequential, loaded, hugging_face = turns_s(
        repeats, batch_step(batch, 0), batch_step(batch, 1), hf_step(batch.params)
    )
    of = f"batch {size}, {batch.params.pretrain.mask_ratio:.0%} hidden"
    yield Row(
        f"{name}: mme", size / sequential, "clips per second", of=f"{of}, hog_steps: {batch.params.pretrain.hog_steps}"
    )
    yield Row(f"{name}: transformers, pixel", size / hugging_face, "clips per second", of=of)
    yield Row(f"{name}: clips per second", hugging_face / sequential, "x transformers", at_least=1.0)
    yield Row(f"{name}: the same, with a loader process", hugging_face / loaded, "x transformers", at_least=1.0)


def waiting(params: Params, folder: Path) -> Iterator[Row]:
    """Measure the share of a step spent waiting for its batch, without and with a loader process; frames are cached."""
    manifest = make_videos(params, folder)
    extractor = Extractor(manifest, params.trajectories, folder / "work")
    extractor.finish(folder / "trajectories", extractor.run(1, lambda _: None))
    dataset = pretrain_dataset(params, manifest, TrackStore(folder / "trajectories"), ["train"])
    module = PretrainModule(params, target_statistics(dataset), 1)  # it also fills the cache of frames
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    for num_workers in (0, 1):
        optimised = params.pretrain
        runtime = params.runtime.model_copy(update={"num_loader_workers": num_workers})
        repeats = STEPS * optimised.batch_size // len(dataset)
        shares, begin = [], time.perf_counter()
        for batch in training_loader(dataset, optimised, runtime, 0, repeats=repeats):
            waited = time.perf_counter() - begin
            optimizer.zero_grad()
            module.losses(module.prepare(batch))["loss"].backward()
            optimizer.step()
            shares.append(waited / (time.perf_counter() - begin))
            begin = time.perf_counter()
        is_default = num_workers == params.runtime.num_loader_workers
        name = f"waiting for a batch, num_loader_workers: {num_workers}" + (" (default)" if is_default else "")
        of = f"batch {optimised.batch_size}"
        share = statistics.median(shares[1:])
        yield Row(name, share, "of a step", at_most=0.10 if is_default else None, of=of)


def main() -> None:
    """Run the benchmark and record it."""
    params = load_params()
    large = changed(params, VIT_B)
    small = sample_scene(params.synthesize.classes[0], params.synthesize, (0,)).render()
    frames = large_frames(params, large.clip.span_frames + large.pretrain.length)
    rows: list[Row] = []
    for name, case, video, repeats in (("default", params, small, 15), ("ViT-B/16, 16 x 224", large, frames, 5)):
        with tempfile.TemporaryDirectory() as folder:
            rows += compare_libraries(name, Batch(case, video, Path(folder)), repeats)
        record("training/transformers", rows)
    with tempfile.TemporaryDirectory() as folder:
        rows += waiting(params, Path(folder))
    record("training/transformers", rows)


if __name__ == "__main__":
    main()
