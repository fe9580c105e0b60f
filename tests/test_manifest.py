from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mme.manifest import Manifest, Video, write_quarantine
from tests.factories import row

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
VIDEOS = st.builds(
    Video,
    id=TEXT,
    path=TEXT,
    sha256=TEXT,
    label=st.none() | TEXT,
    split=st.sampled_from(["pretrain", "train", "val", "test"]),
    group=st.none() | TEXT,
    num_frames=st.integers(0, 10**6),
    fps=st.floats(0, 1000),
    width=st.integers(0, 10**5),
    height=st.integers(0, 10**5),
    status=st.sampled_from(["ok", "quarantined"]),
    reason=st.sampled_from([None, "truncated", "timed-out"]),
    source_path=TEXT,
    source_fps=st.floats(0, 1000),
)


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(VIDEOS, unique_by=lambda video: video.id, max_size=6))
def test_save_and_load_round_trip(rows: list[Video], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("manifest") / "manifest.parquet"
    manifest = Manifest(rows, path.parent)
    manifest.save(path)
    loaded = Manifest.load(path)
    assert loaded.rows == sorted(rows, key=lambda video: video.id)
    assert loaded.digest == manifest.digest
    assert loaded.folder == path.parent


def _manifest() -> Manifest:
    rows = [
        row("d", "train", label="up"),
        row("a", "train", label="down"),
        row("b", "test", label="up"),
        row("c", "pretrain", label=None),
        row("e", "pretrain", label="never trained"),
        row("f", "val", label="quarantined only", status="quarantined", reason="truncated", path=""),
    ]
    return Manifest(rows, "data")


def test_one_frame_rate() -> None:
    assert _manifest().fps == 16
    both = Manifest([row("a", "train"), row("b", "val", fps=25.0)], "data/own")
    with pytest.raises(ValueError, match=r"data/own: its videos have 16 and 25 frames per second, not one rate"):
        _ = both.fps
    with pytest.raises(ValueError, match=r"data: its videos have no frames per second"):
        _ = Manifest([], "data").fps


def test_videos_of_a_least_length() -> None:
    manifest = Manifest([row("a", "train", num_frames=7), row("b", "train", num_frames=8)], "data")
    assert [video.id for video in manifest.videos("train", min_frames=8)] == ["b"]


def test_usable_videos_by_split() -> None:
    manifest = _manifest()
    assert [video.id for video in manifest.videos("train")] == ["a", "d"]
    assert [video.id for video in manifest.videos(["test", "pretrain"])] == ["b", "c", "e"]
    assert manifest.videos("val") == []
    assert [video.id for video in manifest.quarantined] == ["f"]
    assert len(manifest) == 6
    assert manifest["b"].label == "up"
    with pytest.raises(ValueError, match="'nothing'"):
        manifest["nothing"]


def test_labels_are_those_of_usable_videos_in_labelled_splits() -> None:
    assert _manifest().labels == ["down", "up"]


def test_paths_are_relative_to_the_manifest() -> None:
    manifest = _manifest()
    assert manifest.path_of(manifest["a"]) == Path("data/videos/a.mp4")
    with pytest.raises(ValueError, match=r"f\.mp4: quarantined \(truncated\)"):
        manifest.path_of(manifest["f"])


def test_digest_depends_on_the_data() -> None:
    base = Manifest([row("a", "train"), row("b", "test")], "here")
    assert base.digest == Manifest([row("b", "test"), row("a", "train")], "there").digest
    assert base.digest == Manifest([row("a", "train"), row("b", "test", path="x", fps=1.0)], "here").digest
    changes: list[dict[str, Any]] = [{"sha256": "0"}, {"label": "right"}, {"split": "val"}, {"group": "g"}]
    changed = {Manifest([row("a", "train"), replace(row("b", "test"), **change)], "here").digest for change in changes}
    quarantined = row("b", "test", status="quarantined", reason="truncated")
    changed |= {Manifest([row("a", "train"), quarantined], "here").digest}
    assert len(changed | {base.digest}) == 6


def test_duplicate_id_is_an_error() -> None:
    with pytest.raises(ValueError, match="two videos have the id 'a'"):
        Manifest([row("a", "train"), row("a", "test")], "data")


def test_unreadable_manifests(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    with pytest.raises(ValueError, match=r"manifest\.parquet: cannot be read"):
        Manifest.load(path)
    path.write_text("id,path\n", "utf-8")
    with pytest.raises(ValueError, match=r"manifest\.parquet: cannot be read"):
        Manifest.load(path)
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(ValueError, match="lacks the columns"):
        Manifest.load(path)


def test_videos_in_another_normal_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    _manifest().save(path)
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)  # as versions before 4 wrote it
    with pytest.raises(ValueError, match=r"manifest\.parquet: .* version 3 of the normal form.*dvc repro ingest"):
        Manifest.load(path)


def test_quarantine_list_is_sorted_csv(tmp_path: Path) -> None:
    write_quarantine(tmp_path / "q.csv", [("b.mp4", "empty", "0 bytes"), ("a, b.mp4", "truncated", 'says "9"')])
    assert (tmp_path / "q.csv").read_text("utf-8") == (
        'path,reason,detail\n"a, b.mp4",truncated,"says ""9"""\nb.mp4,empty,0 bytes\n'
    )


def test_training_videos_of_another_data_set_are_added_unless_they_are_held_out() -> None:
    own = Manifest(
        [
            row("a", "train", label="left", sha256="a" * 64),
            row("b", "train", label="up", sha256="b" * 64),
            row("c", "test", label="up", sha256="c" * 64),
            row("d", "val", label="up", sha256="d" * 64),
        ],
        "data",
    )

    def told(name: str, label: str, split: str = "train") -> Video:
        return row(f"{name}-1", split, label=label, source_path=f"{name * 64}.mp4")

    more = Manifest(
        [
            told("a", "up"),  # a training video here, of another label
            told("b", "up"),  # and of the same one
            told("c", "left"),
            row("d-1", "train", label="left", sha256="d" * 64),  # the same file by its own digest
            told("e", "left"),
            told("f", "shrink"),
            told("g", "left", split="val"),
        ],
        "data/feedback",
    )
    both, counts = own.with_training_videos_of(more)
    assert counts == {"added": 2, "known": 1, "held out": 2, "label unknown": 1}
    found = [(video.id, video.label) for video in both.videos("train")]
    assert found == [("b", "up"), ("feedback-a-1", "up"), ("feedback-e-1", "left")]
    assert both.videos(("val", "test")) == own.videos(("val", "test"))
    assert both.path_of(both["feedback-e-1"]) == Path("data/feedback/videos", more["e-1"].path).absolute()
    assert both.path_of(both["b"]) == own.path_of(own["b"])
    assert both.digest != own.digest
