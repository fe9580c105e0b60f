"""Splits by class and group: seeded, and independent of the order in which files are listed."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mme.config import Split
from mme.ingest.listing import SourceFile

_SIDE_OF_SPLIT: dict[Split, Split] = {"pretrain": "train", "train": "train", "val": "val", "test": "test"}
"""Pretraining and training are one side: both may learn from the same video."""


@dataclass
class _Unit:
    """Files that must be in one split: a group, or a single file. ``labels`` counts them by class."""

    name: str
    is_group: bool
    files: list[int] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)


def assign_splits(files: Sequence[SourceFile], val_ratio: float, test_ratio: float, seed: int) -> list[Split]:
    """Return the split of every file.

    Given splits are kept; files without a label go to ``pretrain``; the others are spread over ``train``, ``val`` and
    ``test`` so that each class has the wanted ratios as nearly as possible. No group has files on two sides, where
    ``pretrain`` and ``train`` are one side: a group with a file on a side has all of its files there.

    Args:
        files: with unique names.
        val_ratio: share of validation files among those without a given split.
        test_ratio: share of test files among those without a given split.
        seed: another seed draws another division.

    Raises:
        ValueError: a group has given splits on two sides.
    """
    splits: dict[int, Split] = {}
    for index, file in enumerate(files):
        if file.split is not None:
            splits[index] = file.split
        elif file.label is None:
            splits[index] = "pretrain"
    side_of_group = _given_sides(files, splits)

    units: dict[str, _Unit] = {}
    for index, file in enumerate(files):
        if index not in splits:
            assert file.label is not None
            is_group = file.group is not None
            name = f"group {file.group}" if is_group else f"file {file.path}"
            unit = units.setdefault(name, _Unit(name, is_group))
            unit.files.append(index)
            unit.labels[file.label] += 1

    given = {f"group {group}": side for group, side in side_of_group.items()}
    planner = _Planner({"train": 1 - val_ratio - test_ratio, "val": val_ratio, "test": test_ratio}, seed)
    for unit, split in planner.place(list(units.values()), given):
        splits.update(dict.fromkeys(unit.files, split))
    return [splits[index] for index in range(len(files))]


def _given_sides(files: Sequence[SourceFile], given: Mapping[int, Split]) -> dict[str, Split]:
    """Return the sides of the groups that have files with given splits."""
    side_of_group: dict[str, Split] = {}
    example: dict[str, str] = {}
    for index, split in given.items():
        group, path = files[index].group, files[index].path
        if group is None:
            continue
        side = _SIDE_OF_SPLIT[split]
        if side_of_group.setdefault(group, side) != side:
            raise ValueError(
                f"group {group!r} is in {side_of_group[group]!r} ({example[group]}) and in {split!r} ({path}); a group"
                " must not cross splits, and files without a label and a split count as 'pretrain'"
            )
        example.setdefault(group, path)
    return side_of_group


class _Planner:
    """Places units one by one in the split that lacks the most files of their classes."""

    def __init__(self, ratios: dict[Split, float], seed: int) -> None:
        self._ratios = {split: ratio for split, ratio in ratios.items() if ratio > 0}
        self._seed = seed
        self._totals: Counter[str] = Counter()
        self._placed: defaultdict[tuple[str, Split], int] = defaultdict(int)

    def place(self, units: Sequence[_Unit], given: Mapping[str, Split]) -> list[tuple[_Unit, Split]]:
        """Return a split for every unit: given ones first, then groups from large to small, then files by class."""
        for unit in units:
            self._totals.update(unit.labels)
        done = [(unit, self._put(unit, given[unit.name])) for unit in units if unit.name in given]

        groups: list[_Unit] = []
        files_of_class: defaultdict[str, list[_Unit]] = defaultdict(list)
        for unit in sorted((unit for unit in units if unit.name not in given), key=self._order):
            if unit.is_group:
                groups.append(unit)
            else:
                [label] = unit.labels
                files_of_class[label].append(unit)

        filled = {split for _, split in done}
        done += self._spread(groups, [split for split in self._ratios if split not in filled])
        for label, files in files_of_class.items():
            done += self._spread(files, [split for split in self._ratios if not self._placed[label, split]])
        return done

    def _spread(self, units: Sequence[_Unit], empty: list[Split]) -> list[tuple[_Unit, Split]]:
        """Place units; the last ones fill the splits that are still empty, training first."""
        done = []
        for number, unit in enumerate(units):
            is_needed = len(units) - number <= len(empty)
            if is_needed and "train" in empty:
                split: Split = "train"
            else:
                split = max(empty if is_needed else self._ratios, key=lambda split: self._gain(unit, split))
            if split in empty:
                empty.remove(split)
            done.append((unit, self._put(unit, split)))
        return done

    def _gain(self, unit: _Unit, split: Split) -> float:
        """Return by how much the squared error of the class counts falls if a unit goes to a split."""
        gain = 0.0
        for label, number in unit.labels.items():
            missing = self._totals[label] * self._ratios[split] - self._placed[label, split]
            gain += number * (2 * missing - number)  # missing² - (missing - number)²
        return gain

    def _put(self, unit: _Unit, split: Split) -> Split:
        for label, number in unit.labels.items():
            self._placed[label, split] += number
        return split

    def _order(self, unit: _Unit) -> tuple[int, str]:
        """Return a key that sorts large units first and equal ones by the seed."""
        return -len(unit.files), hashlib.sha256(f"{self._seed}\0{unit.name}".encode()).hexdigest()
