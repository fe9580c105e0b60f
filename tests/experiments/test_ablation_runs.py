from __future__ import annotations

import dataclasses
from pathlib import Path

import mlflow
import pytest

from mme.config.ablation import Budget
from mme.experiments.ablation import runs
from mme.experiments.ablation.ablate import code_digest, run_ablation
from mme.experiments.ablation.plan import AblationRun
from mme.experiments.ablation.report import write_ablation_report
from mme.experiments.ablation.runs import AblationContext, execute_run, stored_result
from mme.ingest.motion_primitives import CLASSES, sample_scene
from mme.manifest import Manifest
from mme.models.checkpoints import save_weights
from mme.models.masked_motion import MaskedMotionModel
from mme.system.files import read_json
from mme.tracking import start_run
from mme.video.codec import write_video
from tests.factories import row
from tests.small_data import make_small_data, small_params

PARAMS = small_params(runtime={"device": "cpu", "num_workers": 1})
BUDGET = Budget(
    objectives=("scratch", "mme"),
    inits=("random",),
    folds=None,
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
    run = AblationRun("mme", 0, 0.001, 0.5, False)
    assert stored_result(context, run, False) is None
    frozen = execute_run(context, run, False)
    assert set(frozen["test"]) == {"probe_top1", "knn_top1"}
    assert stored_result(context, run, True) is None
    final = execute_run(context, run, True)
    scratch = execute_run(context, AblationRun("scratch", 0, 0.001, None, False), True)
    assert [point["epoch"] for point in final["curve"]] == [2, 3]
    assert set(final["test"]) == set(final["val"]) == {"probe_top1", "knn_top1", "top1"}
    assert final["curve"][-1]["test/probe_top1"] == final["test"]["probe_top1"]
    assert final["pretrain_s"] >= final["curve"][0]["seconds"] > 0
    assert scratch["curve"] == []
    assert "pretrain_s" not in scratch
    assert set(scratch["test"]) == set(final["test"])
    recorded = mlflow.get_run(final["run_id"])
    assert recorded.data.tags["mlflow.parentRunId"] == context.parent_id
    assert recorded.data.params["pretrain.mask_ratio"] == "0.5"
    assert recorded.data.metrics["test/top1"] == final["test"]["top1"]
    assert not list(context.work.rglob("*.ckpt"))

    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(runs, "train_run", fail)
    monkeypatch.setattr(runs, "finetune_run", fail)
    assert execute_run(context, run, True) == stored_result(context, run, True) == final
    assert execute_run(context, run, False) == frozen
    with pytest.raises(AssertionError, match="trained again"):
        execute_run(context, dataclasses.replace(run, seed=1), False)

    manifest = Manifest.load(context.data / "manifest.parquet")
    unfinished = BUDGET.model_copy(update={"lrs": (0.001,)})
    means = write_ablation_report(PARAMS, [], [scratch, final], unfinished, manifest, tmp_path / "report")
    assert means["mme/probe_top1"] == final["test"]["probe_top1"]
    assert read_json(tmp_path / "report.json")["final"] == [scratch, final]
    assert (tmp_path / "report.png").stat().st_size > 0
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| above `scratch`, points |" in page
    assert "1 labelled videos per class" in page
    assert "Unfinished" not in page

    few = unfinished.model_copy(update={"finetuned": ("scratch",), "only": ("primitives",)})
    fixed = scratch.copy()
    fixed["run"] = {**scratch["run"], "init": "primitives"}
    write_ablation_report(PARAMS, [], [scratch, fixed, frozen], few, manifest, tmp_path / "few")
    page = (tmp_path / "few.md").read_text(encoding="utf-8")
    assert "Unfinished" not in page
    firsts = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert firsts[2:7] == [
        "**(a) from random weights**",
        "`scratch`",
        "`mme`",
        "**(b) other weights as they are**",
        "`primitives only`",
    ]

    write_ablation_report(PARAMS, [], [frozen], unfinished, manifest, tmp_path / "part")
    page = (tmp_path / "part.md").read_text(encoding="utf-8")
    assert "`scratch` lacks 1 of 1 trainings and 1 of 1 finetunings; `mme` lacks 1 of 1 finetunings." in page


def test_a_fold_is_pretrained_from_other_weights_without_its_test_videos(context: AblationContext) -> None:
    folder = Path("models/primitives")
    folder.mkdir(parents=True)
    save_weights(folder / "model.safetensors", MaskedMotionModel(PARAMS.model, PARAMS.clip, PARAMS.pretrain))
    budget = BUDGET.model_copy(update={"folds": 3})
    with pytest.raises(ValueError, match=r"no trajectories of 12 labelled videos.*trajectories\.splits"):
        run_ablation(PARAMS, budget, context.data, Path("report"), 1, print)
    splits = ("pretrain", "train", "val", "test")
    params = small_params(
        runtime={"device": "cpu", "num_workers": 1},
        trajectories={"splits": splits},
        pretrain={"splits": ("pretrain", "train")},
    )
    manifest = make_small_data(Path("data"), params)
    two_labels = [dataclasses.replace(v, label=v.label and CLASSES[v.label in CLASSES[:2]]) for v in manifest.rows]
    Manifest(two_labels, manifest.folder).save(manifest.folder / "manifest.parquet")
    folds = dataclasses.replace(context, params=params, budget=budget, data=Path("data"))
    run = AblationRun("trajectory", 0, 0.001, 0.5, False, "primitives", 1)
    result = execute_run(folds, run, False)
    assert 0 <= result["test"]["probe_top1"] <= 1
    assert mlflow.get_run(result["run_id"]).data.params["pretrain.init"] == "primitives"
    first = stored_result(folds, run, False)
    save_weights(folder / "model.safetensors", MaskedMotionModel(PARAMS.model, PARAMS.clip, PARAMS.pretrain))
    assert first == result
    assert stored_result(folds, run, False) is None  # other weights, another result
    only = execute_run(folds, AblationRun("scratch", 0, 0.001, None, False, "primitives", 1), False)
    assert only["curve"] == []


def test_search_does_not_use_the_test_split(context: AblationContext) -> None:
    searched = execute_run(context, AblationRun("mme", 0, 0.001, 0.5, True), False)
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
            execute_run(context, run, True)
    (note,) = context.work.rglob("run_id")
    (log,) = context.work.rglob("log.txt")
    first = note.read_text(encoding="utf-8")
    result = execute_run(context, run, True)
    assert result["run_id"] == first
    assert mlflow.get_run(first).info.status == "FINISHED"
    assert [point["epoch"] for point in result["curve"]] == [2, 3]
    assert log.exists()
