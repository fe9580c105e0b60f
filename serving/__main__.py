"""``python -m serving``: the service on one address, until SIGTERM."""

from __future__ import annotations

import os

LIBRARIES = {
    "OMP_WAIT_POLICY": "PASSIVE",  # decoders need the cores that a waiting pass would spin on
    # The registry is asked again at the next look; MLflow's own seven tries would hide for minutes that it is away.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Their settings, read from the environment when they are imported; what is set already stays."""


def main() -> None:
    """Read the settings and serve."""
    for name, value in LIBRARIES.items():
        os.environ.setdefault(name, value)
    # Imported here: a decoding process imports this module, but has no use for the service.
    from serving.http.server import run
    from serving.settings import Settings

    run(Settings())


if __name__ == "__main__":
    main()
