"""How certain the figure of an accumulator is: its value on samples that are drawn anew.

The state of most accumulators adds up over samples: sums, and lists that grow. Then the state of
each sample is kept apart, and a resample is a sum of these, with no network run again. Of at most
`UNITS` samples, or neighbors together, and `MEMORY` numbers; what an accumulator keeps in lists
is kept a second time. Other accumulators are run `DRAWS` times side by side, each on a random half
of the samples; halves vary about the whole as samples do about the truth (Owen & Eckles 2012,
section 3.3, "double or nothing").
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mirabelle.base import structures
from mirabelle.base.errors import InputError
from mirabelle.measurement.accumulator import figure, sound_figure

DRAWS = 100
UNITS = 1024
FEWEST_UNITS = 32
MEMORY = 2**24  # numbers
CLOSE = 1e-6
Path = tuple[Any, ...]


class OpaqueError(Exception):
    """The state of this accumulator does not add up."""


@dataclass
class Unit:
    """What some samples add to the state. numbers: by place; items: what they add to lists."""

    numbers: dict[Path, np.ndarray] = field(default_factory=dict)
    items: dict[Path, list[Any]] = field(default_factory=dict)
    count: int = 1

    def __add__(self, other: Unit) -> Unit:
        numbers = dict(self.numbers)
        for path, value in other.numbers.items():
            numbers[path] = numbers[path] + value if path in numbers else value
        items = {
            p: [*self.items.get(p, []), *other.items.get(p, [])]
            for p in dict.fromkeys([*self.items, *other.items])
        }
        return Unit(numbers, items, self.count + other.count)


def _places(state: Mapping, at: Path = ()) -> dict[Path, Any]:
    """The values in the attributes of an object, and in dicts among them, by place."""
    found: dict[Path, Any] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found |= _places(value, (*at, key))
        elif not callable(value) or isinstance(value, torch.nn.Module):
            found[(*at, key)] = value
    return found


def _number(value: Any) -> np.ndarray | None:
    if isinstance(value, torch.Tensor) and value.dtype is not torch.bool:
        value = value.detach().cpu().numpy()
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        return np.asarray(value, np.float64)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
        return value.astype(np.float64)
    return None


def _same(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except Exception:
        return False


def added(fresh: Any, after: Any) -> Unit:
    """What has been added to the state of `fresh` in `after`. Raises `OpaqueError`."""
    before, unit = _places(vars(fresh)), Unit()
    for path, value in _places(vars(after)).items():
        old = before.get(path)
        if isinstance(value, list):
            items = value[len(old) if isinstance(old, list) else 0 :]
            if items:
                unit.items[path] = items
        elif (number := _number(value)) is not None:
            start = _number(old)
            start = np.zeros(()) if start is None else start
            if start.ndim and start.shape != number.shape:
                raise OpaqueError
            if path not in before or not np.array_equal(number, start):
                unit.numbers[path] = number - start
        elif not _same(value, old):
            raise OpaqueError
    return unit


def merged(fresh: Any, pattern: Any, units: list[Unit], counts: np.ndarray) -> Any:
    """An accumulator in which each unit counts so many times. pattern: one that has been updated,
    for the types of its numbers.
    """
    result = copy.deepcopy(fresh)
    before, types = _places(vars(fresh)), _places(vars(pattern))
    for path in dict.fromkeys(p for u in units for p in u.numbers):
        total = sum(
            (c * u.numbers[path] for u, c in zip(units, counts) if c and path in u.numbers),
            start=np.zeros(()),
        )
        start = _number(before.get(path))
        _put(result, path, _typed(total + (0 if start is None else start), types.get(path)))
    for path in dict.fromkeys(p for u in units for p in u.items):
        items = [i for u, c in zip(units, counts) for _ in range(c) for i in u.items.get(path, [])]
        _put(result, path, [*(before.get(path) or []), *items])
    return result


def _typed(value: np.ndarray, like: Any) -> Any:
    if isinstance(like, torch.Tensor):
        return torch.as_tensor(value).to(like.dtype)
    if isinstance(like, np.ndarray):
        return value.astype(like.dtype)
    return type(like)(value) if isinstance(like, (int, float, np.number)) else value


def _put(accumulator: Any, path: Path, value: Any) -> None:
    place: Any = vars(accumulator)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value


class Resampled:
    """An accumulator over batches, and its value on resamples of them. Two networks that are scored
    on the same batches are resampled alike, so that their values can be compared in pairs.

    make: gives a fresh accumulator.
    """

    def __init__(self, make: Callable[[], Any], name: str, draws: int = DRAWS):
        self.make, self.name, self.wanted = make, name, draws
        self.whole, self.fresh = make(), make()
        self.pattern: Any = None
        self.units: list[Unit] = []
        self.stride = 1
        self.adds_up = self.by_sample = draws > 0
        self.halves: list[Any] = []
        self.random = np.random.default_rng(0)

    def add(self, output: Any, target: Any, size: int) -> None:
        """A batch of so many samples."""
        _update(self.whole, output, target)
        if not self.wanted:
            return
        if self.pattern is None:
            self._look(output, target, size)
        if self.adds_up:
            try:
                return self._keep(output, target, size)
            except OpaqueError:
                raise InputError(
                    f"the state of {self.name} changes its form between batches, so its interval "
                    "cannot be had; give a metric whose state is numbers, tensors and lists"
                ) from None
        self._halve(output, target, size)

    def _parts(self, output: Any, target: Any, size: int) -> list[tuple[Any, Any]]:
        if not self.by_sample:
            return [(output, target)]
        return [
            (
                structures.part(output, i, i + 1, size, "the output"),
                structures.part(target, i, i + 1, size),
            )
            for i in range(size)
        ]

    def _look(self, output: Any, target: Any, size: int) -> None:
        """By the first batch: can it be divided into samples, and do their states add up?"""
        self.pattern = self.whole
        wanted = self._value(copy.deepcopy(self.whole))  # computing may change it
        try:
            parts = self._parts(output, target, size)
            one_by_one = self.make()
            for part in parts:
                _update(one_by_one, *part)
            self.by_sample = _close(self._value(one_by_one), wanted)
        except Exception:  # of the user's code, which may not take a single sample
            self.by_sample = False
        try:
            units = [self._unit(*p) for p in self._parts(output, target, size)]
            together = merged(self.fresh, self.pattern, units, np.ones(len(units), int))
            self.adds_up = _close(self._value(together), wanted)
        except Exception:  # as above, or of a state that was put together wrongly
            self.adds_up = False
        if not self.adds_up:
            self.halves = [self.make() for _ in range(self.wanted)]

    def _value(self, accumulator: Any) -> float:
        """NaN where it cannot be computed."""
        try:
            return figure(accumulator.compute(), self.name)
        except InputError:
            raise
        except Exception:  # of a resample that lacks what the metric needs
            return math.nan

    def _unit(self, output: Any, target: Any) -> Unit:
        one = self.make()
        _update(one, output, target)
        return added(self.fresh, one)

    def _keep(self, output: Any, target: Any, size: int) -> None:
        for part in self._parts(output, target, size):
            unit = self._unit(*part)
            if self.units and self.units[-1].count < self.stride:
                self.units[-1] = self.units[-1] + unit
                continue
            self.units.append(unit)
            numbers = max(1, sum(v.size for v in unit.numbers.values()))
            if len(self.units) > max(FEWEST_UNITS, min(UNITS, MEMORY // numbers)):
                pairs = [self.units[i : i + 2] for i in range(0, len(self.units), 2)]
                self.units = [p[0] + p[1] if len(p) == 2 else p[0] for p in pairs]
                self.stride *= 2

    def _halve(self, output: Any, target: Any, size: int) -> None:
        taken = self.random.random((self.wanted, size if self.by_sample else 1)) < 0.5
        for half, mine in zip(self.halves, taken):
            rows = [int(i) for i in mine.nonzero()[0]]
            if rows and not self.by_sample:
                _update(half, output, target)
            elif rows:
                _update(
                    half,
                    structures.select(output, rows, size, "the output"),
                    structures.select(target, rows, size),
                )

    @property
    def value(self) -> float:
        return sound_figure(self.whole.compute(), self.name)

    def draws(self) -> np.ndarray:
        """The values on the resamples, (draws,); NaN where one cannot be computed."""
        if not self.adds_up:
            return np.array([self._value(h) for h in self.halves])
        n = len(self.units)
        chosen = self.random.multinomial(n, np.full(n, 1 / n), self.wanted)
        found = [self._value(merged(self.fresh, self.pattern, self.units, c)) for c in chosen]
        return np.array(found)


def _update(accumulator: Any, output: Any, target: Any) -> None:
    """With copies: it may write into what it gets, which is given to others too."""
    accumulator.update(*(structures.mapped(v, torch.Tensor.clone) for v in (output, target)))


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= CLOSE * max(1.0, abs(b))
