from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from mme.commands.app import app
from mme.config import ClipParams, ModelParams
from mme.evaluation.classifier import Classifier
from mme.models.checkpoints import load_folder
from mme.models.convert import ConversionOptions, convert, read_pth
from mme.models.encoder import VideoEncoder, position_table
from mme.system.files import read_json, write_json
from tests.models.test_bridges import PATCH, TUBELET, pth_state
from tests.tiny import moving_frames, save_tiny_folder, tiny_config

FRAMES, SIZE = 4, 16
LABELS = ("down", "left", "right", "up", "wave")
HF: dict[str, Any] = {
    "image_size": SIZE, "patch_size": PATCH, "num_frames": FRAMES, "tubelet_size": TUBELET,
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1,
    "decoder_intermediate_size": 16,
}  # fmt: skip
OPTIONS = ConversionOptions(stride_frames=2, num_frames=FRAMES, size=SIZE, num_heads=2, labels=LABELS)


def hf_model(kind: str, folder: Path, **changes: Any) -> Any:
    """A model of transformers with random weights, biases included, saved in ``folder``."""
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(**HF | changes)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_(std=0.5)
            elif "norm" not in name:
                value.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


def clips() -> Tensor:
    return torch.randn(3, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def pretrained(folder: Path) -> tuple[VideoEncoder, torch.nn.LayerNorm]:
    """Encoder and norm of a pretrained folder."""
    config, state = read_json(folder / "config.json"), load_file(folder / "model.safetensors")
    encoder = VideoEncoder(ModelParams(**config["model"]), ClipParams(**config["clip"]))
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")})
    norm = torch.nn.LayerNorm(config["model"]["dim"])
    norm.load_state_dict({"weight": state["norm.weight"], "bias": state["norm.bias"]})
    return encoder.eval(), norm


def test_flat_positions_are_those_of_videomae() -> None:
    config = transformers.VideoMAEConfig(**HF)
    theirs = transformers.VideoMAEModel(config).embeddings.position_embeddings
    torch.testing.assert_close(position_table((2, 4, 4), 16, "flat"), theirs[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"qv_bias": False}, {"hidden_size": 24, "intermediate_size": 48}])
