from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from mme.evaluation.classifier import Classifier
from tests.tiny import LABELS


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Classifier:
    return Classifier.load(folder)


def tensor(frames: np.ndarray[Any, Any], **changes: Any) -> dict[str, Any]:
    data = frames.ravel().tolist()
    return {"name": "frames", "datatype": "UINT8", "shape": list(frames.shape), "data": data} | changes


def test_health_and_metadata(client: TestClient) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2").json()["name"] == "mme"
    for path in ("/v2/models/tiny", "/v2/models/tiny/versions/1"):
        assert client.get(f"{path}/ready").json() == {"ready": True}
        assert client.get(path).json() == {
            "name": "tiny",
            "versions": ["1"],
            "platform": "pytorch",
            "inputs": [{"name": "frames", "datatype": "UINT8", "shape": [-1, 4, 16, 16, 3]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, len(LABELS)]}],
            "parameters": {"fps": 16.0, "stride_frames": 2, "sampling": "stride", "snippets": 1},
        }


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/tiny/versions/2", "/v2/models/other/ready"])
def test_unknown_model_is_not_found(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert response.json()["error"] == response.json()["detail"] == "loaded is tiny, version 1"


@pytest.mark.parametrize("is_flat", [True, False])
def test_infer_returns_the_logits_of_views(
    client: TestClient, classifier: Classifier, clip: Path, is_flat: bool
) -> None:
    views = classifier.prepare(clip)
    sent = tensor(views.frames, **({} if is_flat else {"data": views.frames.tolist()}))
    answer = client.post("/v2/models/tiny/infer", json={"id": "7", "inputs": [sent]}).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tiny", "1", "7")
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [2, len(LABELS)])
    logits = np.array(output["data"]).reshape(output["shape"])
    np.testing.assert_allclose(logits.mean(axis=0), classifier.predict([views])[0], rtol=0, atol=1e-5)


BLACK = np.zeros((1, 4, 16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [tensor(BLACK), tensor(BLACK)],
        [tensor(BLACK, name="pixels")],
        [tensor(BLACK, datatype="FP32")],
        [tensor(BLACK, shape=[1, 4, 16, 16])],
        [tensor(BLACK, shape=[1, 4, 16, 17, 3])],
        [tensor(BLACK, shape=[0, 4, 16, 16, 3])],
        [tensor(BLACK, shape=[10**9, 4, 16, 16, 3])],
        [tensor(BLACK, data=[0])],
        [tensor(BLACK, data=[])],
        [tensor(BLACK, data=[[0], [0, 0]])],
        [tensor(BLACK, data=[0.5] * BLACK.size)],
        [tensor(BLACK, data=[256] * BLACK.size)],
        [tensor(BLACK, data=[-1] * BLACK.size)],
        [tensor(BLACK, data=["x"] * BLACK.size)],
        [tensor(BLACK, data=[None] * BLACK.size)],
        [tensor(BLACK, data=[10**30] * BLACK.size)],
        "frames",
        None,
    ],
)
def test_invalid_tensor_is_a_client_error(client: TestClient, inputs: Any) -> None:
    response = client.post("/v2/models/tiny/infer", json={"inputs": inputs})
    assert response.status_code == 422
    assert response.json()["type"] == "/problems/invalid-parameter"
    assert response.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"1"])
def test_invalid_json_body_is_a_client_error(client: TestClient, body: bytes) -> None:
    response = client.post("/v2/models/tiny/infer", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.json()["error"]
