"""Base class and number types of the sections of ``params.yaml``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mme.system.files import digest

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]
FrameRate = Annotated[float, Field(gt=0, le=1000)]
Range = tuple[PositiveFloat, PositiveFloat]


class Section(BaseModel):
    """One section of ``params.yaml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self) -> str:
        """Return the SHA-256 (first 16 hex digits) of the section's values."""
        return digest(self.model_dump(mode="json"))


def faults(error: ValidationError, whole: str = "") -> str:
    """Return every fault as ``place: message``; ``whole`` is the place of a fault that concerns no single key."""
    found = ((".".join(map(str, fault["loc"])) or whole, fault["msg"]) for fault in error.errors())
    return "; ".join(f"{place}: {message}" if place else message for place, message in found)
