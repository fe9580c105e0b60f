"""API keys and rate limits."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections import OrderedDict

from serving.problems import Problem

MAX_CALLERS = 10_000
"""Callers whose rate is kept; beyond it the least recent one is dropped."""


class ApiKeys:
    """Accepted API keys, stored as SHA-256 only."""

    def __init__(self, hashes: tuple[str, ...]) -> None:
        self._hashes = [bytes.fromhex(text) for text in hashes]

    def check(self, key: str | None) -> str | None:
        """Return a name for the caller that reveals nothing of the key; None if no keys are configured.

        Raises:
            Problem: the key is missing or unknown.
        """
        if not self._hashes:
            return None

        given = hashlib.sha256((key or "").encode()).digest()
        matches = [hmac.compare_digest(given, known) for known in self._hashes]  # all of them: constant time
        if not any(matches):
            problem = Problem("unauthorized", "the API key is missing" if key is None else "the API key is unknown")
            problem.headers["WWW-Authenticate"] = "Bearer"
            raise problem
        return f"key-{matches.index(True)}"


class RateLimit:
    """Token bucket per caller: at most ``per_minute`` requests at once, refilled at a constant rate."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and the time they were counted

    def check(self, caller: str) -> None:
        """Take a token.

        Raises:
            Problem: the caller has no token left.
        """
        if not self._per_minute:
            return

        now = time.monotonic()
        tokens, then = self._buckets.pop(caller, (float(self._per_minute), now))
        tokens = min(float(self._per_minute), tokens + (now - then) * self._per_minute / 60)
        allowed = tokens >= 1

        # Inserted last: the first entry is always the least recent caller.
        self._buckets[caller] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        if not allowed:
            wait_s = math.ceil((1 - tokens) * 60 / self._per_minute)
            raise Problem("rate-limited", f"at most {self._per_minute} requests per minute", retry_after_s=wait_s)
