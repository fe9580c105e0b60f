from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mme.manifest import Manifest
from mme.stages.pretrain import main
from mme.system.files import read_json
from mme.training.pretrain import span_frames
from tests.small_data import make_small_data, small_params


def test_videos_that_are_too_short_are_left_out_counted_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    params = small_params(pretrain={"epochs": 1, "warmup_epochs": 0}, runtime={"device": "cpu"})
    Path("params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")), encoding="utf-8")
    span = span_frames(params)
    whole = make_small_data(tmp_path / "data", params)
    short = {"pretrain-0", "pretrain-1", "pretrain-2", "val-0", "train-0"}
    rows = [replace(video, num_frames=span - 1) if video.id in short else video for video in whole.rows]
    Manifest(rows, "data").save("data/manifest.parquet")
    main()
    said = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err).split())
    assert f"left out: 3 of 12 videos, shorter than the {span} frames that a clip and its trajectories span" in said
    metrics = read_json(Path("reports/pretrain/metrics.json"))
    assert metrics["videos"] == {"used": 9, "too_short": 3}
    assert metrics["val"]["loss"] > 0
    assert read_json(Path("models/pretrain/config.json"))["fps"] == 16
