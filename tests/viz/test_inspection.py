from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from mme.commands.app import app
from mme.config import Params
from mme.models.checkpoints import save_weights
from mme.models.masked_motion import MaskedMotionModel
from mme.system.files import write_json
from mme.video.codec import read_frames, write_video
from mme.video.reader import read_metadata
from mme.viz.inspection import Inspection, Pretrained, animation, picture
from tests.reference.moving_scene import MovingScene, Similarity
from tests.small_data import small_params

PARAMS = small_params(
    ingest={"short_side": 48}, trajectories={"compensate_camera": True, "cell": 4}, pretrain={"objective": "trajectory"}
)
BOX = (24, 16, 28, 22)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A panning camera, and an object that moves down by itself."""
    path = tmp_path_factory.mktemp("video") / "scene.mp4"
    scene = MovingScene(64, 96, Similarity((1.2, 0.0)), BOX, Similarity((0.0, 1.0)))
    write_video(path, scene.frames(16), 10, 10, 8)
    return path


@pytest.fixture(scope="module")
def inspection(video: Path) -> Inspection:
    return Inspection.of(video, PARAMS, 10, 0, 16)


def save_pretrained(folder: Path, params: Params) -> Path:
    folder.mkdir()
    save_weights(folder / "model.safetensors", MaskedMotionModel(params.model, params.clip, params.pretrain))
    sections = params.model_dump(mode="json", include={"clip", "model", "pretrain"})
    write_json(folder / "config.json", {**sections, "fps": 10.0, "statistics": {"position": [[0.0, 0.0], 0.5]}})
    return folder


def test_a_video_is_brought_to_the_normal_form_and_tracked(inspection: Inspection) -> None:
    assert inspection.frames.shape == (16, 48, 72, 3)
    assert inspection.tracks.displacements.shape[:3] == (15, 12, 18)
    assert inspection.tracks.trusted.all()
    assert inspection.fps == 10
    assert "trusted in 15 of 15 frames" in inspection.facts(0, 3)


def test_only_the_frames_asked_for_are_read(video: Path, inspection: Inspection) -> None:
    part = Inspection.of(video, PARAMS, 10, 4, 6)
    np.testing.assert_array_equal(part.frames, inspection.frames[4:10])
    with pytest.raises(ValueError, match=r"scene\.mp4: fewer than 2 frames from frame 15 on"):
        Inspection.of(video, PARAMS, 10, 15, 6)


def test_the_liveliest_start_leaves_room_for_the_clip(inspection: Inspection) -> None:
    assert 0 <= inspection.liveliest(12) <= 4
    with pytest.raises(ValueError, match="16 frames are too few, a clip and its tracks span 17"):
        inspection.liveliest(17)


def test_the_animation_shows_every_frame_and_no_camera_on_the_right(inspection: Inspection) -> None:
    film = animation(inspection, 3, 96)
    assert film.shape == (15, 96, 288, 3)
    strong = (film.astype(int).max(axis=-1) - film.astype(int).min(axis=-1) > 120).sum(axis=(0, 1))
    left, right = strong[:144].sum(), strong[144:].sum()
    assert left > 3 * right > 0  # a pan moves every point, and on the right only the object


def test_a_model_adds_its_predictions(inspection: Inspection, tmp_path: Path) -> None:
    pretrained = Pretrained.load(save_pretrained(tmp_path / "model", PARAMS))
    without = picture(inspection, PARAMS, 1, None)
    with_model = picture(inspection, PARAMS, 1, pretrained)
    assert without.shape == with_model.shape
    pink = (with_model.astype(int) - [255, 95, 162] == 0).all(axis=-1).sum()
    assert pink > 20
    assert (with_model[: with_model.shape[0] // 2] == without[: without.shape[0] // 2]).all()


def test_a_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = save_pretrained(tmp_path / "model", PARAMS)
    write_json(folder / "config.json", {"clip": {}})
    with pytest.raises(ValueError, match=r"config\.json: not of this version"):
        Pretrained.load(folder)


def test_the_command_writes_a_picture_and_a_film(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS.model_dump(mode="json")))
    result = CliRunner().invoke(app, ["inspect", str(video), "--start", "2", "--output", "seen"])
    assert result.exit_code == 0, result.output
    sheet = cv2.imread("seen/scene.png")
    assert sheet is not None
    assert sheet.std() > 10
    assert read_metadata(Path("seen/scene.mp4")).num_frames == 25  # of 16 at 10 per second, 26 at 16
    assert read_frames(Path("seen/scene.mp4"), [3]).std() > 10
    refused = CliRunner().invoke(app, ["inspect", str(video), "--start", "19"])
    assert refused.exit_code == 1
    assert "can start at frame 19" in refused.output
    missing = CliRunner().invoke(app, ["inspect", "no.mp4"])
    assert missing.exit_code == 1
