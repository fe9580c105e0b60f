"""Corrections of the service as a source of ingest, and their list."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mme.commands.app import app
from mme.config import IngestParams, load_params
from mme.ingest.feedback import Correction, FeedbackRecord, load_record, record_path
from mme.ingest.run import Ingest
from mme.ingest.sources import list_source
from mme.manifest import Manifest
from mme.system.files import sha256_file, write_json
from tests import media
from tests.project import ROOT

MOMENT = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)


def correction(label: str, **changes: Any) -> Correction:
    values: dict[str, Any] = {
        "label": label, "note": "", "answered": "left", "probability": 0.5, "model": "tiny", "version": "3",
        "model_digest": "abc", "received": MOMENT,
    }  # fmt: skip
    return Correction(**values | changes)


def keep(folder: Path, seed: int, *corrections: Correction) -> str:
    """Write a clip and its record as the service does; return the name of the clip."""
    clip = media.write(folder / f"{seed}.mp4", num_frames=16, seed=seed)
    record = FeedbackRecord(sha256=sha256_file(clip), duration_s=1.0, corrections=corrections)
    clip.rename(folder / record.clip_name)
    write_json(record_path(folder, record.sha256), record.model_dump(mode="json"))
    return record.clip_name


def params(root: Path) -> IngestParams:
    return load_params(ROOT / "params.yaml").ingest.model_copy(
        update={"source": "feedback", "root": root, "val_ratio": 0.0, "test_ratio": 0.0}
    )


def test_latest_labels_are_those_of_the_data_set_even_of_one_class(tmp_path: Path) -> None:
    root = tmp_path / "kept"
    names = {keep(root, 0, correction("up"), correction("left")), keep(root, 1, correction("left"))}
    lost = keep(root, 2, correction("up"))
    (root / lost).unlink()
    media.write(root / "unlisted.mp4", num_frames=4)
    (root / "notes.txt").touch()
    listing = list_source(params(root))
    assert {file.path for file in listing.files} == names
    assert {file.label for file in listing.files} == {"left"}
    assert (listing.missing, listing.unused, listing.ignored) == ([lost], ["unlisted.mp4"], ["notes.txt"])

    ingest = Ingest(params(root), seed=0, work=tmp_path / "work")
    ingest.finish(ingest.run(1, lambda: None), tmp_path / "data")
    manifest = Manifest.load(tmp_path / "data/manifest.parquet")
    assert len(manifest.videos("train")) == len(manifest) == 2


def test_damaged_record_is_named(tmp_path: Path) -> None:
    name = keep(tmp_path, 0, correction("up"))
    record = record_path(tmp_path, name.removesuffix(".mp4"))
    document = json.loads(record.read_text())
    record.write_text(json.dumps(document | {"corrections": []}))
    with pytest.raises(ValueError, match=rf"{record.name}: is no record of feedback: corrections: "):
        list_source(params(tmp_path))
    record.write_text(json.dumps(document))
    other = tmp_path / f"{'0' * 64}.json"
    shutil.move(record, other)
    with pytest.raises(ValueError, match=f"{'0' * 64}.json: is the record of {name}"):
        load_record(other)


def test_corrections_are_listed(tmp_path: Path) -> None:
    first = keep(tmp_path, 0, correction("up"), correction("down", note="clearly \x1b[31mdown"))
    later = MOMENT.replace(hour=13)
    second = keep(tmp_path, 1, correction("left", version=None, received=later))
    shown = CliRunner().invoke(app, ["data", "feedback", str(tmp_path)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    _, one, two, total = shown.output.splitlines()
    told = [r"down", r"(before:", r"up)", r"left", r"50%", r"version", r"3", r"clearly", r"\x1b[31mdown"]
    assert one.split() == ["2026-05-04", "12:30", *told, first]
    assert two.split() == ["2026-05-04", "13:30", "left", "left", "50%", "abc", second]
    assert total == "2 clips, of which the model had named 1 otherwise"

    as_json = CliRunner().invoke(app, ["data", "feedback", "--json"], env={"MME_FEEDBACK_DIR": str(tmp_path)})
    assert [record["corrections"][-1]["label"] for record in json.loads(as_json.output)] == ["down", "left"]
    missing = CliRunner().invoke(app, ["data", "feedback", str(tmp_path / "none")])
    assert missing.exit_code == 1
