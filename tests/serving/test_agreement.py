from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from mme.video import reader
from tests import corpus, odd_times
from tests.serving.agreement import Verdicts, verdicts
from tests.serving.mutants import false_headers, mutants, originals


def look(folder: Path, data: bytes) -> Verdicts:
    path = folder / "upload"
    path.write_bytes(data)
    return verdicts(path)


def check(folder: Path, files: Iterable[tuple[str, bytes]]) -> list[Verdicts]:
    found = {name: look(folder, data) for name, data in files}
    assert {name: verdict for name, verdict in found.items() if not verdict.agree} == {}
    return list(found.values())


def test_good_videos_are_usable_by_both(tmp_path: Path) -> None:
    files = {name: corpus.good(tmp_path, name) for name in corpus.CONTAINERS}
    files |= {name: make(tmp_path) for name, make in corpus.BEGINNINGS.items()}
    files |= {kind: corpus.accompanied(tmp_path, kind) for kind in corpus.COMPANIONS}
    found = {name: look(tmp_path, data) for name, data in files.items()}
    assert {name: verdict for name, verdict in found.items() if verdict.ingest or verdict.service} == {}


def test_other_files_are_usable_by_neither(tmp_path: Path) -> None:
    files = {name: make() for name, make in corpus.PHOTOS.items()}
    files |= {name: text.format(path="/etc/passwd").encode() for name, text in corpus.PLAYLISTS.items()}
    found = {name: look(tmp_path, data) for name, data in files.items()}
    assert {(verdict.ingest, verdict.service) for verdict in found.values()} == {("not-a-video", "not-a-video")}


def test_false_headers(tmp_path: Path) -> None:
    check(tmp_path, false_headers(tmp_path))


def test_header_that_asks_for_too_much_memory_has_one_reason(tmp_path: Path) -> None:
    verdict = look(tmp_path, dict(false_headers(tmp_path))["2e9 durations"])
    assert (verdict.ingest, verdict.service) == ("too-large", "too-large")
    assert verdict.details[0] == verdict.details[1]


def test_animations_and_rows_of_large_jpegs(tmp_path: Path) -> None:
    files = {kind: corpus.animation(kind) for kind in ("AVIF", "GIF", "PNG", "WEBP")}
    files["JPEGs"] = corpus.large_jpeg(0) + corpus.large_jpeg(1)
    found = check(tmp_path, files.items())
    assert [verdict.ingest for verdict in found] == [None, None, None, "not-a-video", None]


def test_clock_that_leaps_by_years(tmp_path: Path) -> None:
    (verdict,) = check(tmp_path, [("epoch.mkv", odd_times.wall_clock(tmp_path).read_bytes())])
    assert verdict.ingest == "undecodable"
    assert verdict.details[0] == verdict.details[1]
    assert "53.9 years" in verdict.details[0]


def test_odd_times(tmp_path: Path) -> None:
    files = {}
    for number, (name, make) in enumerate(odd_times.CASES.items()):
        (tmp_path / str(number)).mkdir()
        files[name] = make(tmp_path / str(number))[0].read_bytes()
    found = {name: look(tmp_path, data) for name, data in files.items()}
    assert {name: verdict for name, verdict in found.items() if verdict.ingest or verdict.service} == {}


def test_damaged_videos(tmp_path: Path) -> None:
    found = check(tmp_path, mutants(tmp_path, 300))
    assert 100 < sum(verdict.ingest is None for verdict in found) < 250


def test_long_videos_that_end_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long video the service decodes only what it needs; its end is known without decoding."""
    monkeypatch.setattr(reader, "MAX_CHECKED_PIXELS", 0)
    good = originals(tmp_path)
    cut = {f"{share} of {name}": data[: int(share * len(data))] for name, data in good.items() for share in (0.5, 0.8)}
    found = check(tmp_path, cut.items())
    assert sum(verdict.service == "truncated" for verdict in found) > 20


@pytest.mark.slow
def test_many_damaged_videos(tmp_path: Path) -> None:
    found = check(tmp_path, mutants(tmp_path, 2000, seed=1))
    assert len({verdict.ingest for verdict in found}) >= 5
