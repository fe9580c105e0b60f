"""Who may call, and how often."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections import OrderedDict

from serving.problems import Problem

MAX_CALLERS = 10_000
"""Callers whose rate is remembered; the one that has been silent the longest is forgotten first."""


class ApiKeys:
    """API keys, known by their SHA-256 only."""

    def __init__(self, hashes: tuple[str, ...]) -> None:
        self._hashes = [bytes.fromhex(text) for text in hashes]

    def check(self, key: str | None) -> str | None:
        """A name for the caller that gives nothing away; None where no key is needed.

        Raises:
            Problem: the key is missing or unknown.
        """
        if not self._hashes:
            return None
        given = hashlib.sha256((key or "").encode()).digest()
        known = [hmac.compare_digest(given, hashed) for hashed in self._hashes]  # all of them: time tells nothing
        if not any(known):
            problem = Problem("unauthorized", "the API key is missing" if key is None else "the API key is unknown")
            problem.headers["WWW-Authenticate"] = "Bearer"
            raise problem
        return f"key-{known.index(True)}"


class RateLimit:
    """A bucket of tokens for each caller: ``per_minute`` at most at once, refilled steadily."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, caller: str) -> None:
        """Take a token.

        Raises:
            Problem: there is none left.
        """
        if not self._per_minute:
            return
        now = time.monotonic()
        tokens, then = self._buckets.pop(caller, (float(self._per_minute), now))
        tokens = min(float(self._per_minute), tokens + (now - then) * self._per_minute / 60)
        allowed = tokens >= 1
        self._buckets[caller] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        if not allowed:
            wait_s = math.ceil((1 - tokens) * 60 / self._per_minute)
            raise Problem("rate-limited", f"at most {self._per_minute} requests a minute", retry_after_s=wait_s)
