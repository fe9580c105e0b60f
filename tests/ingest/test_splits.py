from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mme.ingest.listing import SourceFile
from mme.ingest.splits import assign_splits

LABELS = st.sampled_from(["up", "down", "left"])
GROUPS = st.none() | st.sampled_from(["g1", "g2", "g3", "g4", "g5"])
SIDES = {"pretrain": "train", "train": "train", "val": "val", "test": "test"}


def numbered(files: Sequence[tuple[str | None, str | None]]) -> list[SourceFile]:
    return [SourceFile(f"{number:03d}.mp4", label, None, group) for number, (label, group) in enumerate(files)]


@given(files=st.lists(st.tuples(st.none() | LABELS, GROUPS), max_size=40).map(numbered), seed=st.integers(0, 9))
def test_no_group_is_on_two_sides(files: list[SourceFile], seed: int) -> None:
    splits = assign_splits(files, 0.2, 0.3, seed)
    assert len(splits) == len(files)
    sides = defaultdict(set)
    for file, split in zip(files, splits, strict=True):
        assert (split == "pretrain") == (file.label is None)
        if file.group is not None:
            sides[file.group].add(SIDES[split])
    assert all(len(found) == 1 for found in sides.values())
    if any(file.label is not None for file in files):
        assert "train" in splits


@given(
    files=st.lists(st.tuples(LABELS, GROUPS), max_size=40).map(numbered),
    seed=st.integers(0, 9),
    order=st.randoms(use_true_random=False),
)
def test_the_order_of_the_files_does_not_matter(files: list[SourceFile], seed: int, order: object) -> None:
    splits = dict(zip(files, assign_splits(files, 0.2, 0.3, seed), strict=True))
    shuffled = list(files)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert dict(zip(shuffled, assign_splits(shuffled, 0.2, 0.3, seed), strict=True)) == splits


@given(labels=st.lists(LABELS, min_size=1, max_size=60), seed=st.integers(0, 9))
def test_every_class_has_the_wanted_ratios(labels: list[str], seed: int) -> None:
    files = numbered([(label, None) for label in labels])
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for file, split in zip(files, assign_splits(files, 0.15, 0.25, seed), strict=True):
        counts[str(file.label)][split] += 1
    for count in counts.values():
        total = count.total()
        for split, ratio in (("train", 0.6), ("val", 0.15), ("test", 0.25)):
            assert abs(count[split] - ratio * total) <= 1.5
        assert len(count) == min(total, 3), "as many splits as there are files"


@given(sizes=st.lists(st.integers(1, 30), min_size=3, max_size=8), seed=st.integers(0, 9))
def test_three_groups_fill_three_splits(sizes: list[int], seed: int) -> None:
    files = numbered([("up", f"g{number}") for number, size in enumerate(sizes) for _ in range(size)])
    assert set(assign_splits(files, 0.15, 0.25, seed)) == {"train", "val", "test"}


def test_groups_approximate_the_ratios_of_every_class() -> None:
    files = numbered([(label, f"g{number}") for number in range(40) for label in ("up", "down") for _ in range(5)])
    splits = assign_splits(files, 0.1, 0.25, seed=0)
    for label in ("up", "down"):
        count = Counter(split for file, split in zip(files, splits, strict=True) if file.label == label)
        assert count == {"train": 130, "val": 20, "test": 50}


def test_given_splits_are_kept_and_decide_their_group() -> None:
    files = [
        SourceFile("1.mp4", "up", "test", "g1"),
        SourceFile("2.mp4", "up", None, "g1"),
        SourceFile("3.mp4", None, None, "g2"),
        SourceFile("4.mp4", "up", None, "g2"),
        SourceFile("5.mp4", "up", "val"),
    ]
    assert assign_splits(files, 0.4, 0.4, seed=0) == ["test", "test", "pretrain", "train", "val"]


def test_given_splits_that_separate_a_group() -> None:
    files = [SourceFile("1.mp4", "up", "test", "g1"), SourceFile("2.mp4", None, None, "g1")]
    with pytest.raises(ValueError, match=r"group 'g1' is in 'test' \(1\.mp4\) and in 'pretrain' \(2\.mp4\)"):
        assign_splits(files, 0.2, 0.2, seed=0)


def test_seeds_draw_different_divisions() -> None:
    files = numbered([("up", None)] * 40)
    assert assign_splits(files, 0.2, 0.2, seed=1) == assign_splits(files, 0.2, 0.2, seed=1)
    assert assign_splits(files, 0.2, 0.2, seed=1) != assign_splits(files, 0.2, 0.2, seed=2)


def test_split_with_ratio_zero_is_empty() -> None:
    assert set(assign_splits(numbered([("up", None)] * 9), 0.0, 0.0, seed=0)) == {"train"}
