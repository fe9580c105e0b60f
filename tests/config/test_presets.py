"""Presets: what they set is valid, and applying one leaves nothing of another behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mme.commands.app import app
from mme.config import Params, load_params, presets
from mme.ingest.motion_primitives import sample_scene
from mme.manifest import Manifest
from mme.models.checkpoints import save_weights
from mme.models.classifier import MotionClassifier
from mme.models.masked_motion import MaskedMotionModel
from mme.motion.extract import Extractor
from mme.motion.store import TrackStore
from mme.training.finetune import run_finetuning
from mme.training.pretrain import run_pretraining, span_frames
from mme.video.codec import write_video
from tests.factories import row

ROOT = Path(__file__).parents[2]
NAMES = ["cpu-default", "own-videos", "paper-hmdb51", "paper-k400", "paper-ssv2", "paper-ucf101"]
PAPER = NAMES[2:]
RUNNER = CliRunner()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The committed parameters, brought to the default recipe."""
    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    presets.apply("cpu-default", path, write=True)
    return path


def test_the_committed_parameters_are_the_default_recipe(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    assert presets.apply("cpu-default", path, write=True) == ""
    assert path.read_bytes() == (ROOT / "params.yaml").read_bytes()


def test_the_presets_are_these_and_say_what_they_are() -> None:
    assert presets.names() == NAMES
    for name in NAMES:
        assert len(presets.described(name)) > 20
    listed = RUNNER.invoke(app, ["preset", "list"], env={"COLUMNS": "300"}).stdout
    assert all(name in listed for name in NAMES)


@pytest.mark.parametrize("name", PAPER)
def test_applying_changes_values_and_nothing_else(name: str, file: Path) -> None:
    before = file.read_text(encoding="utf-8")
    shown = RUNNER.invoke(app, ["preset", "apply", name, "--file", str(file), "--dry-run"])
    assert file.read_text(encoding="utf-8") == before
    applied = RUNNER.invoke(app, ["preset", "apply", name, "--file", str(file)])
    assert applied.stdout == shown.stdout
    assert "+  mask_ratio: 0.7" in applied.stdout
    after = file.read_text(encoding="utf-8")
    comments = [[line.partition("#")[2] for line in text.splitlines()] for text in (before, after)]
    assert comments[0] == comments[1]
    raw = load_params(file).model_dump(mode="json")
    for key, value in presets.values(name).items():
        section, _, parameter = key.partition(".")
        assert (raw[section][parameter] if parameter else raw[section]) == value, key
    again = RUNNER.invoke(app, ["preset", "apply", name, "--file", str(file)])
    assert "has these values already" in again.stdout


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
def test_what_was_applied_before_does_not_matter(first: str, second: str, file: Path) -> None:
    presets.apply(second, file, write=True)
    expected = load_params(file)
    presets.apply(first, file, write=True)
    presets.apply(second, file, write=True)
    assert load_params(file) == expected


@pytest.mark.parametrize(
    ("name", "epochs", "lr", "views", "sampling"),
    [
        ("paper-ssv2", 30, 5e-4, (2, 3), "segments"),
        ("paper-k400", 75, 1e-3, (7, 3), "stride"),
        ("paper-ucf101", 100, 1e-3, (10, 3), "stride"),
        ("paper-hmdb51", 100, 1e-3, (10, 3), "stride"),
    ],
)
def test_the_papers_settings(
    name: str, epochs: int, lr: float, views: tuple[int, int], sampling: str, file: Path
) -> None:
    presets.apply(name, file, write=True)
    params = load_params(file)
    pretrain, finetune = params.pretrain, params.finetune
    assert (pretrain.mask_ratio, pretrain.length, pretrain.hog_steps, pretrain.warmup_epochs) == (0.7, 6, "all", 40)
    assert pretrain.scaled_lr == pytest.approx(1.5e-4 * pretrain.batch_size / 256)
    assert (pretrain.betas, pretrain.weight_decay) == ((0.9, 0.95), 0.05)
    assert (finetune.epochs, finetune.layer_decay, finetune.drop_path) == (epochs, 0.75, 0.1)
    assert finetune.scaled_lr == pytest.approx(lr * finetune.batch_size / finetune.repeats / 256)
    assert (finetune.mixup, finetune.cutmix, finetune.label_smoothing, finetune.erasing) == (0.8, 1.0, 0.1, 0.25)
    assert (finetune.rand_augment, finetune.repeats) == ("rand-m7-n4-mstd0.5-inc1", 2)
    assert (params.evaluate.segments, params.evaluate.crops) == views
    assert params.clip.sampling == sampling
    with torch.device("meta"):
        classifier = MotionClassifier(params.model, params.clip, 400, finetune.drop_path)
        model = MaskedMotionModel(params.model, params.clip, pretrain)
    assert sum(parameter.numel() for parameter in classifier.encoder.parameters()) == pytest.approx(86.2e6, rel=0.005)
    assert model.encoder.grid == (8, 14, 14)


def test_faults_are_named(file: Path) -> None:
    unknown = RUNNER.invoke(app, ["preset", "apply", "paper-k600", "--file", str(file)])
    assert unknown.exit_code == 1
    assert "paper-k600" in unknown.output
    assert "paper-k400" in unknown.output
    file.write_text(file.read_text(encoding="utf-8").replace("  mask_ratio:", "  mask_share:"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"params\.yaml: has no pretrain\.mask_ratio"):
        presets.apply("paper-k400", file, write=True)
    assert "mask_ratio: 0.7" in RUNNER.invoke(app, ["preset", "show", "paper-ssv2"]).stdout


def one_step(params: Params) -> Params:
    """The smallest batch, one step in each phase, in 32 bits: without bf16 a processor is four times as slow in it."""
    step = {"epochs": 1, "warmup_epochs": 0, "precision": "32"}
    return params.model_copy(
        update={
            "runtime": params.runtime.model_copy(update={"device": "cpu", "num_loader_workers": 0}),
            "pretrain": params.pretrain.model_copy(update={**step, "batch_size": 1, "splits": ("train",)}),
            "finetune": params.finetune.model_copy(
                update={**step, "batch_size": 2, "horizontal_flip": False, "flip_pairs": ()}  # there are two labels
            ),
        }
    )


def three_videos(folder: Path, params: Params) -> Manifest:
    """Two labels, one video each to train on, and one to validate on, as large and long as the preset asks for."""
    scene = params.synthesize.model_copy(
        update={"size": params.clip.size, "num_frames": max(span_frames(params), 24), "drift_px": 0.0}
    )
    rows = []
    for number, (label, split) in enumerate([("left", "train"), ("right", "train"), ("left", "val")]):
        frames = sample_scene(label, scene, (number,)).render()
        write_video(folder / "videos" / f"{number}.mp4", frames, 16, 14, 8)
        height, width = frames.shape[1:3]
        facts = {"num_frames": len(frames), "height": height, "width": width}
        rows.append(row(f"v{number}", label=label, split=split, path=f"{number}.mp4", **facts))
    manifest = Manifest(rows, folder)
    extractor = Extractor(manifest, params.trajectories, folder / "work")
    extractor.finish(folder / "trajectories", extractor.run(1, lambda _: None))
    return manifest


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["cpu-default", "paper-k400", "paper-ssv2"])  # the others differ in epochs and data
def test_a_step_of_each_phase(name: str, file: Path, tmp_path: Path) -> None:
    presets.apply(name, file, write=True)
    params = one_step(load_params(file))
    manifest = three_videos(tmp_path / "data", params)
    tracks = TrackStore(tmp_path / "data/trajectories")
    module, curves = run_pretraining(params, manifest, tracks, tmp_path / "pretrain", lambda *_: None)
    assert 0 < curves.rows[-1]["train/loss"] < 100
    save_weights(tmp_path / "model.safetensors", module.model)
    del module
    classifier, curves = run_finetuning(
        params, manifest, tmp_path / "model.safetensors", tmp_path / "finetune", lambda *_: None
    )
    assert 0 < curves.rows[-1]["train/loss"] < 100
    assert "val/top1" in curves.rows[-1]
    assert len(classifier.best["state"]) > 10
