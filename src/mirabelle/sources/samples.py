"""Batches that are read when they are needed, and again as often as one likes."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from mirabelle.base.errors import InputError

BATCH = 32
PARTS = ("train", "calibration", "validation", "test")
SHARES = (0.5, 0.15, 0.1, 0.25)  # of data that come as one, in the order of PARTS


class UnreadableError(InputError):
    """A sample that is damaged."""


@dataclass(frozen=True)
class Table:
    """What there is to read. read: (index) -> (inputs, target), the target None without labels.

    names: of the samples, for messages. groups: samples of one group stay in one part. parts: by
    sample, where the data themselves say so. classes: their names.
    """

    read: Callable[[int], tuple[Any, Any]]
    names: Sequence[str]
    labeled: bool
    groups: Sequence[Any] | None = None
    parts: Sequence[str] | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class Samples:
    """Samples of a table in batches: (inputs, targets), or inputs alone without labels.

    The order is `indices`, the same each time; with `generator` each pass has an order of its own,
    drawn from it. A damaged sample is left out and named once; no batch is empty.
    strict: it is an error instead.
    """

    table: Table
    indices: np.ndarray
    batch: int = BATCH
    generator: torch.Generator | None = None
    strict: bool = False
    skipped: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch)

    @property
    def labeled(self) -> bool:
        return self.table.labeled

    def head(self, count: int) -> Samples:
        """The first `count` samples, in a fixed order."""
        return replace(self, indices=self.indices[:count], generator=None)

    def __iter__(self) -> Iterator[Any]:
        order = self.indices
        if self.generator is not None:
            order = order[torch.randperm(len(order), generator=self.generator).numpy()]
        for start in range(0, len(order), self.batch):
            found = [v for i in order[start : start + self.batch] if (v := self._read(int(i)))]
            if found:
                yield self._stacked(found)

    def _read(self, index: int) -> tuple[Any, Any] | None:
        if index in self.skipped:
            return None
        try:
            return self.table.read(index)
        except UnreadableError as error:
            if self.strict:
                raise
            self.skipped.add(index)
            warnings.warn(f"left out, {len(self.skipped)} so far: {error}", stacklevel=2)
            if len(self.skipped) == len(self.indices):
                raise InputError(f"none of {len(self.indices)} samples can be read") from error
            return None

    def _stacked(self, found: list[tuple[Any, Any]]) -> Any:
        inputs = _joined([v for v, _ in found], self.table)
        if not self.labeled:
            return inputs
        targets = [t for _, t in found]
        plain = all(isinstance(t, (int, np.integer)) for t in targets)
        return inputs, torch.tensor(targets) if plain else _joined(targets, self.table)


def _joined(values: list[Any], table: Table) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {k: _joined([v[k] for v in values], table) for k in first}
    if isinstance(first, tuple):
        return tuple(_joined([v[i] for v in values], table) for i in range(len(first)))
    arrays = [np.asarray(v) for v in values]
    if len({a.shape for a in arrays}) > 1:
        shapes = sorted({str(a.shape) for a in arrays})
        raise InputError(
            f"samples have other shapes ({', '.join(shapes[:4])}) and make no batch; bring them to "
            "one size, or use batch=1"
        )
    return torch.from_numpy(np.ascontiguousarray(np.stack(arrays)))


def split(
    table: Table, part: str | None, batch: int, seed: int, strict: bool
) -> dict[str, Samples]:
    """The parts of a table. Where the data say nothing of parts, each sample goes where a hash of
    its group, or of its name, and the seed puts it: a sample that is added moves no other.

    part: all samples are this part's, and of the others there are none.
    """
    order = np.random.default_rng(seed).permutation(len(table))
    found: dict[str, list[int]] = {name: [] for name in PARTS}
    shares = np.cumsum(SHARES)
    for i in order:
        found[part or _part(table, int(i), seed, shares)].append(int(i))
    if part is None and table.parts is None:
        _fill(found, table)
    kept = {}
    for name, indices in found.items():
        if not indices:
            continue
        generator = torch.Generator().manual_seed(seed) if name == "train" else None
        kept[name] = Samples(table, np.array(indices), batch, generator, strict)
    return kept


def _part(table: Table, index: int, seed: int, shares: np.ndarray) -> str:
    if table.parts is not None:
        return table.parts[index]
    group = table.names[index] if table.groups is None else table.groups[index]
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return PARTS[min(int(np.searchsorted(shares, place, side="right")), len(PARTS) - 1)]


def _fill(found: dict[str, list[int]], table: Table) -> None:
    """Few samples leave parts empty by chance: each that is takes one of the largest."""
    if table.groups is not None and len(set(table.groups)) < len(PARTS):
        return
    for name in PARTS:
        largest = max(PARTS, key=lambda n: len(found[n]))
        if found[name] or len(found[largest]) < 2:
            continue
        moved = found[largest][-1]
        group = None if table.groups is None else table.groups[moved]
        together = [
            i
            for i in found[largest]
            if i == moved or (group is not None and _same(table, i, group))
        ]
        if len(together) < len(found[largest]):
            found[name] = together
            found[largest] = [i for i in found[largest] if i not in together]


def _same(table: Table, index: int, group: Any) -> bool:
    return table.groups is not None and table.groups[index] == group
