from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mme.config import Params, RuntimeParams, frames_needed, load_params

ROOT = Path(__file__).parents[2]


def raw() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    return parsed


SECTIONS = sorted(set(raw()) - {"seed", "datasets", "warm_starts"})  # a number; names of the user's


def written(folder: Path, params: dict[str, Any]) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    return path


def changed(**sections: Any) -> dict[str, Any]:
    params = raw()
    for section, values in sections.items():
        params[section] = params[section] | values if isinstance(values, dict) else values
    return params


def test_the_committed_parameters_are_valid_and_complete() -> None:
    params = load_params(ROOT / "params.yaml")
    assert params.model_dump(mode="json").keys() == raw().keys()


DEFAULTS = dict.fromkeys(SECTIONS, frozenset[str]()) | {
    "clip": frozenset({"snippets"}),
    "ablation": frozenset({"only", "finetune_lrs", "finetuned", "finetune_seeds"}),
}
"""Keys that files of before lack."""


def test_only_runtime_has_defaults() -> None:
    for section_name in set(SECTIONS) - {"runtime"}:
        section = Params.model_fields[section_name].annotation
        assert isinstance(section, type)
        for name, field in section.model_fields.items():
            assert field.is_required() != (name in DEFAULTS[section_name]), f"{section.__name__}.{name}"


def test_runtime_may_be_left_out(tmp_path: Path) -> None:
    """In the file only keys, and values, that the code has as well."""
    params = raw()
    assert RuntimeParams.model_validate(params["runtime"]) == RuntimeParams()
    del params["runtime"]["num_workers"]
    assert load_params(written(tmp_path, params)).runtime == RuntimeParams()
    del params["runtime"]
    assert load_params(written(tmp_path, params)).runtime == RuntimeParams()


def test_password_in_storage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="password"):
        load_params(written(tmp_path, changed(runtime={"sweep_storage": "postgresql://me:secret@host/db"})))


def test_batch_that_devices_and_parts_cannot_share_names_the_keys(tmp_path: Path) -> None:
    keys = r"pretrain\.batch_size: 32 .*runtime\.devices x runtime\.num_nodes x runtime\.accumulate = 6"
    with pytest.raises(ValueError, match=keys):
        load_params(written(tmp_path, changed(runtime={"devices": 3, "accumulate": 2})))


def test_parameters_are_frozen() -> None:
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        params.pretrain.epochs = 1  # type: ignore[misc]


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_is_named(section: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"params\.yaml: {section}\.mask_ration: Extra inputs"):
        load_params(written(tmp_path, changed(**{section: {"mask_ration": 0.5}})))


@pytest.mark.parametrize("section", sorted(set(SECTIONS) - {"runtime"}))
def test_every_missing_key_is_named(section: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"params\.yaml: ") as caught:
        load_params(written(tmp_path, raw() | {section: {}}))
    for key in raw()[section].keys() - DEFAULTS[section]:
        assert f"{section}.{key}: Field required" in str(caught.value)


def test_more_data_sets(tmp_path: Path) -> None:
    second = raw()["ingest"] | {"source": "folder", "root": "elsewhere"}
    changes = {"datasets": {"own": second}, "finetune": {"data": "data/own"}}
    params = load_params(written(tmp_path, changed(**changes)))
    assert params.datasets["own"].root == Path("elsewhere")
    assert (params.pretrain.data, params.finetune.data) == ("data", "data/own")


