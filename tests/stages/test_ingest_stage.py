from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mme.manifest import Manifest
from mme.stages import ingest
from tests import media


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three good clips, a bad one, and parameters for them."""
    params = yaml.safe_load(Path("params.yaml").read_text("utf-8"))
    params["ingest"] |= {"source": "folder", "root": "raw"}
    params["runtime"] |= {"max_bad_ratio": 0.25}
    for number, label in enumerate(["up", "up", "down"]):
        media.write(tmp_path / "raw" / label / f"{number}.mp4", size=(80, 64), seed=number)
    media.text(tmp_path / "raw/down/[b]text.mp4")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_the_stage_writes_its_outs_and_says_what_came_out(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ingest.main()
    manifest = Manifest.load("data/manifest.parquet")
    assert sorted((row.label, row.status) for row in manifest.rows) == [
        ("down", "ok"),
        ("down", "quarantined"),
        ("up", "ok"),
        ("up", "ok"),
    ]
    assert all(manifest.path_of(row).is_file() for row in manifest.videos(["train", "val", "test"]))
    report = json.loads(Path("reports/ingest.json").read_text("utf-8"))
    assert report["videos"] == 3
    assert report["quarantined"]["reasons"] == {"not-a-video": 1}
    said = capfd.readouterr().err
    for words in ("[b]text.mp4", "not-a-video", "warning: val has no video"):
        assert words in said
    assert not Path(".work/ingest").exists()


def test_the_stage_fails_above_the_bad_ratio(project: Path) -> None:
    media.empty(project / "raw/up/empty.mp4")
    with pytest.raises(ValueError, match=r"2 of 5 files cannot be used.*\.work/ingest/quarantine\.csv"):
        ingest.main()
    assert not Path("data").exists()
    assert Path(".work/ingest/quarantine.csv").is_file()


def test_another_data_set_goes_beside_the_first(project: Path) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text("utf-8"))
    params["datasets"] = {"own": params["ingest"]}
    Path("params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    ingest.main("own")
    assert len(Manifest.load("data/own/manifest.parquet").videos(["train", "val", "test"])) == 3
    assert sorted(path.name for path in (project / "data").iterdir()) == ["own"]
    assert json.loads(Path("reports/ingest-own.json").read_text("utf-8"))["videos"] == 3
    assert not Path("reports/ingest.json").exists()
    with pytest.raises(ValueError, match=r"datasets has no 'others', only \['own'\]"):
        ingest.main("others")
