"""What callers of the service said about its answers: a folder of clips, each with a record of its right labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, ValidationError

from mme.config.base import NonNegative, Ratio, Section, faults
from mme.system.files import read_json

MAX_CORRECTIONS = 20
"""Labels of one clip that are kept, the latest ones."""

_SHA256 = r"^[0-9a-f]{64}$"


class Correction(Section):
    """What one caller said, and what the model had answered.

    Attributes:
        label: the right label.
        note: in the caller's words; empty for none.
        answered: the most probable label of the model's answer to the same upload.
        probability: of that label.
        model, version, model_digest: name, number in the registry and content of the model that answered.
        received: when.
    """

    label: Annotated[str, Field(min_length=1)]
    note: str
    answered: str
    probability: Ratio
    model: str
    version: str | None
    model_digest: str
    received: AwareDatetime


class FeedbackRecord(Section):
    """``SHA256.json`` beside ``SHA256.mp4``.

    Attributes:
        format: version of the record.
        sha256: of the upload; the clip beside the record is encoded anew.
        duration_s: of the upload.
        corrections: the oldest first. The last one counts; the others are kept to be looked at.
    """

    format: Literal[1] = 1
    sha256: Annotated[str, Field(pattern=_SHA256)]
    duration_s: NonNegative
    corrections: Annotated[tuple[Correction, ...], Field(min_length=1, max_length=MAX_CORRECTIONS)]

    @property
    def last(self) -> Correction:
        """The correction that counts."""
        return self.corrections[-1]

    @property
    def clip_name(self) -> str:
        """Name of the clip, beside the record."""
        return f"{self.sha256}.mp4"

    def with_correction(self, correction: Correction) -> FeedbackRecord:
        """Return the record with a further correction."""
        return self.model_copy(update={"corrections": (*self.corrections, correction)[-MAX_CORRECTIONS:]})


def record_path(folder: Path, sha256: str) -> Path:
    """Return the file of a record."""
    return folder / f"{sha256}.json"


def load_record(path: Path) -> FeedbackRecord:
    """Read a record.

    Raises:
        ValueError: the file is no record, or of another clip than its name says.
    """
    try:
        record = FeedbackRecord.model_validate(read_json(path))
    except ValidationError as error:
        raise ValueError(f"{path}: is no record of feedback: {faults(error)}") from error
    if record.sha256 != path.stem:
        raise ValueError(f"{path}: is the record of {record.clip_name}")
    return record


def record_paths(folder: Path) -> Iterator[Path]:
    """Yield the records of a folder, sorted by name; half-written ones are in hidden folders."""
    yield from sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
