from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from mme.commands.app import app
from mme.evaluation.classifier import Classifier
from mme.registry.onnx import export_onnx
from tests.tiny import LABELS, moving_frames, save_tiny_folder, tiny_config

SNIPPETS = tiny_config().clip.model_dump() | {"snippets": 3}


@pytest.mark.parametrize("changes", [{}, {"clip": SNIPPETS, "pool": "time"}, {"clip": SNIPPETS, "pool": "attentive"}])
def test_the_exported_model_answers_as_the_classifier_does(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = save_tiny_folder(tmp_path / "tiny", **changes)
    target = tmp_path / "model.onnx"
    result = CliRunner().invoke(app, ["export", str(target), "--model", str(folder), "--format", "onnx"])
    assert result.exit_code == 0, result.output
    assert "wrote" in result.output

    classifier = Classifier.load(folder)
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    for segments in (1, 4):
        views = classifier.prepare(moving_frames(), segments)
        (logits,) = session.run(["logits"], {"frames": views.frames})
        (expected,) = classifier.predict([views])
        np.testing.assert_allclose(logits.mean(axis=0), expected, atol=1e-3)

    facts = {entry.key: entry.value for entry in onnx.load(target).metadata_props}
    assert json.loads(facts["labels"]) == list(LABELS)
    assert facts["digest"] == classifier.digest
    assert json.loads(facts["config"])["clip"]["num_frames"] == 4


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing"):
        export_onnx(tmp_path / "nothing", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
    result = CliRunner().invoke(app, ["export", str(tmp_path / "m.onnx"), "--model", str(tmp_path / "nothing")])
    assert result.exit_code == 1
    assert "nothing" in result.output
