"""Evaluation, registration and service of a model whose class names are of any script or look like syntax."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import yaml
from markdown_it import MarkdownIt
from starlette.testclient import TestClient

from mme.manifest import Manifest
from mme.stages import evaluate, register
from mme.system.files import read_json
from mme.tracking import resolve_version
from mme.video.codec import write_video
from serving.app import create_app
from tests.factories import row
from tests.names import ODD_NAMES
from tests.serving.service import make_settings
from tests.tiny import moving_frames, save_tiny_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project in which a model with these names was evaluated and registered."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["registry"] |= {"name": "手势", "minimum": 0.0}
        params["finetune"]["flip_pairs"] = [["挥手", "跳跃"], ["a$b$c", "x_y|z'"]]
        Path("params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
        rows = [row(f"v{number}", "test", label=name) for number, name in enumerate(ODD_NAMES)]
        for video in rows:
            video_path = folder / "data/videos" / video.path
            if video is rows[0]:
                write_video(video_path, moving_frames(), fps=10, crf=10, gop_frames=4)
            else:
                shutil.copy(folder / "data/videos" / rows[0].path, video_path)
        Manifest(rows, folder / "data").save("data/manifest.parquet")
        save_tiny_folder(Path("models/finetune"), labels=ODD_NAMES)
        evaluate.main()
        register.main()
        yield folder


def test_tables_have_the_names() -> None:
    for name, column in (("per_class", "label"), ("confusion", "actual"), ("predictions", "label")):
        with Path(f"reports/evaluate/{name}.csv").open(encoding="utf-8", newline="") as file:
            assert sorted(line[column] for line in csv.DictReader(file)) == list(ODD_NAMES)
    assert Path("reports/evaluate/confusion.png").stat().st_size > 10_000


def test_the_card_has_each_name_in_a_cell_of_its_own() -> None:
    card = Path("models/export/README.md").read_text(encoding="utf-8")
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["model-index"][0]["name"] == "手势"
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    spans = [child.content for token in tokens for child in token.children or [] if child.type == "code_inline"]
    for name in ODD_NAMES:
        assert spans.count(name.replace("\n", "\\n")) >= 2, name  # in the list and in the table
    assert "[挥手, 跳跃]" in body


def test_the_registry_has_the_names() -> None:
    version = resolve_version("models:/手势@champion")
    assert read_json("reports/register.json")["digest"] == version.tags["digest"]
    (run, _) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert "挥手" in run.data.params["finetune.flip_pairs"]
    assert "挥手" in Path("models/export/config.json").read_text(encoding="utf-8")


def test_the_service_answers_with_the_names(tmp_path: Path) -> None:
    video = min(Path("data/videos").iterdir()).read_bytes()
    with TestClient(create_app(make_settings(Path("models/export"), tmp_path))) as client:
        assert client.get("/labels").json() == {"labels": list(ODD_NAMES)}
        answer = client.post("/classify?top_k=40", files={"file": ("手.mp4", video)})
        assert answer.status_code == 200, answer.text
        assert sorted(item["label"] for item in answer.json()["predictions"]) == list(ODD_NAMES)
        assert 'name="手势"' in client.get("/metrics").text
