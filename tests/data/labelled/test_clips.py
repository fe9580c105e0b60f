from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mme.data.labelled.clips import LabelledDataset
from mme.manifest import Manifest
from mme.video.codec import read_frames, write_video
from tests.factories import row
from tests.small_data import small_params
from tests.tiny import moving_frames


@pytest.mark.parametrize("num_frames", [1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_a_short_video_repeats_its_last_frame(num_frames: int, training: bool, tmp_path: Path) -> None:
    params = small_params()  # a clip spans 7 frames: 0, 2, 4, 6
    write_video(tmp_path / "videos/v.mp4", moving_frames(num_frames, 32, 32), 16, 1, 8)
    video = row("v", "train", num_frames=num_frames, height=32, width=32)
    dataset = LabelledDataset(
        Manifest([video], tmp_path), "train", params.clip, params.finetune, seed=0, training=training
    )
    frames = read_frames(tmp_path / "videos/v.mp4")
    clip = dataset[0, 0]["clip"].numpy()
    assert np.array_equal(clip, frames[[0, min(2, num_frames - 1), num_frames - 1, num_frames - 1]])
