"""Rival of the service: the simplest FastAPI handler.

``python -m benchmarks.serving_plain FOLDER PORT``; decodes and runs the model in a thread per request.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, Header
from multipart import MultipartParser, parse_options_header  # type: ignore[import-untyped]

from mme.evaluation.classifier import Classifier


def create_app(folder: Path) -> FastAPI:
    """Return the application for one model folder."""
    app, classifier = FastAPI(), Classifier.load(folder)

    @app.post("/classify")
    def classify(body: Annotated[bytes, Body()], content_type: Annotated[str, Header()]) -> dict[str, Any]:
        boundary = parse_options_header(content_type)[1]["boundary"]
        result = classifier.classify(MultipartParser(io.BytesIO(body), boundary).get("file").raw)
        return {"predictions": [[item.label, item.probability] for item in result.predictions]}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(Path(sys.argv[1])), port=int(sys.argv[2]), log_level="warning")