@pytest.mark.parametrize(
    ("name", "values", "data", "message"),
    [
        ("own", {}, "data/other", r"pretrain\.data: 'data/other' is none of data, data/own; add it to datasets"),
        ("own", {"fps": 25}, "data/own", r"datasets\.own\.fps: 25 is not ingest\.fps 16: .* one frame rate"),
        ("own", {"short_side": 16}, "data/own", r"datasets\.own\.short_side: 16 is below clip\.size"),
        ("own", {"source": "youtube"}, "data/own", r"datasets\.own\.source: Input should be"),
        ("videos", {}, "data", r"datasets: \['videos'\] are folders of the first data set"),
        ("Own", {}, "data", r"datasets\.Own.*: String should match pattern"),
        ("own", {}, "/elsewhere", r"pretrain\.data: String should match pattern"),
    ],
)
def test_wrong_data_sets_are_named(name: str, values: dict[str, Any], data: str, message: str, tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {"datasets": {name: raw()["ingest"] | values}, "pretrain": {"data": data}}
    with pytest.raises(ValueError, match=message):
        load_params(written(tmp_path, changed(**changes)))


def test_a_missing_and_an_unknown_section_are_both_named(tmp_path: Path) -> None:
    params = raw()
    params["pretraining"] = params.pop("pretrain")
    with pytest.raises(ValueError, match=r"pretrain: Field required.*pretraining: Extra inputs"):
        load_params(written(tmp_path, params))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"runtime": {"device": "tpu"}}, "runtime.device"),
        ({"pretrain": {"mask_ratio": 1.0}}, "pretrain.mask_ratio"),
        ({"pretrain": {"hog_steps": "some"}}, "pretrain.hog_steps"),
        ({"pretrain": {"epochs": 0}}, "pretrain.epochs"),
        ({"pretrain": {"warmup_epochs": 500}}, "pretrain: .*warmup_epochs: 500.* must be below epochs"),
        ({"pretrain": {"length": 200}}, "pretrain.length: 200 exceeds trajectories.max_length"),
        ({"pretrain": {"decoder_dim": 64, "decoder_heads": 7}}, "decoder_dim: 64 must be divisible by .*7 heads"),
        (
            {"pretrain": {"splits": ["test"]}, "trajectories": {"splits": ["train"]}},
            r"pretrain.splits: \['test'\] are not in trajectories.splits",
        ),
        ({"finetune": {"layer_decay": -0.1}}, "finetune.layer_decay"),
        ({"evaluate": {"crops": 2}}, "evaluate.crops"),
        ({"registry": {"minimum": 85}}, "registry.minimum"),
        ({"registry": {"name": "a/b"}}, "registry.name"),
        ({"registry": {"name": "a'b"}}, "registry.name"),
        ({"finetune": {"balance": "weights"}}, "finetune.balance"),
        ({"clip": {"size": 60}, "model": {"patch_size": 8}}, "model.patch_size: 8 must divide clip.size 60"),
        (
            {"clip": {"num_frames": 7}, "model": {"tubelet_frames": 2}},
            "model.tubelet_frames: 2 must divide clip.num_frames 7",
        ),
        ({"model": {"patch_size": 1, "dim": 128}}, "patch_size: 1 must be even"),
        ({"model": {"dim": 128, "num_heads": 3}}, "num_heads: 3 must divide dim"),
        ({"ingest": {"fps": 0}}, "ingest.fps"),
        ({"ingest": {"short_side": 16}}, "ingest.short_side: 16 is below clip.size"),
        ({"ingest": {"source": "csv"}}, "list_file: source 'csv' needs the path"),
        ({"ingest": {"val_ratio": 0.6, "test_ratio": 0.4}}, "leaves nothing to train on"),
        ({"synthesize": {"speed_px": [2.0, 1.0]}}, "speed_px: .* must ascend"),
        (
            {"synthesize": {"num_frames": 10}, "ingest": {"source": "motion-primitives"}},
            "synthesize.num_frames: 10, at ingest.fps 10, are too few to pretrain on: .* span 19 frames",
        ),
        (
            {"ingest": {"fps": 8}},
            "synthesize.num_frames: 24, at ingest.fps 12, are too few to pretrain on: .* span 19 frames",
        ),
    ],
)
def test_values_that_cannot_be_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_params(written(tmp_path, changed(**changes)))
    assert "params.yaml" in str(caught.value)


