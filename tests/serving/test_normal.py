"""The task of a correction: one pass over the video for the model's views and for the clip that is kept."""

from __future__ import annotations

import cProfile
import io
import pstats
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mme.models.checkpoints import load_config
from mme.video import reader
from mme.video.metadata import VideoInfo
from mme.video.sampling import Views, sample_views
from serving.decoding.child import VideoLimits, ViewsTask, open_within_limits
from serving.decoding.normal import CorrectionTask
from tests import media

NUM_FRAMES = 40


def correction_task(path: Path, folder: Path) -> CorrectionTask:
    config = load_config(folder)
    limits = VideoLimits(60.0, 1000, 10**7, 10.0)
    return CorrectionTask(ViewsTask(path, config.clip, config.fps, 2, 3, limits), 64, 2**20)


def done(task: CorrectionTask) -> tuple[Views, bytes, int]:
    """Return views, clip, and how often a decoder was given something."""
    profile = cProfile.Profile()
    with open_within_limits(task) as video:
        header, payload = profile.runcall(task.work, video)
    views, clip = task.parse(header, payload)
    calls = pstats.Stats(profile, stream=io.StringIO()).stats  # type: ignore[attr-defined]
    return views, clip, sum(call[0] for (_, _, name), call in calls.items() if "'decode' of 'av.codec" in name)


@pytest.mark.parametrize("max_checked", [0, 10**8])
@pytest.mark.parametrize("rate", [16, 30])
def test_views_are_those_of_the_classifier_and_nothing_is_decoded_twice(
    max_checked: int, rate: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_CHECKED_PIXELS", max_checked)
    path = media.write(tmp_path / "clip.mp4", num_frames=NUM_FRAMES, size=(160, 96), rotation=90, fps=Fraction(rate))
    views, clip, num_decoded = done(correction_task(path, folder))
    config = load_config(folder)
    expected = sample_views(path, config.clip, config.fps, 2, 3)
    assert np.array_equal(views.frames, expected.frames)
    assert views.info == expected.info
    assert isinstance(expected.info, VideoInfo)
    assert sample_views(clip, config.clip, config.fps, 2, 3).frames.shape == expected.frames.shape
    assert num_decoded == (0 if max_checked else NUM_FRAMES + 1)  # a small file is decoded on opening; one flush


def test_views_of_a_file_that_ends_early_are_those_of_the_classifier(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_CHECKED_PIXELS", 0)
    path = media.truncated(tmp_path / "clip.mp4", 0.97, media.Spec(num_frames=60))
    views, _, _ = done(correction_task(path, folder))
    config = load_config(folder)
    assert np.array_equal(views.frames, sample_views(path, config.clip, config.fps, 2, 3).frames)
