"""What the sections of ``params.yaml`` are made of."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Range = tuple[PositiveFloat, PositiveFloat]


class Section(BaseModel):
    """One section of ``params.yaml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self) -> str:
        """SHA-256 (first 16 hex digits) of the section's canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def faults(error: ValidationError, whole: str = "") -> str:
    """Everything that is wrong, ``place: message`` each; ``whole`` is the place of what concerns no single key."""
    found = ((".".join(map(str, fault["loc"])) or whole, fault["msg"]) for fault in error.errors())
    return "; ".join(f"{place}: {message}" if place else message for place, message in found)
