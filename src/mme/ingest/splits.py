"""Splits by class and group: seeded, and the same for every order in which files are listed."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from mme.config import Split
from mme.ingest.listing import SourceFile

_SIDES: dict[Split, Split] = {"pretrain": "train", "train": "train", "val": "val", "test": "test"}
"""Pretraining and training are one side: what both learn from may be shared."""


@dataclass
class _Unit:
    """Files that must not be parted."""

    name: str
    files: list[int] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)


def assign_splits(files: Sequence[SourceFile], val_ratio: float, test_ratio: float, seed: int) -> list[Split]:
    """A split for every file.

    Given splits are kept; files without a label go to ``pretrain``; the others are spread over ``train``, ``val`` and
    ``test`` so that each class has the asked shares as nearly as possible. No group has files on two sides, training
    (``pretrain`` and ``train``) being one side: a group of which a file is on a side has all its files there.

    Args:
        files: with unique paths.
        val_ratio: share of validation files among those without a given split.
        test_ratio: likewise.
        seed: another seed draws another division.

    Raises:
        ValueError: a group has given splits on two sides.
    """
    known: dict[int, Split] = {}
    for index, file in enumerate(files):
        if file.split is not None:
            known[index] = file.split
        elif file.label is None:
            known[index] = "pretrain"
    sides = _sides_of_groups(files, known)
    planner = _Planner({"train": 1 - val_ratio - test_ratio, "val": val_ratio, "test": test_ratio}, seed)
    units: dict[str, _Unit] = {}
    for index, file in enumerate(files):
        if index in known:
            continue
        group = file.group
        name = f"file {file.path}" if group is None else f"group {group}"
        unit = units.setdefault(name, _Unit(name))
        unit.files.append(index)
        assert file.label is not None
        unit.labels[file.label] += 1
        planner.count(file.label)
        if group in sides:
            planner.pinned[name] = sides[group]
    for unit, split in planner.place(list(units.values())):
        known.update(dict.fromkeys(unit.files, split))
    return [known[index] for index in range(len(files))]


def _sides_of_groups(files: Sequence[SourceFile], known: dict[int, Split]) -> dict[str | None, Split]:
    sides: dict[str | None, Split] = {}
    example: dict[str, str] = {}
    for index, split in known.items():
        group, path = files[index].group, files[index].path
        if group is None:
            continue
        if sides.setdefault(group, _SIDES[split]) != _SIDES[split]:
            raise ValueError(
                f"group {group!r} is in {sides[group]!r} ({example[group]}) and in {split!r} ({path}); a group must"
                " not cross splits, and files without a label and a split count as 'pretrain'"
            )
        example.setdefault(group, path)
    return sides


class _Planner:
    """Places units one by one where the most files of their classes are missing."""

    def __init__(self, ratios: dict[Split, float], seed: int) -> None:
        self._ratios = {split: ratio for split, ratio in ratios.items() if ratio > 0}
        self._seed = seed
        self._totals: Counter[str] = Counter()
        self._placed: defaultdict[tuple[str, Split], int] = defaultdict(int)
        self.pinned: dict[str, Split] = {}

    def count(self, label: str) -> None:
        """Count one file of a class towards what is to be spread."""
        self._totals[label] += 1

    def place(self, units: list[_Unit]) -> list[tuple[_Unit, Split]]:
        """A split for every unit: pinned ones first, then groups from large to small, then single files by class."""
        done = [(unit, self._put(unit, self.pinned[unit.name])) for unit in units if unit.name in self.pinned]
        free = sorted((unit for unit in units if unit.name not in self.pinned), key=self._order)
        pools: defaultdict[str, list[_Unit]] = defaultdict(list)
        for unit in free:
            pools["" if unit.name.startswith("group ") else next(iter(unit.labels))].append(unit)
        groups = pools.pop("", [])
        taken = {split for _, split in done}
        done += self._spread(groups, [split for split in self._ratios if split not in taken])
        for label, pool in pools.items():
            done += self._spread(pool, [split for split in self._ratios if not self._placed[label, split]])
        return done

    def _spread(self, pool: list[_Unit], empty: list[Split]) -> list[tuple[_Unit, Split]]:
        """Place the units of a pool; the last ones fill the splits that are still empty, training first."""
        done = []
        for number, unit in enumerate(pool):
            last = len(pool) - number <= len(empty)
            if last and "train" in empty:
                split: Split = "train"
            else:
                split = max(empty if last else self._ratios, key=lambda split: self._gain(unit, split))
            if split in empty:
                empty.remove(split)
            done.append((unit, self._put(unit, split)))
        return done

    def _gain(self, unit: _Unit, split: Split) -> float:
        """How much nearer, in squared files, the classes of the unit come to their shares."""
        gain = 0.0
        for label, number in unit.labels.items():
            missing = self._totals[label] * self._ratios[split] - self._placed[label, split]
            gain += number * (2 * missing - number)
        return gain

    def _put(self, unit: _Unit, split: Split) -> Split:
        for label, number in unit.labels.items():
            self._placed[label, split] += number
        return split

    def _order(self, unit: _Unit) -> tuple[int, str]:
        return -len(unit.files), hashlib.sha256(f"{self._seed}\0{unit.name}".encode()).hexdigest()
