"""One optimiser step on clips made of noise: what changes it, what must not, and when it stops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.layers import Attention  # type: ignore[attr-defined]

from mme.training.finetune import FinetuneModule
from mme.training.loop.callbacks import Throughput
from mme.training.loop.loaders import training_loader
from mme.training.loop.module import NonFiniteError, compile_blocks
from mme.training.pretrain import PretrainModule
from tests.small_data import small_params
from tests.training.noise import NUM_CLASSES, NUM_CLIPS, STATISTICS, Noise, Watch, flat, params_with, train


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    """Although the parts have unequally many valid points."""
    whole, seen = train(tmp_path / "1", params_with())
    parts, seen_in_parts = train(tmp_path / "4", params_with(accumulate=4))
    assert len(seen.losses) == len(seen_in_parts.losses) == 3
    assert seen_in_parts.losses == pytest.approx(seen.losses, abs=1e-5)
    torch.testing.assert_close(flat(parts.model), flat(whole.model), atol=1e-4, rtol=0)  # AdamW enlarges rounding


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    params = params_with(ema_decay=0.75)
    torch.manual_seed(0)
    expected = flat(PretrainModule(params, STATISTICS, 1).model)
    module, seen = train(tmp_path, params)
    for weights in seen.weights:
        expected = 0.75 * expected + 0.25 * weights
    torch.testing.assert_close(flat(module.eval_model), expected, atol=1e-6, rtol=0)
    assert module.eval_model is not module.model
    assert not module.eval_model.training


def test_without_an_average_the_model_itself_is_measured() -> None:
    module = PretrainModule(params_with(), STATISTICS, 1)
    assert module.eval_model is module.model
    assert not [name for name in module.state_dict() if name.startswith("ema")]


def test_recomputed_activations_give_the_same_gradients(tmp_path: Path) -> None:
    kept, seen = train(tmp_path / "0", params_with(drop_path=0.5))
    recomputed, seen_again = train(tmp_path / "1", params_with(drop_path=0.5, gradient_checkpointing=True))
    assert seen.losses == seen_again.losses
    assert torch.equal(flat(kept.model), flat(recomputed.model))
    undropped, _ = train(tmp_path / "2", params_with())
    assert not torch.equal(flat(kept.model), flat(undropped.model))


@pytest.mark.filterwarnings("ignore")  # the compiler's use of PyTorch, none of ours
def test_compiled_blocks_give_the_same_losses_under_the_same_names() -> None:
    params = params_with()
    torch.manual_seed(0)
    module = PretrainModule(params, STATISTICS, 1)
    names = list(module.state_dict())
    batch = module.prepare(torch.utils.data.default_collate(Noise(params).samples))
    plain = module.losses(batch)["loss"]
    compile_blocks(module.model, backend="aot_eager")
    compiled = module.losses(batch)["loss"]
    compiled.backward()
    assert list(module.state_dict()) == names
    torch.testing.assert_close(compiled, plain, atol=1e-6, rtol=0)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")
def test_compile_is_a_parameter() -> None:
    for compiled in (False, True):
        module = PretrainModule(params_with(compile=compiled, ema_decay=0.9), STATISTICS, 1)
        blocks = [block for block in module.model.modules() if type(block).__name__ == "Block"]
        assert len(blocks) == 3
        assert [block._compiled_call_impl is not None for block in blocks] == [compiled] * 3


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_non_finite_loss_stops_training_and_saves_the_state(ema_decay: float | None, tmp_path: Path) -> None:
    params = params_with(batch_size=2, ema_decay=ema_decay)
    watch = Watch()
    with pytest.raises(
        NonFiniteError, match=r"step \d+ in epoch 0 is not finite: loss (inf|nan), position_loss"
    ) as caught:
        train(tmp_path, params, bad=3, callbacks=[watch])
    (path,) = tmp_path.glob("nonfinite-*.pt")
    assert str(path) in str(caught.value)
    saved = torch.load(path, weights_only=True)
    assert saved["step"] == len(watch.losses)
    module = PretrainModule(params, STATISTICS, 1)
    module.model.load_state_dict(saved["model"])
    assert flat(module.model).isfinite().all()
    assert torch.equal(flat(module.model), watch.weights[-1])


def test_half_precision_is_near_and_fp16_needs_a_gpu(tmp_path: Path) -> None:
    _, full = train(tmp_path / "32", params_with())
    module, half = train(tmp_path / "16", params_with(precision="bf16-mixed"))
    assert half.losses == pytest.approx(full.losses, rel=0.05)
    assert half.losses != full.losses
    assert flat(module.model).dtype == torch.float32
    fused = {part.fused_attn for part in module.modules() if isinstance(part, Attention)}
    assert fused == {False}, "backwards in bf16 on a CPU, fused attention takes several times as long"
    with pytest.raises(ValueError, match="16-mixed needs a GPU"):
        train(tmp_path, params_with(precision="16-mixed"))


def test_waiting_for_batches_is_recorded_and_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows: list[dict[str, float]] = []
    throughput = Throughput(lambda metrics, epoch: rows.append({"epoch": epoch, **metrics}))
    train(tmp_path, params_with(), callbacks=[throughput], seconds=0.1)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert 0.5 < row["system/waiting"] < 1
        assert 0 < row["system/clips_per_second"] <= NUM_CLIPS / 0.8
    (told,) = [record.getMessage() for record in caplog.records if record.name == "mme.training.loop.callbacks"]
    assert "spent waiting for batches: see runtime.num_loader_workers" in told


def test_the_rate_is_proportional_to_the_batch_where_asked_for() -> None:
    assert params_with().pretrain.scaled_lr == params_with().pretrain.lr
    params = params_with(lr=0.001, batch_size=64, lr_batch_size=256)
    assert params.pretrain.scaled_lr == pytest.approx(0.00025)
    configured = PretrainModule(params, STATISTICS, 1).configure_optimizers()
    groups = configured["optimizer"].param_groups
    assert {group["initial_lr"] for group in groups} == {params.pretrain.scaled_lr}


def test_a_batch_that_cannot_be_shared_out_is_named() -> None:
    with pytest.raises(ValueError, match=r"pretrain\.batch_size: 8 must be a multiple of .* = 6"):
        small_params(runtime={"devices": 3, "accumulate": 2}, pretrain={"batch_size": 8})
    with pytest.raises(ValueError, match=r"8 videos are too few for 1 processes x 16 parts"):
        params = params_with(batch_size=16)
        runtime = params.runtime.model_copy(update={"accumulate": 16})
        training_loader(Noise(params_with()), params.pretrain, runtime, 0)


def test_parts_of_a_mixed_batch_learn_their_own_targets() -> None:
    params = small_params(finetune={"mixup": 0.8}, runtime={"accumulate": 2})
    module = FinetuneModule(params, NUM_CLASSES, 1)
    batch = torch.utils.data.default_collate(Noise(params).samples)
    prepared = module.prepare(batch)
    assert prepared["target"].shape == (NUM_CLIPS, NUM_CLASSES)
    torch.testing.assert_close(prepared["target"].sum(dim=1), torch.ones(NUM_CLIPS))
    whole = module.losses(prepared)["loss"]
    halves = [
        module.losses({name: value[rows] for name, value in prepared.items()})["loss"]
        for rows in (slice(4), slice(4, 8))
    ]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)
