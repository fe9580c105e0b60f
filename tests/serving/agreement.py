"""Whether ingest and the service say the same of a file: both run as they do in their worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mme.ingest.transcode import NormalForm, TranscodeJob, transcode
from mme.video.containers import VideoError
from serving.decoding.child import VideoLimits, ViewsTask, open_within_limits
from tests.tiny import tiny_config

FORM = NormalForm(fps=16, short_side=32, crf=30, gop_frames=8)
CONFIG = tiny_config()
LIMITS = VideoLimits(max_seconds=600.0, max_frames=36_000, max_pixels=4096 * 2304, max_cpu_s=60.0)


@dataclass(frozen=True)
class Verdicts:
    """What ingest and the service say of one file: a reason, or None if it can be used.

    Attributes:
        ingest: reason of the quarantine.
        service: cause of the error.
        details: both as sentences.
    """

    ingest: str | None
    service: str | None
    details: tuple[str, str]

    @property
    def agree(self) -> bool:
        """Whether the file can be used by both or neither; the service alone has limits of length and size."""
        return (self.ingest is None) == (self.service is None) or self.service == "too-large"


def verdicts(path: Path, segments: int = 2) -> Verdicts:
    """Transcode a file and decode its views; nothing but ``VideoError`` may leave either."""
    target = path.with_name("normal") / f"{path.name}.mp4"
    outcome = transcode(TranscodeJob(path, target, FORM))
    assert target.exists() == (outcome.reason is None)
    target.unlink(missing_ok=True)
    task = ViewsTask(path, CONFIG.clip, CONFIG.fps, segments, 1, LIMITS)
    service, detail = None, ""
    try:
        with open_within_limits(task) as video:
            task.work(video)
    except VideoError as error:
        service, detail = error.reason, error.detail
    return Verdicts(outcome.reason, service, (outcome.detail, detail))
