from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from mme.models.checkpoints import FolderConfig, content_digest, load_config, load_folder, save_folder
from tests.tiny import save_tiny_folder, tiny_config, tiny_model


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip_gives_the_same_model_and_config(tmp_path: Path) -> None:
    config = tiny_config()
    model = tiny_model(config)
    save_folder(tmp_path / "model", model, config)
    loaded, loaded_config = load_folder(tmp_path / "model")
    assert loaded_config == config
    assert not loaded.training
    clip = torch.randn(2, 3, 4, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(clip), model(clip))
    assert sorted(os.listdir(tmp_path / "model")) == ["config.json", "model.safetensors"]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = save_tiny_folder(tmp_path / "a"), save_tiny_folder(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_failed_save_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    digest = content_digest(folder)
    wrong = tiny_model(tiny_config(labels=("a", "b")))
    with pytest.raises(ValueError, match=r"head\.weight has shape \[2, 16\], the model \[4, 16\]"):
        save_folder(folder, wrong, tiny_config())
    assert content_digest(folder) == digest
    assert os.listdir(tmp_path) == ["model"]


def test_saving_replaces_an_older_folder(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model", seed=0)
    old = content_digest(folder)
    save_tiny_folder(folder, seed=1)
    assert content_digest(folder) != old
    assert os.listdir(tmp_path) == ["model"]


def test_digest_depends_on_what_decides_an_answer_only(tmp_path: Path) -> None:
    digest = content_digest(save_tiny_folder(tmp_path / "a"))
    unrelated: dict[str, Any] = {"name": "other", "provenance": {"created": "now"}, "metrics": {"test/top1": 0.1}}
    assert content_digest(save_tiny_folder(tmp_path / "b", **unrelated)) == digest
    clip = tiny_config().clip.model_dump()
    for changes in (
        {"seed": 1},
        {"labels": ("left", "down", "right", "up")},
        {"views": {"segments": 3, "crops": 1}},
        {"clip": clip | {"stride_frames": 3}},
        {"fps": 25.0},
    ):
        assert content_digest(save_tiny_folder(tmp_path / "c", **changes)) != digest, changes


def test_missing_and_unexpected_keys_are_listed(tmp_path: Path) -> None:
    path = save_tiny_folder(tmp_path / "model") / "model.safetensors"
    state = load_file(path)
    state["extra.weight"] = state.pop("norm.weight")
    del state["head.bias"]
    save_file(state, path)
    with pytest.raises(
        ValueError, match=r"missing head\.bias; missing norm\.weight; unexpected extra\.weight"
    ) as error:
        load_folder(path.parent)
    assert str(path) in str(error.value)


def test_wrong_shapes_are_listed(tmp_path: Path) -> None:
    path = save_tiny_folder(tmp_path / "model") / "model.safetensors"
    state = load_file(path)
    state["norm.weight"] = torch.ones(8)
    save_file(state, path)
    with pytest.raises(ValueError, match=r"norm\.weight has shape \[8\], the model \[16\]"):
        load_folder(path.parent)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    config = tiny_config()
    model = tiny_model(config)
    with torch.no_grad():
        model.head.bias[1] = value
    with pytest.raises(ValueError, match=r"head\.bias has values that are not finite"):
        save_folder(tmp_path / "model", model, config)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("length", [0, 7, 200])
def test_damaged_weights_name_the_file(tmp_path: Path, length: int) -> None:
    path = save_tiny_folder(tmp_path / "model") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read as safetensors"):
        load_folder(path.parent)


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    path = save_tiny_folder(tmp_path / "model") / "model.safetensors"
    torch.save(tiny_model(tiny_config()).state_dict(), path)
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_folder(path.parent)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        load_folder(folder)
    with pytest.raises(ValueError, match=name):
        content_digest(folder)


def test_another_format_version_is_refused_before_its_keys_are_read(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    edit_config(folder, format=3, labels=None)
    with pytest.raises(ValueError, match="format is 3, this version of mme reads format 2"):
        load_config(folder)


def test_a_folder_without_a_frame_rate_says_how_to_make_it_anew(tmp_path: Path) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    edit_config(folder, format=1)
    with pytest.raises(
        ValueError, match=r"config\.json: format 1 has no frame rate.*`dvc repro register`.*--fps"
    ) as error:
        load_folder(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 0}, "fps: "),
        ({"labels": ["a"]}, "labels: "),
        ({"labels": ["a", "b", "a"]}, r"labels: .*\['a'\] occur more than once"),
        ({"unknown": 1}, "unknown: "),
        ({"views": {"segments": 0, "crops": 1}}, r"views\.segments: "),
        ({"views": {"segments": 1, "crops": 2}}, r"views\.crops: "),
        ({"metrics": {"val/top1": float("nan")}}, r"metrics\.val/top1: "),
        ({"clip": tiny_config().clip.model_dump() | {"size": 20}}, "patch_size: 8 must divide clip.size 20"),
        ({"clip": tiny_config().clip.model_dump() | {"num_frames": 5}}, "tubelet_frames: 2 must divide"),
    ],
)
def test_a_bad_config_names_file_and_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = save_tiny_folder(tmp_path / "model")
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_config(folder)
    assert str(folder / "config.json") in str(error.value)


def test_config_is_frozen() -> None:
    config: FolderConfig = tiny_config()
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "other"  # type: ignore[misc]
