"""``python -m serving``: the service on one address, until SIGTERM."""

from __future__ import annotations

import os


def main() -> None:
    """Read the settings and serve."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # decoders need the cores that a waiting pass would spin on
    # Imported here: a decoding process imports this module, but has no use for the service.
    from serving.server import run
    from serving.settings import Settings

    run(Settings())


if __name__ == "__main__":
    main()
