from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow.tracking import MlflowClient

from mme.evaluation.answers import load_answers
from mme.evaluation.classifier import Classifier
from mme.manifest import Manifest
from mme.models.checkpoints import content_digest, load_config
from mme.registry.aliases import audit_history, past_champions
from mme.stages.register import main
from mme.system.files import read_json, write_json
from mme.tracking import RegisteredModel, StoreError, resolve
from tests import media
from tests.factories import row
from tests.registry_lost import lost_at
from tests.tiny import LABELS, save_tiny_folder

ROOT = Path(__file__).parents[2]
NAME = "primitives"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty run store, which takes seconds to make: each test copies it."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        mlflow.search_experiments()
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose stages before this one have run; one video of four was answered wrongly."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(store, tmp_path)
    set_params(registry={"name": NAME, "minimum": 0.5})
    rows = [row(f"v{i}", "test", label=LABELS[i]) for i in range(4)] + [
        row("a", "train"),
        row("b", "pretrain", label=None),
    ]
    rows.append(row("bad", "train", status="quarantined", reason="truncated"))
    Manifest(rows, tmp_path / "data").save(tmp_path / "data/manifest.parquet")
    media.write(tmp_path / "data/videos/v0.mp4", num_frames=12)
    finetuned(seed=0)
    evaluated(0.75)
    return tmp_path


def set_params(**sections: dict[str, Any]) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, values in sections.items():
        params[section] |= values
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def finetuned(seed: int) -> None:
    """A model folder as DVC leaves it: files that cannot be written to."""
    shutil.rmtree("models", ignore_errors=True)
    save_tiny_folder(Path("models/finetune"), seed, provenance={"run_id": "f" * 32, "data_digest": "d"})
    for path in Path("models/finetune").iterdir():
        path.chmod(0o444)


def evaluated(top1: float) -> None:
    write_json("reports/evaluate/metrics.json", {"test": {"top1": top1, "top5": 1.0}, "unreadable": {}})
    lines = [
        "label,num_videos,num_correct,top1,precision",
        "down,1,0,0.0,",
        "left,1,1,1.0,0.5",
        "right,1,1,1.0,1.0",
        "up,0,0,,",
    ]
    Path("reports/evaluate/per_class.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = "id,label,predicted,confidence,logit/down,logit/left,logit/right,logit/up\n" + "".join(
        f"v{number},{LABELS[number]},left,0.5,{logits}\n"
        for number, logits in enumerate(("0,9,0,0", "0,9,0,0", "0,0,1,0", "0,0,0,0"))
    )
    Path("reports/evaluate/predictions.csv").write_text(table, encoding="utf-8")


def receipt() -> dict[str, Any]:
    found: dict[str, Any] = read_json("reports/register.json")
    return found


def numbers() -> list[int]:
    return sorted(int(version.version) for version in MlflowClient().search_model_versions(f"name='{NAME}'"))


def alias_number(alias: str) -> int | None:
    found = RegisteredModel(NAME).find_alias(alias)
    return None if found is None else found.number


def test_the_first_model_becomes_champion_and_is_what_its_address_gives() -> None:
    main()
    found = receipt()
    assert found["gate"]["passed"]
    assert (found["name"], found["version"], found["alias"], found["created"]) == (NAME, 1, "champion", True)
    assert found["metrics"]["test/top1"] == 0.75
    assert found["store"] == "sqlite"
    assert found["digest"] == content_digest("models/export")
    assert str(Path.cwd()) not in Path("reports/register.json").read_text(encoding="utf-8")
    served, exported = resolve(f"models:/{NAME}@champion"), Path("models/export")
    answers = load_answers(served, LABELS)
    assert answers is not None
    assert answers.labels == {"down": 1, "left": 2, "right": 1, "up": 0}
    assert answers.confidence[-1] == 2  # both of 0.9996
    assert answers.entropy[-1] == 1  # equal logits
    assert content_digest(served) == found["digest"]
    assert (served / "README.md").read_text(encoding="utf-8") == (exported / "README.md").read_text(encoding="utf-8")
    video = Path("data/videos/v0.mp4")
    assert Classifier.load(f"models:/{NAME}@champion").classify(video).logits.tolist() == (
        Classifier.load("models/finetune").classify(video).logits.tolist()
    )


def test_the_run_says_what_was_registered() -> None:
    main()
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.run_id == receipt()["run_id"]
    assert run.data.tags["stage"] == "register"
    assert (run.data.tags["model_version"], run.data.tags["model_digest"]) == ("1", receipt()["digest"])
    assert run.data.metrics["test/top1"] == 0.75
    assert run.data.metrics["gate/passed"] == 1.0
    assert {entry.path for entry in MlflowClient().list_artifacts(run.info.run_id)} == {"README.md", "params.yaml"}
    version = MlflowClient().get_model_version(NAME, "1")
    assert version.run_id == run.info.run_id
    assert version.tags["data_digest"] == Manifest.load("data/manifest.parquet").digest


