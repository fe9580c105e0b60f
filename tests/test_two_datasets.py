"""Pretraining on one data set and finetuning on another, both under DVC, without touching the pipeline."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from mme.system.files import read_json
from tests import media
from tests.test_pipeline import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def repro(project: Project) -> set[str]:
    """The stages that ran."""
    return set(re.findall(r"^Running stage '([^']+)'", project.dvc("repro", "register"), re.MULTILINE))


def dependencies(project: Project, stage: str) -> dict[str, str]:
    lock = yaml.safe_load((project.folder / "dvc.lock").read_text(encoding="utf-8"))
    return {
        entry["path"]: entry["md5"] for entry in lock["stages"][stage]["deps"] if not entry["path"].startswith("src")
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The default data set for pretraining, and twelve own videos, added to DVC, for finetuning."""
    project = Project(tmp_path_factory.mktemp("project"))
    for number in range(12):
        label = ("wave", "jump")[number % 2]
        media.write(project.folder / f"videos/own/{label}/{number}.mp4", num_frames=30, size=(80, 64), seed=number)
    project.dvc("add", "videos/own")
    ingest = yaml.safe_load((project.folder / "params.yaml").read_text(encoding="utf-8"))["ingest"]
    own = ingest | {"source": "folder", "root": "videos/own", "val_ratio": 0.25}
    project.set(datasets={"own": own}, finetune={"data": "data/own"})
    project.commit("own videos")
    return project


def test_both_data_sets_are_ingested_and_used(project: Project) -> None:
    first = {"synthesize", "ingest", "trajectories", "pretrain"}
    assert repro(project) == first | {"ingest-more@own", "finetune", "evaluate", "register"}
    assert read_json(project.folder / "models/export/config.json")["labels"] == ["jump", "wave"]
    assert project.report("ingest-own.json")["videos"] == 12
    pretrained = dependencies(project, "pretrain")
    assert {"data/manifest.parquet", "data/videos", "data/trajectories"} <= pretrained.keys()
    assert not any(path.startswith("data/own") for path in pretrained)
    for stage in ("finetune", "evaluate", "register"):
        assert {"data/own/manifest.parquet", "data/own/videos"} <= dependencies(project, stage).keys(), stage
    lines = project.dvc("dag", "--mermaid").replace("\t", "").splitlines()
    matches = [re.fullmatch(r'(node\d+)\["(.+)"\]', line) for line in lines]
    names = {match[1]: match[2] for match in matches if match}
    arrows = {(names[a], names[b]) for line in lines if "-->" in line for a, b in [line.split("-->")]}
    assert {
        ("videos/own.dvc", "ingest-more@own"),
        ("ingest-more@own", "finetune"),
        ("ingest", "trajectories"),
        ("trajectories", "pretrain"),
        ("pretrain", "finetune"),
    } <= arrows
    assert ("ingest-more@own", "pretrain") not in arrows


def test_new_own_videos_pretrain_nothing(project: Project) -> None:
    project.commit("first result")
    media.write(project.folder / "videos/own/wave/12.mp4", num_frames=30, size=(80, 64), seed=12)
    project.dvc("add", "videos/own")
    assert repro(project) == {"ingest-more@own", "finetune", "evaluate", "register"}
    project.git("checkout", "--quiet", "--", ".")
    project.dvc("checkout")
    assert repro(project) == {"register"}, "all is back but the receipt of the registry, which is in no cache"


def test_what_is_pushed_comes_back_on_another_machine(project: Project, tmp_path: Path) -> None:
    project.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    project.commit("a remote")
    project.dvc("push", "videos/own.dvc", "ingest-more@own")
    clone = tmp_path / "clone"
    project.git("clone", "--quiet", str(project.folder), str(clone))
    there = object.__new__(Project)
    there.folder = clone
    there.dvc("pull", "videos/own.dvc", "ingest-more@own")
    assert len(list((clone / "videos/own").rglob("*.mp4"))) == 12
    assert len(list((clone / "data/own/videos").iterdir())) == 12
    shutil.rmtree(clone)
