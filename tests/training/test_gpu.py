"""On a CUDA device: the numbers of the CPU, and what only a GPU does. ``pytest -m gpu``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mme.evaluation.classifier import Classifier
from mme.manifest import Manifest
from mme.motion.store import TrackStore
from mme.targets.hog import hog_at
from mme.training.loop.module import NonFiniteError, compile_blocks
from mme.training.pretrain import PretrainModule, run_pretraining
from tests.small_data import make_small_data, small_params
from tests.tiny import moving_frames, save_tiny_folder
from tests.training import processes
from tests.training.noise import STATISTICS, Noise, Stop, flat, params_with, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(600),
]


def gradients(device: str, precision: torch.dtype = torch.float32, backend: str | None = None) -> dict[str, Any]:
    """Loss and gradient of the first step of the same model on the same batch."""
    params = params_with(device)
    torch.manual_seed(0)
    module = PretrainModule(params, STATISTICS, 1).to(device)
    if backend is not None:
        compile_blocks(module.model, backend)
    batch = torch.utils.data.default_collate(Noise(params).samples)
    with torch.autocast(device, precision, enabled=precision != torch.float32):
        prepared = module.prepare({name: value.to(device) for name, value in batch.items()})
        loss = module.losses(prepared)["loss"]
    loss.backward()
    grads = [parameter.grad.flatten() for parameter in module.model.parameters() if parameter.grad is not None]
    return {"loss": float(loss.detach()), "gradient": torch.cat(grads).cpu()}


def distance(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Relative error of a gradient."""
    return float((found["gradient"] - expected["gradient"]).norm() / expected["gradient"].norm())


def test_loss_and_gradient_are_those_of_the_cpu() -> None:
    expected = gradients("cpu")
    found = gradients("cuda")
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert distance(found, expected) < 1e-4
    half = gradients("cuda", torch.bfloat16)
    assert half["loss"] == pytest.approx(expected["loss"], rel=1e-2)
    assert 0 < distance(half, expected) < 0.05


def test_a_step_does_not_wait_for_the_device() -> None:
    params = params_with("cuda")
    module = PretrainModule(params, STATISTICS, 1).to("cuda")
    batch = torch.utils.data.default_collate(Noise(params).samples)
    batch = {name: value.to("cuda") for name, value in batch.items()}
    module.losses(module.prepare(batch))["loss"].backward()  # fills the caches of constants, compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        module.losses(module.prepare(batch))["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore")  # the compiler's use of PyTorch, none of ours
@pytest.mark.parametrize(("precision", "near"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_compiled_blocks_give_the_same_gradient(precision: torch.dtype, near: float) -> None:
    expected = gradients("cpu")
    found = gradients("cuda", precision, "inductor")
    torch.compiler.reset()
    assert distance(found, expected) < near


@pytest.mark.parametrize(
    ("changes", "near"),
    [
        ({}, 1e-4),
        ({"accumulate": 4}, 1e-4),
        ({"gradient_checkpointing": True}, 1e-4),
        ({"precision": "bf16-mixed"}, 0.02),
    ],
)
def test_training_agrees_with_cpu(changes: dict[str, Any], near: float, tmp_path: Path) -> None:
    _, expected = train(tmp_path / "cpu", params_with(epochs=20))
    module, found = train(tmp_path / "cuda", params_with("cuda", epochs=20, **changes))
    assert found.losses[-1] < found.losses[0]
    assert found.losses == pytest.approx(expected.losses, rel=near)
    assert flat(module.model).dtype == torch.float32


def test_fp16_trains_and_its_scaler_skips_what_overflows(tmp_path: Path) -> None:
    """The first scales are too large: those steps are skipped, and training goes on with finite weights."""
    _, expected = train(tmp_path / "cpu", params_with(epochs=30))
    module, found = train(tmp_path / "cuda", params_with("cuda", epochs=30, precision="16-mixed"))
    assert flat(module.model).isfinite().all()
    assert found.losses[-1] == pytest.approx(expected.losses[-1], rel=0.05)


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
def test_a_loss_that_is_not_finite_stops_the_training(precision: str, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"step \d+ in epoch 0 is not finite"):
        train(tmp_path, params_with("cuda", batch_size=2, precision=precision), bad=3)
    assert list(tmp_path.glob("nonfinite-*.pt"))


def test_resumed_training_agrees_with_uninterrupted(tmp_path: Path) -> None:
    params = params_with("cuda", epochs=10, drop_path=0.2, ema_decay=0.9)
    _, whole = train(tmp_path / "whole", params)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path / "parts", params, callbacks=[Stop(6)])
    _, rest = train(tmp_path / "parts", params)
    assert len(rest.losses) == 5
    assert rest.losses == pytest.approx(whole.losses[5:], rel=1e-4)


@pytest.mark.parametrize("window", [7, 8, 16])
def test_histograms_are_those_of_the_cpu(window: int) -> None:
    generator = torch.Generator().manual_seed(window)
    luma = torch.randint(16, 236, (3, 40, 56), generator=generator, dtype=torch.uint8)
    luma[1, :20] //= 8  # weak gradients, of which a histogram fades
    points = 64 * torch.rand((500, 2), generator=generator) - 4
    points[:100] = points[:100].round()
    points[100:200] = points[100:200].round() + 0.5
    frames = torch.randint(0, 3, (500,), generator=generator)
    expected = hog_at(luma, points, frames, window, 8.0)
    found = hog_at(luma.cuda(), points.cuda(), frames.cuda(), window, 8.0)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_small_data(folder, small_params())
    return folder


def test_pretraining_on_videos_agrees_with_cpu(data: Path, tmp_path: Path) -> None:
    """With a loader process and pinned memory."""
    manifest, tracks = Manifest.load(data / "manifest.parquet"), TrackStore(data / "trajectories")
    rows = {}
    for device in ("cpu", "cuda"):
        params = small_params(runtime={"device": device, "num_loader_workers": 1})
        rows[device] = run_pretraining(params, manifest, tracks, tmp_path / device, lambda *_: None)[1].rows
    for found, expected in zip(rows["cuda"], rows["cpu"], strict=True):
        assert found == pytest.approx(expected, rel=1e-3)


def test_one_process_of_torchrun_trains_with_nccl_as_one_alone(data: Path, tmp_path: Path) -> None:
    (found,) = processes.launched(data, tmp_path, 1, "cuda")
    assert found["backend"] == "nccl"
    expected = processes.train(data, tmp_path / "alone", 1)
    for name in (*processes.VARIANTS, "finetune"):
        assert found[name]["losses"] == pytest.approx(expected[name]["losses"], rel=1e-3)


def test_logits_are_those_of_the_cpu(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    chosen = Classifier.load(folder, "auto")
    assert chosen.device.type == "cuda"
    video = moving_frames()
    expected = Classifier.load(folder).classify(video).logits
    torch.testing.assert_close(
        torch.from_numpy(chosen.classify(video).logits), torch.from_numpy(expected), atol=1e-5, rtol=1e-5
    )
