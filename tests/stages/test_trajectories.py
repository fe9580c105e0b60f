from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import mlflow
import pytest
import yaml

from mme.manifest import Manifest
from mme.motion.store import TrackStore
from mme.stages.trajectories import main
from mme.system.files import read_json
from mme.video.codec import write_video
from tests.factories import row
from tests.tiny import moving_frames

ROOT = Path(__file__).parents[2]
REPORT = Path("reports/trajectories")
TRAJECTORIES = {"splits": ["train"], "cell": 8, "max_length": 3}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good videos and one that is cut off."""
    folder = tmp_path_factory.mktemp("project")
    rows = [row(f"v{number}", "train", num_frames=10) for number in range(4)]
    for seed, video in enumerate(rows):
        path = folder / "data/videos" / video.path
        write_video(path, moving_frames(10, seed=seed), fps=10, crf=10, gop_frames=4)
    path.write_bytes(path.read_bytes()[:900])
    Manifest(rows, folder / "data").save(folder / "data/manifest.parquet")
    return folder


@pytest.fixture(autouse=True)
def _in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def set_params(**runtime: object) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["trajectories"] |= TRAJECTORIES
    params["pretrain"] |= {"splits": ["train"], "length": 3}
    params["runtime"] |= {"num_workers": 1, "videos_per_shard": 2} | runtime
    Path("params.yaml").write_text(yaml.safe_dump(params))


def test_bad_videos_above_the_limit_fail_the_stage_and_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    set_params(max_bad_ratio=0.2)
    with pytest.raises(ValueError, match=r"1 of 4 videos are bad: 25.0% is above runtime.max_bad_ratio 0.2"):
        main()
    assert "bad video v3: data/videos/v3.mp4" in capsys.readouterr().err
    assert not Path("data/trajectories").exists()


def test_tracks_summary_picture_and_record() -> None:
    """After the failure above, with a higher limit: what was extracted then is used."""
    set_params(max_bad_ratio=0.25)
    main()
    store = TrackStore("data/trajectories")
    assert store.ids == ["v0", "v1", "v2"]
    summary = read_json(REPORT / "summary.json")
    assert summary["videos"] == 3
    assert summary["bad_videos"] == 1
    assert summary["frames"] == 30
    assert 0.3 < summary["valid_share"] <= 1
    assert 0 <= summary["trusted_share"] <= 1
    assert summary["bytes"] == sum(path.stat().st_size for path in Path("data/trajectories").glob("*.safetensors"))
    picture = cv2.imread(str(REPORT / "preview.png"))
    assert picture is not None
    assert picture.shape[0] > 3 * 300
    assert picture.std() > 10
    (run, *_) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.data.tags["stage"] == "trajectories"
    assert run.data.metrics["trajectories/valid_share"] == pytest.approx(summary["valid_share"])
    client = mlflow.MlflowClient()
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "params.yaml",
        "preview.png",
        "summary.json",
    }
    assert not list(Path(".work/trajectories").iterdir())
    shutil.rmtree("data/trajectories")
