"""Settings of every test run."""

from __future__ import annotations

from hypothesis import settings

import mme  # noqa: F401 - first of all, because it mends what importing torchvision needs

settings.register_profile("default", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("default")