def test_export_holds_evaluation_provenance_and_the_evaluated_views() -> None:
    set_params(registry={"name": NAME}, evaluate={"segments": 3, "crops": 3})
    main()
    config = load_config("models/export")
    assert config.name == NAME
    assert config.views.model_dump() == {"segments": 3, "crops": 3}
    assert config.metrics == {"val/top1": 0.5, "test/top1": 0.75, "test/top5": 1.0}
    assert config.provenance["run_id"] == "f" * 32
    assert config.provenance["register_run_id"] == receipt()["run_id"]
    assert {"git_commit", "created", "data_digest"} <= config.provenance.keys()
    assert all(path.stat().st_mode & 0o200 for path in Path("models/export").iterdir())
    assert load_config("models/finetune").views.model_dump() == {"segments": 2, "crops": 1}


def test_the_same_content_again_makes_no_second_version() -> None:
    main()
    before = receipt()
    main()
    after = receipt()
    assert numbers() == [1]
    assert (after["version"], after["alias"], after["digest"]) == (1, "champion", before["digest"])
    assert (before["created"], after["created"]) == (True, False)


@pytest.mark.parametrize("change", range(1, 9))
def test_a_registry_lost_on_the_way_is_made_whole_by_another_run(change: int, project: Path) -> None:
    with lost_at(change) as done, pytest.raises(StoreError, match="refuses connections: ") as caught:
        main()
    assert len(done) == change - 1
    assert "\n" not in str(caught.value)
    assert not (project / "reports/register.json").exists()
    main()
    assert (numbers(), alias_number("champion")) == ([1], 1)
    assert receipt()["alias"] == "champion"
    tags = RegisteredModel(NAME).version(1).tags
    assert {"digest", "value", "champion_since", "champion_by"} <= tags.keys()
    assert past_champions(NAME) == [1]
    actions = [line["action"] for line in audit_history(NAME)]
    assert (actions[0], actions[-1], actions.count("register")) == ("register", "gate", 1)


def test_a_worse_model_becomes_challenger_and_a_better_one_champion() -> None:
    main()
    finetuned(seed=1)
    evaluated(0.7)
    main()
    assert receipt()["alias"] == "challenger"
    assert not receipt()["gate"]["passed"]
    assert (alias_number("champion"), alias_number("challenger")) == (1, 2)
    finetuned(seed=2)
    evaluated(0.8)
    main()
    assert (alias_number("champion"), alias_number("challenger")) == (3, 2)
    finetuned(seed=1)  # the challenger, measured again, overtakes
    evaluated(0.9)
    main()
    assert numbers() == [1, 2, 3]
    assert (alias_number("champion"), alias_number("challenger")) == (2, None)


def test_a_champion_measured_on_other_videos_is_no_rival() -> None:
    evaluated(0.9)
    main()
    rows = [row(f"w{i}", "test", label=LABELS[i]) for i in range(4)]
    Manifest(rows, "data").save("data/manifest.parquet")
    media.write(Path("data/videos/w0.mp4"), num_frames=12)
    finetuned(seed=1)
    evaluated(0.6)
    main()
    assert alias_number("champion") == 2
    assert "measured on other data" in receipt()["gate"]["reason"]


def test_more_training_videos_leave_champions_comparable() -> None:
    evaluated(0.9)
    main()
    rows = Manifest.load("data/manifest.parquet").rows
    Manifest([*rows, row("more", "train")], "data").save("data/manifest.parquet")
    finetuned(seed=1)
    evaluated(0.6)
    main()
    assert (alias_number("champion"), alias_number("challenger")) == (1, 2)


def test_below_the_minimum_there_is_no_alias_and_none_is_taken_away() -> None:
    evaluated(0.4)
    main()
    assert numbers() == [1]
    assert receipt()["alias"] is None
    assert (alias_number("champion"), alias_number("challenger")) == (None, None)
    evaluated(0.6)
    main()
    assert alias_number("champion") == 1
    set_params(registry={"name": NAME, "minimum": 0.99})
    main()
    assert alias_number("champion") == 1
    assert "below the minimum 0.99" in receipt()["gate"]["reason"]


def test_a_metric_that_was_not_measured_is_named_and_nothing_is_registered() -> None:
    set_params(registry={"name": NAME, "metric": "val/top7"})
    with pytest.raises(ValueError, match=r"registry.metric: 'val/top7'.*'test/top1'"):
        main()
    assert not Path("reports/register.json").exists()
    assert not Path("models/export").exists()


def test_the_card_is_valid_and_honest() -> None:
    main()
    header, text = Path("models/export/README.md").read_text(encoding="utf-8").removeprefix("---\n").split("\n---\n", 1)
    front = yaml.safe_load(header)
    assert front["license"] == "apache-2.0"
    assert front["pipeline_tag"] == "video-classification"
    (result,) = front["model-index"][0]["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"top1": 0.75, "top5": 1.0}
    for expected in (
        "| train | 1 | 32 |",  # data by split
        "1 truncated",  # quarantine with reasons
        "| test/top1 | 0.75 |",
        "| `left` | 1 | 100.0% |",
        "| `up` | 0 | - |",
        "Chance is 25.0%",
        "A clip is 4 frames of a video at 16 per second, one every 0.125 s, at 16 x 16 pixels.",
        "synthetic",
        "Wrong more often than right on: `down`.",
        "confidence interval",
        "mask_ratio: 0.6",
        "| run_id | " + "f" * 32,
    ):
        assert expected in text, expected
