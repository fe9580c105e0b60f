from __future__ import annotations

import cv2
import numpy as np
import pytest

from mme.viz.drawing import encode_png
from mme.viz.tracks import PreviewRow, contact_sheet, direction_colours, draw_tracks
from tests.reference.moving_scene import MovingScene, Similarity
from tests.targets.cases import exact_tracks


def hue_of(picture: np.ndarray) -> float:
    """Mean hue, degrees, of the pixels that have a strong colour."""
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
    strong = hsv[(hsv[..., 1] > 120) & (hsv[..., 2] > 200)]
    assert len(strong) > 20
    return float(np.degrees(np.angle(np.exp(1j * np.radians(strong[:, 0] * 2.0)).mean())) % 360)


@pytest.mark.parametrize(("shift", "degrees"), [((2, 0), 0), ((0, 2), 90), ((-2, 0), 180), ((0, -2), 270)])
def test_hue_of_a_track_is_its_direction(shift: tuple[float, float], degrees: float) -> None:
    tracks = exact_tracks(MovingScene(48, 64, Similarity(shift)), [0], 5, 8)
    picture = draw_tracks(np.full((48, 64, 3), 90, np.uint8), tracks, False, 240)
    assert picture.shape == (240, 320, 3)
    difference = (hue_of(picture) - degrees + 180) % 360 - 180
    assert abs(difference) < 8


def test_compensation_removes_camera_motion_from_the_picture() -> None:
    tracks = exact_tracks(MovingScene(48, 64, Similarity((2.0, 0.0))), [0], 5, 8)
    tracks.homographies[..., 0, 2] = 2.0
    frame = np.full((48, 64, 3), 90, np.uint8)
    colours = [(draw_tracks(frame, tracks, compensated, 240).max(axis=-1) > 200).sum() for compensated in (False, True)]
    assert colours[0] > 500
    assert colours[1] == 0


def test_invalid_points_are_drawn_as_crosses() -> None:
    tracks = exact_tracks(MovingScene(48, 64, Similarity((2.0, 0.0))), [0], 5, 8)
    tracks.num_valid[:] = 4
    picture = draw_tracks(np.full((48, 64, 3), 90, np.uint8), tracks, False, 240)
    assert picture.max() < 150


def test_contact_sheet_has_one_row_per_video() -> None:
    scenes = [MovingScene(48, 64, Similarity((2.0, 0.0))), MovingScene(96, 64, Similarity((0.0, 2.0)))]
    rows = [PreviewRow(f"video {n}", s.frames(1)[0], exact_tracks(s, [0], 5, 8)) for n, s in enumerate(scenes)]
    sheets = [contact_sheet(rows[:number], 120) for number in (1, 2)]
    assert sheets[1].shape[0] - sheets[0].shape[0] >= 120
    decoded = cv2.imdecode(np.frombuffer(encode_png(sheets[1]), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    np.testing.assert_array_equal(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), sheets[1])


def test_directions_have_distinct_colours() -> None:
    angles = np.radians(np.arange(0, 360, 30))
    colours = direction_colours(np.stack([np.cos(angles), np.sin(angles)], axis=-1))
    assert colours.shape == (12, 3)
    assert len(np.unique(colours, axis=0)) == 12
