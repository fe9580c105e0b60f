"""What ingest will read, with digests: the dependency of the stage ``ingest``.

DVC follows no linked folder, hashes nothing outside of the folder that it is given, and ends at a link whose target is
gone. So ingest does not depend on the source but on this table of the files that it will read, wherever they lie.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import astuple
from pathlib import Path

from mme.config import IngestParams
from mme.ingest.frame_folder import frame_names, sha256_frames, source_stamp
from mme.ingest.listing import Listing
from mme.ingest.sources import list_source
from mme.system.files import sha256_file

_log = logging.getLogger(__name__)


class Digests:
    """Digests of files and frame folders; those whose sizes and times are unchanged are not read again.

    A cache that cannot be used is named in one warning, and every file is read: it saves time and nothing else.
    """

    def __init__(self, cache: Path, num_threads: int) -> None:
        """Name the cache.

        Args:
            cache: SQLite file, which is created if it does not exist.
            num_threads: number of files read side by side.
        """
        self._cache = cache
        self._num_threads = num_threads
        self._is_lost = False

    def of(self, paths: Iterable[Path]) -> dict[Path, str]:
        """Return the digest of each path; for what cannot be read, the reason instead."""
        known: dict[str, tuple[str, str]] = {}
        with self._faults_as_warning(), closing(self._open()) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, stamp TEXT, sha256 TEXT)")
            known |= {path: (stamp, sha256) for path, stamp, sha256 in connection.execute("SELECT * FROM digests")}

        def digest(path: Path) -> tuple[str, str]:
            try:
                stamp = json.dumps(source_stamp(path))
                if known.get(_key(path), ("", ""))[0] == stamp:
                    return known[_key(path)]
                if path.is_dir():
                    return stamp, sha256_frames(path, frame_names(path))
                # Reading a pipe may never end.
                return (stamp, sha256_file(path)) if path.is_file() else ("", "is no file")
            except OSError as error:
                return "", f"cannot be read: {error.strerror}"

        paths = list(paths)
        with ThreadPoolExecutor(self._num_threads) as executor:
            found = dict(zip(paths, executor.map(digest, paths), strict=True))
        new = [(_key(path), *row) for path, row in found.items() if row[0] and known.get(_key(path)) != row]
        if new:
            with self._faults_as_warning(), closing(self._open()) as connection:
                connection.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", new)
                connection.commit()
        return {path: sha256 for path, (_, sha256) in found.items()}

    def _open(self) -> sqlite3.Connection:
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        return sqlite3.connect(self._cache)

    @contextmanager
    def _faults_as_warning(self) -> Iterator[None]:
        """End the block at a fault of the cache, with a warning if it is the first one."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if not self._is_lost:
                _log.warning("%s: %s: every video is read anew; make room or delete this cache", self._cache, error)
            self._is_lost = True


def _key(path: Path) -> str:
    """Return a path as SQLite can keep it: folders above a source may have names that are not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def survey(params: IngestParams, digests: Digests) -> str:
    """Return a table of what ingest will read: one line of JSON for each video or clip, equal for equal sources.

    A line holds path, label, split, group, seconds and rate, and the digest of the file.

    Raises:
        ValueError: the source is missing or empty, or its list is wrong.
    """
    listing: Listing = list_source(params)
    root = Path(os.path.realpath(params.root))
    sha256 = digests.of(sorted({root / file.path for file in listing.files}))
    lines = [json.dumps([*astuple(file), sha256[root / file.path]], ensure_ascii=False) for file in listing.files]
    return "\n".join([json.dumps({"splits_training": listing.splits_training}), *lines]) + "\n"
