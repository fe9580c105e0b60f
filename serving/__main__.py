"""``python -m serving``: run the service on one address until SIGTERM."""

from __future__ import annotations

import argparse
import inspect
import os

LIBRARY_SETTINGS = {
    # The next poll asks the registry again; MLflow's own seven retries would hide an outage for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Defaults of environment variables that libraries read when they are imported."""


def main() -> None:
    """Read the settings and serve, or print what can be set."""
    for name, value in LIBRARY_SETTINGS.items():
        os.environ.setdefault(name, value)

    # Imported here: decoding processes import this module, but do not need the service.
    from pydantic import ValidationError

    from serving.settings import Settings, stated_faults

    parser = argparse.ArgumentParser(
        "python -m serving",
        description=__doc__,
        epilog=inspect.getdoc(Settings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    try:
        settings = Settings()
        settings.prepare_folders()
    except ValidationError as error:
        parser.error(stated_faults(error))
    except OSError as error:
        parser.error(f"{error.filename}: cannot be written: {error.strerror}")

    from mme.evaluation.classifier import check_precision, choose_device
    from serving.http.server import run_server

    try:
        check_precision(settings.precision, choose_device("cpu"))
    except ValueError as error:
        parser.error(f"MME_PRECISION: {error}")
    run_server(settings)


if __name__ == "__main__":
    main()
