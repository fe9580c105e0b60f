"""Pretrain on one data set and finetune on another, both under DVC, without editing the pipeline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mme.system.files import read_json
from tests import media
from tests.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def dependencies(project: Project, stage: str) -> dict[str, str]:
    lock = yaml.safe_load((project.folder / "dvc.lock").read_text(encoding="utf-8"))
    return {
        entry["path"]: entry["md5"] for entry in lock["stages"][stage]["deps"] if not entry["path"].startswith("src")
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Pretrain on the default data set and finetune on twelve own videos that are added to DVC."""
    project = Project(tmp_path_factory.mktemp("project"))
    for number in range(12):
        label = ("wave", "jump")[number % 2]
        media.write(project.folder / f"videos/own/{label}/{number}.mp4", num_frames=30, size=(80, 64), seed=number)
    project.dvc("add", "videos/own")
    ingest = yaml.safe_load((project.folder / "params.yaml").read_text(encoding="utf-8"))["ingest"]
    own = ingest | {"source": "folder", "root": "videos/own", "val_ratio": 0.25}
    project.set(datasets={"own": own}, finetune={"data": "data/own"})
    project.commit("own videos")
    first = {"synthesize", "survey-primitives", "ingest", "trajectories", "pretrain"}
    assert set(project.train()) == first | {"survey", "ingest-more@own", "finetune", "evaluate", "register"}
    return project


@pytest.fixture
def project(trained: Project) -> Iterator[Project]:
    """The trained project for a test that changes it; afterwards it is as before."""
    yield trained
    trained.restore()


def test_both_data_sets_are_ingested_and_used(trained: Project) -> None:
    assert read_json(trained.folder / "models/export/config.json")["labels"] == ["jump", "wave"]
    assert trained.report("ingest-own.json")["videos"] == 12
    pretrained = dependencies(trained, "pretrain")
    assert {"data/manifest.parquet", "data/videos", "data/trajectories"} <= pretrained.keys()
    assert not any(path.startswith("data/own") for path in pretrained)
    for stage in ("finetune", "evaluate", "register"):
        assert {"data/own/manifest.parquet", "data/own/videos"} <= dependencies(trained, stage).keys(), stage


def test_graph_leads_from_own_videos_to_finetuning_only(trained: Project) -> None:
    lines = trained.dvc("dag", "--mermaid").replace("\t", "").splitlines()
    matches = [re.fullmatch(r'(node\d+)\["(.+)"\]', line) for line in lines]
    names = {match[1]: match[2] for match in matches if match}
    arrows = {(names[a], names[b]) for line in lines if "-->" in line for a, b in [line.split("-->")]}
    assert {
        ("survey", "ingest-more@own"),
        ("survey-primitives", "ingest"),
        ("ingest-more@own", "finetune"),
        ("ingest", "trajectories"),
        ("trajectories", "pretrain"),
        ("pretrain", "finetune"),
    } <= arrows
    assert ("ingest-more@own", "pretrain") not in arrows


def test_new_own_videos_do_not_rerun_pretraining(project: Project) -> None:
    media.write(project.folder / "videos/own/wave/12.mp4", num_frames=30, size=(80, 64), seed=12)
    project.dvc("add", "videos/own")
    assert set(project.repro("register")) == {
        "survey",
        "ingest-more@own",
        "finetune",
        "evaluate",
        "register",
    }
    project.git("checkout", "--quiet", "--", ".")
    project.dvc("checkout")
    assert project.repro("register") == ["survey", "register"], "DVC's cache holds the rest"


def test_pushed_data_are_pulled_by_a_clone(project: Project, tmp_path: Path) -> None:
    project.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    project.commit("a remote")
    project.dvc("push", "videos/own.dvc", "ingest-more@own")
    clone = project.clone(tmp_path / "clone")
    clone.dvc("pull", "videos/own.dvc", "ingest-more@own")
    assert len(list((clone.folder / "videos/own").rglob("*.mp4"))) == 12
    assert len(list((clone.folder / "data/own/videos").iterdir())) == 12