@pytest.mark.parametrize("content", [None, "a: [", "- 1\n- 2\n", ""])
def test_files_that_hold_no_parameters(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=str(path)):
        load_params(path)


def test_the_digest_follows_values_and_nothing_else(tmp_path: Path) -> None:
    reordered = {
        section: dict(reversed(values.items())) if isinstance(values, dict) else values
        for section, values in reversed(raw().items())
    }
    before = load_params(ROOT / "params.yaml")
    assert load_params(written(tmp_path, reordered)).digest() == before.digest()
    other = load_params(written(tmp_path, changed(finetune={"epochs": before.finetune.epochs + 1})))
    assert other.digest() != before.digest()
    assert other.finetune.digest() != before.finetune.digest()
    assert other.pretrain.digest() == before.pretrain.digest()
    elsewhere = load_params(written(tmp_path, changed(runtime={"num_workers": 7, "frame_cache_mb": 0})))
    assert elsewhere.digest() == before.digest()


@given(
    num_tubelets=st.integers(1, 8),
    tubelet_frames=st.integers(1, 4),
    stride=st.integers(1, 6),
    length=st.integers(1, 20),
)
def test_frames_needed_is_the_last_frame_that_anything_reads(
    num_tubelets: int, tubelet_frames: int, stride: int, length: int
) -> None:
    """Listed one by one: the frames of the clip, and those that the tracks of each tubelet's first frame pass."""
    params = load_params(ROOT / "params.yaml")
    num_frames = num_tubelets * tubelet_frames
    clip = params.clip.model_copy(update={"num_frames": num_frames, "stride_frames": stride})
    model = params.model.model_copy(update={"tubelet_frames": tubelet_frames})
    frames = {index * stride for index in range(num_frames)}
    for first in range(0, num_frames, tubelet_frames):
        frames |= {first * stride + step for step in range(length + 1)}
    assert frames_needed(clip, model, length) == max(frames) + 1


def test_values_follow_from_others_unless_given(tmp_path: Path) -> None:
    changes = {"optimiser": {"weight_decay": 0.2}, "finetune": {"weight_decay": 0.3}, "evaluate": {"split": "val"}}
    params = load_params(written(tmp_path, changed(**changes, pretrain={"splits": ["train"], "decoder_dim": 96})))
    assert (params.pretrain.weight_decay, params.finetune.weight_decay) == (0.2, 0.3)
    assert params.trajectories.splits == ("train", "val")
    assert params.registry.metric == "val/top1"
    assert params.pretrain.decoder_heads == 96 // (params.model.dim // params.model.num_heads)
    given = changed(registry={"metric": "test/top5"}, trajectories={"splits": ["pretrain", "train"]})
    params = load_params(written(tmp_path, given))
    assert (params.registry.metric, params.trajectories.splits) == ("test/top5", ("pretrain", "train"))


@pytest.mark.parametrize(
    ("ingest", "data", "name"),
    [
        ({}, "data", "mme-motion-primitives"),
        ({"source": "folder", "root": "/media/my videos"}, "data", "mme-my-videos"),
        ({"source": "folder", "root": "/media/手势"}, "data", "mme-手势"),
        ({"source": "folder", "root": "/"}, "data", "mme-folder"),
        ({"source": "folder", "root": "videos"}, "data/more", "mme-it-s-more"),
    ],
)
def test_a_model_is_registered_under_the_name_of_its_data(
    ingest: dict[str, Any], data: str, name: str, tmp_path: Path
) -> None:
    more = raw()["ingest"] | {"source": "folder", "root": "/it's more"}
    values = {"ingest": ingest, "finetune": {"data": data}}
    assert load_params(written(tmp_path, changed(**values) | {"datasets": {"more": more}})).registry.name == name
    values["registry"] = {"name": "mine"}
    assert load_params(written(tmp_path, changed(**values) | {"datasets": {"more": more}})).registry.name == "mine"
