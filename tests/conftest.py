"""Settings of every test run."""

from __future__ import annotations

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

import mme  # noqa: F401 - first of all, because it mends what importing torchvision needs
import tests.typecheck  # noqa: F401 - before the hook, which takes the checker from the package

# Every call of a numerical function is checked against the shapes and types in its signature.
NUMERICAL = ("mme.targets", "mme.models", "mme.data", "mme.training", "mme.motion", "mme.evaluation")
install_import_hook(NUMERICAL, "tests.typecheck.checked")

settings.register_profile("default", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests with the longest time limits first, so that no process is idle at the end of `make slow-test`."""

    def limit_s(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker else 0.0

    items.sort(key=limit_s, reverse=True)
