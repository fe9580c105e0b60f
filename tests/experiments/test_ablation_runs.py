from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from mme.config.ablation import Budget
from mme.experiments.ablation import runs
from mme.experiments.ablation.ablate import code_digest
from mme.experiments.ablation.plan import AblationRun
from mme.experiments.ablation.report import write_ablation_report
from mme.experiments.ablation.runs import AblationContext, execute_run
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
    """The small data set with four test videos."""
    folder = tmp_path_factory.mktemp("data")
    manifest = make_small_data(folder, PARAMS)
    tests = [row(f"test-{i}", "test", label=CLASSES[i], width=32, height=32, num_frames=16) for i in range(4)]
    for number, video in enumerate(tests):
        scene = sample_scene(CLASSES[number], PARAMS.synthesize, (9, number))
        write_video(folder / "videos" / video.path, scene.render(), 16, 14, 8)
    Manifest([*manifest.rows, *tests], folder).save(folder / "manifest.parquet")
    return folder


@pytest.fixture
def context(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AblationContext:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with start_run("ablation", PARAMS) as run:
        parent = run.id
    return AblationContext(PARAMS, BUDGET, data, tmp_path / "work", code_digest(), parent)


def test_run_records_metrics_and_curve_once(
    context: AblationContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    final = execute_run(context, AblationRun("mme", 0, 0.001, 0.5, False))
    scratch = execute_run(context, AblationRun("scratch", 0, 0.001, None, False))
    assert [point["epoch"] for point in final["curve"]] == [2, 3]
    assert set(final["test"]) == set(final["val"]) == {"probe_top1", "knn_top1", "top1"}
    assert final["curve"][-1]["test/probe_top1"] == final["test"]["probe_top1"]
    assert final["pretrain_s"] >= final["curve"][0]["seconds"] > 0
    assert scratch["curve"] == []
    assert "pretrain_s" not in scratch
    assert set(scratch["test"]) == set(final["test"])
    run = mlflow.get_run(final["run_id"])
    assert run.data.tags["mlflow.parentRunId"] == context.parent_id
    assert run.data.params["pretrain.mask_ratio"] == "0.5"
    assert run.data.metrics["test/top1"] == final["test"]["top1"]
    assert not list(context.work.rglob("*.ckpt"))

    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(runs, "train_run", fail)
    assert execute_run(context, AblationRun("mme", 0, 0.001, 0.5, False)) == final
    with pytest.raises(AssertionError, match="trained again"):
        execute_run(context, AblationRun("mme", 1, 0.001, 0.5, False))

    means = write_ablation_report(
        [], [scratch, final], BUDGET, Manifest.load(context.data / "manifest.parquet"), tmp_path / "report"
    )
    assert means["mme/probe_top1"] == final["test"]["probe_top1"]
    assert read_json(tmp_path / "report.json")["final"] == [scratch, final]
    assert (tmp_path / "report.png").stat().st_size > 0
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| above `scratch`, points |" in page
    assert "1 labelled videos per class" in page


def test_search_does_not_use_the_test_split(context: AblationContext) -> None:
    searched = execute_run(context, AblationRun("mme", 0, 0.001, 0.5, True))
    assert set(searched["val"]) == {"probe_top1", "knn_top1"}
    assert "test" not in searched
    assert [point["epoch"] for point in searched["curve"]] == [2]


def test_interrupted_run_is_resumed(context: AblationContext, monkeypatch: pytest.MonkeyPatch) -> None:
    run = AblationRun("mme", 0, 0.001, 0.5, False)

    def fail(*_: object) -> None:
        raise RuntimeError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "run_finetuning", fail)
        with pytest.raises(RuntimeError, match="power"):
            execute_run(context, run)
    (note,) = context.work.rglob("run_id")
    (log,) = context.work.rglob("log.txt")
    first = note.read_text(encoding="utf-8")
    result = execute_run(context, run)
    assert result["run_id"] == first
    assert mlflow.get_run(first).info.status == "FINISHED"
    assert [point["epoch"] for point in result["curve"]] == [2, 3]
    assert log.exists()
