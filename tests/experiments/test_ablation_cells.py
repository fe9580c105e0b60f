from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from mme.config.ablation import Budget
from mme.experiments.ablation import cells
from mme.experiments.ablation.cells import Site, run_cell
from mme.experiments.ablation.plan import Cell
from mme.experiments.ablation.report import write_report
from mme.experiments.ablation.run import code_digest
from mme.ingest.motion_primitives import CLASSES, sample_scene
from mme.manifest import Manifest
from mme.system.files import read_json
from mme.tracking import start_run
from mme.video.codec import write_video
from tests.factories import row
from tests.small_data import make_small_data, small_params

PARAMS = small_params(runtime={"device": "cpu", "num_workers": 1})
BUDGET = Budget(
    objectives=("scratch", "mme"),
    seeds=(0,),
    lrs=(0.001, 0.002),
    mask_ratios=(0.5,),
    search_epochs=2,
    epochs=3,
    probe_every_epochs=2,
    finetune_epochs=2,
    labels_per_class=1,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small data set with four videos to test on."""
    folder = tmp_path_factory.mktemp("data")
    manifest = make_small_data(folder, PARAMS)
    tests = [row(f"test-{i}", "test", label=CLASSES[i], width=32, height=32, num_frames=16) for i in range(4)]
    for number, video in enumerate(tests):
        scene = sample_scene(CLASSES[number], PARAMS.synthesize, (9, number))
        write_video(folder / "videos" / video.path, scene.render(), 16, 14, 8)
    Manifest([*manifest.rows, *tests], folder).save(folder / "manifest.parquet")
    return folder


@pytest.fixture
def site(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with start_run("ablation", PARAMS) as run:
        parent = run.id
    return Site(PARAMS, BUDGET, data, tmp_path / "work", code_digest(), parent)


def test_cells_leave_figures_curves_and_nested_runs_and_do_not_run_again(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    final = run_cell(site, Cell("mme", 0, 0.001, 0.5, False))
    scratch = run_cell(site, Cell("scratch", 0, 0.001, None, False))
    assert [point["epoch"] for point in final["curve"]] == [2, 3]
    assert set(final["test"]) == set(final["val"]) == {"probe_top1", "knn_top1", "top1"}
    assert final["curve"][-1]["test/probe_top1"] == final["test"]["probe_top1"]
    assert final["pretrain_s"] >= final["curve"][0]["seconds"] > 0
    assert scratch["curve"] == []
    assert "pretrain_s" not in scratch
    assert set(scratch["test"]) == set(final["test"])
    run = mlflow.get_run(final["run_id"])
    assert run.data.tags["mlflow.parentRunId"] == site.parent
    assert run.data.params["pretrain.mask_ratio"] == "0.5"
    assert run.data.metrics["test/top1"] == final["test"]["top1"]
    assert not list(site.work.rglob("*.ckpt"))

    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(cells, "train_cell", fail)
    assert run_cell(site, Cell("mme", 0, 0.001, 0.5, False)) == final
    with pytest.raises(AssertionError, match="trained again"):
        run_cell(site, Cell("mme", 1, 0.001, 0.5, False))

    means = write_report(
        [], [scratch, final], BUDGET, Manifest.load(site.data / "manifest.parquet"), tmp_path / "report"
    )
    assert means["mme/probe_top1"] == final["test"]["probe_top1"]
    assert read_json(tmp_path / "report.json")["final"] == [scratch, final]
    assert (tmp_path / "report.png").stat().st_size > 0
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| above `scratch`, points |" in page
    assert "1 labelled videos a class" in page


def test_a_search_never_looks_at_the_test_split(site: Site) -> None:
    searched = run_cell(site, Cell("mme", 0, 0.001, 0.5, True))
    assert set(searched["val"]) == {"probe_top1", "knn_top1"}
    assert "test" not in searched
    assert [point["epoch"] for point in searched["curve"]] == [2]


def test_an_interrupted_cell_goes_on_as_the_same_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("mme", 0, 0.001, 0.5, False)

    def fail(*_: object) -> None:
        raise RuntimeError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(cells, "run_finetuning", fail)
        with pytest.raises(RuntimeError, match="power"):
            run_cell(site, cell)
    (note,) = site.work.rglob("run_id")
    (log,) = site.work.rglob("log.txt")
    first = note.read_text(encoding="utf-8")
    result = run_cell(site, cell)
    assert result["run_id"] == first
    assert mlflow.get_run(first).info.status == "FINISHED"
    assert [point["epoch"] for point in result["curve"]] == [2, 3]
    assert log.exists()