@torch.no_grad()
def test_a_pretrained_model_of_transformers_gives_equal_features(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs = hf_model("VideoMAEModel", tmp_path / "hf", use_mean_pooling=False, **changes)
    assert "pretrained encoder" in convert(tmp_path / "hf", tmp_path / "ours", OPTIONS)
    encoder, norm = pretrained(tmp_path / "ours")
    clip = clips()
    expected = theirs(clip.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(norm(encoder(clip)), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize("use_mean_pooling", [False, True])
@torch.no_grad()
def test_the_encoder_of_pretraining_sees_the_same_hidden_tokens(tmp_path: Path, use_mean_pooling: bool) -> None:
    theirs = hf_model("VideoMAEForPreTraining", tmp_path / "hf", use_mean_pooling=use_mean_pooling)
    convert(tmp_path / "hf", tmp_path / "ours", OPTIONS)
    encoder, norm = pretrained(tmp_path / "ours")
    clip, hidden = clips(), torch.zeros(3, 32, dtype=torch.bool)
    hidden[:, ::3] = True
    expected = theirs.videomae(clip.transpose(1, 2), bool_masked_pos=hidden).last_hidden_state
    features = encoder(clip, hidden)
    torch.testing.assert_close(features if use_mean_pooling else norm(features), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_classifier_of_transformers_becomes_a_model_folder_and_comes_back(tmp_path: Path) -> None:
    names = dict(enumerate(LABELS))
    theirs = hf_model("VideoMAEForVideoClassification", tmp_path / "hf", id2label=names)
    assert "model folder with 5 labels" in convert(tmp_path / "hf", tmp_path / "ours", OPTIONS)
    ours, config = load_folder(tmp_path / "ours")
    clip = clips()
    torch.testing.assert_close(ours(clip), theirs(clip.transpose(1, 2)).logits, rtol=0, atol=1e-5)
    assert (config.labels, config.clip.stride_frames, config.model.positions) == (LABELS, 2, "flat")
    assert config.fps == 30
    answer = Classifier.load(tmp_path / "ours").classify(moving_frames())
    assert {prediction.label for prediction in answer.predictions} == set(LABELS)
    convert(tmp_path / "ours", tmp_path / "back", OPTIONS)
    back = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "back").eval()
    torch.testing.assert_close(back(clip.transpose(1, 2)).logits, ours(clip), rtol=0, atol=1e-5)
    assert back.config.id2label == names


@pytest.mark.parametrize(
    ("fps", "num_labels", "expected"), [(None, 400, 30), (None, 174, 12), (None, 0, 30), (25, 174, 25)]
)
def test_the_frame_rate_is_given_or_that_of_the_data_set(fps: float | None, num_labels: int, expected: float) -> None:
    assert ConversionOptions(fps=fps).rate(num_labels) == expected


@torch.no_grad()
def test_our_own_models_give_equal_features_in_transformers(tmp_path: Path) -> None:
    """Ours have a bias of keys, which theirs cannot have and which changes nothing."""
    model = tiny_config().model.model_copy(update={"positions": "flat"})
    save_tiny_folder(tmp_path / "ours", model=model.model_dump())
    ours, config = load_folder(tmp_path / "ours")
    for block in ours.encoder.blocks:
        torch.nn.init.normal_(block.attn.qkv.bias, std=0.5)  # type: ignore[union-attr, arg-type]
    save_file(ours.state_dict(), tmp_path / "ours/model.safetensors")
    convert(tmp_path / "ours", tmp_path / "hf", OPTIONS)
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "hf").eval()
    clip = clips()
    torch.testing.assert_close(theirs(clip.transpose(1, 2)).logits, ours(clip), rtol=0, atol=1e-5)
    assert tuple(theirs.config.id2label.values()) == config.labels


@torch.no_grad()
def test_a_pretrained_folder_starts_transformers_pretraining(tmp_path: Path) -> None:
    hf_model("VideoMAEModel", tmp_path / "hf", use_mean_pooling=False)
    convert(tmp_path / "hf", tmp_path / "ours", OPTIONS)
    assert "VideoMAEModel" in convert(tmp_path / "ours", tmp_path / "back", OPTIONS)
    encoder, norm = pretrained(tmp_path / "ours")
    clip = clips()
    loading = transformers.VideoMAEForPreTraining.from_pretrained(tmp_path / "back", output_loading_info=True)
    back, info = loading
    assert not info["unexpected_keys"]
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"encoder_to_decoder", "mask_token", "decoder"}
    features = back.eval().videomae(clip.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(features, norm(encoder(clip)), rtol=0, atol=1e-5)


def test_axes_positions_are_refused(tmp_path: Path) -> None:
    save_tiny_folder(tmp_path / "ours")
    with pytest.raises(ValueError, match="positions is 'axes'"):
        convert(tmp_path / "ours", tmp_path / "hf", OPTIONS)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("wrapper", ["model", "module", None])
@torch.no_grad()
def test_a_finetuned_pth_becomes_a_model_folder(tmp_path: Path, wrapper: str | None) -> None:
    state = pth_state(finetuned=True)
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "x.pth")
    convert(tmp_path / "x.pth", tmp_path / "ours", OPTIONS)
    ours, config = load_folder(tmp_path / "ours")
    assert (config.model.depth, config.model.num_heads, config.model.mlp_ratio) == (2, 2, 4.0)
    clip = clips()
    tubelet = torch.nn.functional.conv3d(
        clip, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=(TUBELET, PATCH, PATCH)
    )
    embedded = ours.encoder.embed(ours.encoder.patchify(clip))
    torch.testing.assert_close(embedded, tubelet.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_a_pretraining_pth_becomes_a_pretrained_folder(tmp_path: Path) -> None:
    torch.save({"model": pth_state(finetuned=False, in_lists=True)}, tmp_path / "x.pth")
    convert(tmp_path / "x.pth", tmp_path / "ours", OPTIONS)
    encoder, _ = pretrained(tmp_path / "ours")
    assert encoder.grid == (2, 4, 4)


def test_labels_must_be_as_many_as_the_head_has(tmp_path: Path) -> None:
    torch.save(pth_state(finetuned=True), tmp_path / "x.pth")
    for labels, found in ((None, "none"), (("a", "b"), "2")):
        with pytest.raises(ValueError, match=f"5 classes, labels given: {found}"):
            convert(
                tmp_path / "x.pth", tmp_path / "ours", ConversionOptions(num_frames=FRAMES, size=SIZE, labels=labels)
            )


class Harmful:
    """Would write a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "harm"))


def test_nothing_in_a_pth_is_executed(tmp_path: Path) -> None:
    torch.save({"model": pth_state(finetuned=True), "args": Harmful(tmp_path / "harm")}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: cannot be read as weights alone"):
        read_pth(tmp_path / "x.pth")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [{"model": 3}, {}, [torch.zeros(1)], {"optimizer": {"a": 1}}])
def test_a_pth_without_a_state_dict_is_an_error(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_pth(tmp_path / "x.pth")


def test_unknown_folder_is_an_error(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    with pytest.raises(ValueError, match="neither a folder of mme nor"):
        convert(tmp_path, tmp_path / "out", OPTIONS)


def test_a_network_without_counterpart_is_an_error(tmp_path: Path) -> None:
    hf_model("VideoMAEModel", tmp_path / "relu", hidden_act="relu")
    with pytest.raises(ValueError, match="hidden_act: 'relu', must be 'gelu'"):
        convert(tmp_path / "relu", tmp_path / "out", OPTIONS)
    hf_model("VideoMAEForVideoClassification", tmp_path / "first", use_mean_pooling=False)
    with pytest.raises(ValueError, match="use_mean_pooling"):
        convert(tmp_path / "first", tmp_path / "out", OPTIONS)


def test_transformers_folders_that_lack_keys_or_have_others_are_errors_that_list_them(tmp_path: Path) -> None:
    hf_model("VideoMAEModel", tmp_path / "hf")
    state = load_file(tmp_path / "hf/model.safetensors")
    gone = next(key for key in state if key.endswith("layer.1.intermediate.dense.weight"))
    del state[gone]
    save_file(state | {"extra.weight": torch.zeros(1)}, tmp_path / "hf/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing .*layer\.1\.intermediate\.dense\.weight; unexpected extra\.weight"):
        convert(tmp_path / "hf", tmp_path / "out", OPTIONS)


def test_the_command_converts_and_tells_what_is_wrong(tmp_path: Path) -> None:
    torch.save(pth_state(finetuned=True), tmp_path / "x.pth")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    run = CliRunner().invoke
    arguments = ["convert", str(tmp_path / "x.pth"), str(tmp_path / "ours"), "--frames", "4", "--size", "16"]
    answer = run(app, [*arguments, "--heads", "2", "--labels", str(tmp_path / "labels.txt")])
    assert answer.exit_code == 0, answer.output
    assert load_folder(tmp_path / "ours")[1].labels == LABELS
    answer = run(app, arguments)
    assert answer.exit_code == 1
    assert "labels given: none" in answer.output
