"""Values of a network that is executed with integers: on a grid, in accumulators, or still to be
added or put one after another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mirabelle.integers import arithmetic

Bounds = tuple[float, float]
FREE: Bounds = (-math.inf, math.inf)


@dataclass(frozen=True)
class Grid:
    scale: float
    zero_point: int
    low: int
    high: int

    def within(self, bounds: Bounds) -> tuple[int, int]:
        """The integers that a rectifier with these bounds leaves: rounding and clipping are
        monotone, so that either may come first.
        """
        low, high = (
            float(
                np.clip(
                    np.rint(np.float32(b) / np.float32(self.scale)) + self.zero_point,
                    self.low,
                    self.high,
                )
            )
            for b in bounds
        )
        return int(low), int(high)


@dataclass(frozen=True)
class Quantized:
    """Integers on a grid."""

    q: np.ndarray
    grid: Grid

    @property
    def centered(self) -> np.ndarray:
        return self.q - self.grid.zero_point

    def float(self) -> np.ndarray:
        return arithmetic.dequantize(self.q, self.grid.scale, self.grid.zero_point)


@dataclass(frozen=True)
class Accumulated:
    """int32 accumulators in units of `scale` (broadcast over them), and the rectifier that they are
    clipped by on the way to their grid.
    """

    q: np.ndarray
    scale: Any  # an array, or a number for all
    bounds: Bounds = FREE

    def float(self) -> np.ndarray:
        low, high = np.asarray(self.bounds, np.float32)
        return np.clip(arithmetic.dequantize(self.q, self.scale), low, high)

    def to(self, grid: Grid, fixed: bool) -> np.ndarray:
        low, high = grid.within(self.bounds)
        if not fixed:
            return arithmetic.requantize(
                self.q,
                np.asarray(self.scale, np.float32) / np.float32(grid.scale),
                grid.zero_point,
                low,
                high,
            )
        multiplier, shift = arithmetic.fixed_point(np.asarray(self.scale, np.float64) / grid.scale)
        return arithmetic.requantize_fixed(self.q, multiplier, shift, grid.zero_point, low, high)


@dataclass(frozen=True)
class Sum:
    """Two tensors of integers that are added when the grid of the result is known: both on grids,
    or one still in accumulators, which a convolution adds to the other before it rounds.
    """

    a: Quantized | Accumulated
    b: Quantized | Accumulated
    bounds: Bounds = FREE

    def float(self) -> np.ndarray:
        return np.clip(self.a.float() + self.b.float(), *np.asarray(self.bounds, np.float32))

    def to(self, grid: Grid, fixed: bool) -> np.ndarray:
        a, b, limits = self.a, self.b, grid.within(self.bounds)
        if not (isinstance(a, Quantized) and isinstance(b, Quantized)):
            if fixed:
                parts: list[tuple[np.ndarray, Any]] = [
                    (v.centered, v.grid.scale) if isinstance(v, Quantized) else (v.q, v.scale)
                    for v in (a, b)
                ]
                return arithmetic.sum_fixed(parts, grid.scale, grid.zero_point, *limits)
            return np.clip(
                arithmetic.quantize(self.float(), grid.scale, grid.zero_point, grid.low, grid.high),
                *limits,
            )
        if fixed:
            return arithmetic.add_fixed(
                a.centered,
                a.grid.scale,
                b.centered,
                b.grid.scale,
                grid.scale,
                grid.zero_point,
                *limits,
            )
        return arithmetic.add(
            a.q,
            a.grid.scale,
            a.grid.zero_point,
            b.q,
            b.grid.scale,
            b.grid.zero_point,
            grid.scale,
            grid.zero_point,
            *limits,
        )


@dataclass(frozen=True)
class Parts:
    """Tensors of integers that are put one after another when the grid of the result is known."""

    parts: tuple[Quantized, ...]
    axis: int

    def float(self) -> np.ndarray:
        return np.concatenate([p.float() for p in self.parts], self.axis)

    def to(self, grid: Grid, fixed: bool) -> np.ndarray:
        pairs = [(p.centered, p.grid.scale) for p in self.parts]
        return arithmetic.concatenate(
            pairs, self.axis, grid.scale, grid.zero_point, grid.low, grid.high, fixed
        )
