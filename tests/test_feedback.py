"""From what callers of the service say to a version that was trained on it. Real service, pipeline and registry."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from mme.client import Client
from mme.manifest import Manifest
from mme.system.files import read_json
from tests import media
from tests.project import Project
from tests.serving.service import server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_corrections_reach_a_retrained_and_registered_version(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.train()
    assert project.report("register.json")["version"] == 1
    manifest = Manifest.load(project.folder / "data/manifest.parquet")
    held_out = project.folder / "data/raw/motion-primitives" / manifest.videos("test")[0].source_path

    kept = project.folder / "kept"
    environment = {"MME_FEEDBACK_DIR": str(kept), "MLFLOW_TRACKING_URI": f"sqlite:///{project.folder}/mlflow.db"}
    address_of_model = f"models:/{project.report('register.json')['name']}@champion"
    with (
        server(address_of_model, tmp_path, log=tmp_path / "log", **environment) as (address, _),
        Client(address) as service,
    ):
        for seed, label in enumerate(("left", "left", "grow")):
            service.feedback(media.write(tmp_path / f"{seed}.mp4", num_frames=30, seed=seed), label)
        service.feedback(held_out, "left")
    shown = project.run([sys.executable, "-m", "mme.commands.app", "data", "feedback", "kept"], COLUMNS="200")
    assert shown.count("version 1") == 4

    ingest = yaml.safe_load((project.folder / "params.yaml").read_text(encoding="utf-8"))["ingest"]
    feedback = ingest | {"source": "feedback", "root": "kept", "val_ratio": 0.0, "test_ratio": 0.0}
    project.set(datasets={"feedback": feedback}, finetune={"more_data": "data/feedback"})
    surveys = {"survey", "survey-primitives"}
    assert set(project.repro("register")) - surveys == {"ingest-more@feedback", "finetune", "evaluate", "register"}
    assert project.report("ingest-feedback.json")["splits"]["train"]["classes"] == {"grow": 1, "left": 3}
    receipt = project.report("register.json")
    assert receipt["version"] == 2
    more = read_json(project.folder / "models/export/config.json")["provenance"]["more_data"]
    digest = Manifest.load(project.folder / "data/feedback/manifest.parquet").digest
    assert more == {"data": "data/feedback", "digest": digest, "added": 3, "held out": 1}
    card = (project.folder / "models/export/README.md").read_text(encoding="utf-8")
    assert "Added for training: 3 corrections by callers of the service, `data/feedback`" in card
    assert project.repro("register") == ["survey"]
