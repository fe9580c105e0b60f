"""Rival of the service: the simplest FastAPI handler.

``python -m benchmarks.serving_plain FOLDER PORT``; decodes and runs the model in a thread per request.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, UploadFile

from mme.evaluation.classifier import Classifier


def create_app(folder: Path) -> FastAPI:
    """Return the application for one model folder."""
    app, classifier = FastAPI(), Classifier.load(folder)

    @app.post("/classify")
    def classify(file: UploadFile) -> dict[str, Any]:
        result = classifier.classify(file.file.read())
        return {"predictions": [[item.label, item.probability] for item in result.predictions]}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(Path(sys.argv[1])), port=int(sys.argv[2]), log_level="warning")
