"""Logs on stdout: one JSON object per line, with the id of the request that it belongs to."""

from __future__ import annotations

import logging
import sys
from typing import Any

from asgi_correlation_id import correlation_id
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter


class RequestJsonFormatter(JsonFormatter):
    """Format time (UTC), level, logger, message, request id, and the fields given as ``extra``."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's second copy of a message
            timestamp="time",
            json_ensure_ascii=False,
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Write the level in lower case and add the request's id."""
        log_data["level"] = log_data["level"].lower()
        if (request_id := correlation_id.get()) is not None:
            log_data["request_id"] = request_id
        return log_data


def configure_logging(level: str) -> None:
    """Send records from ``level`` up to stdout; `RequestContext` replaces uvicorn's access log."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(RequestJsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)

    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
    logging.getLogger("uvicorn.access").disabled = True
