"""The stage that lists what ingest will read."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from mme.config.paths import SOURCES_FOLDER
from mme.stages import survey
from tests.small_data import small_params


def test_a_copy_by_dvc_uses_the_projects_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each `dvc exp run --temp` would read every video again."""
    source = tmp_path / "videos"
    for label in ("jump", "wave"):
        (source / label).mkdir(parents=True)
        (source / label / "1.mp4").write_bytes(label.encode())
    project = tmp_path / "repository/models of ours"
    copy = tmp_path / "repository/models of ours/.dvc/tmp/exps/standalone/tmp1"
    params = small_params(ingest={"source": "folder", "root": source}).model_dump(mode="json")
    for git, folder in ((tmp_path / "repository", project), (copy, copy / "models of ours")):
        folder.mkdir(parents=True, exist_ok=True)
        (git / ".git").mkdir()
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")

    def survey_in(folder: Path) -> str:
        monkeypatch.chdir(folder)
        survey.main()
        return (folder / SOURCES_FOLDER / "folder/ingest.jsonl").read_text(encoding="utf-8")

    table = survey_in(project)
    with closing(sqlite3.connect(project / ".work/survey.sqlite")) as cache:
        cache.execute("UPDATE digests SET sha256 = 'known'")
        cache.commit()
    assert "known" not in table
    assert survey_in(copy / "models of ours").count("known") == 2
