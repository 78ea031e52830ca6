"""Streaming statistics of activations: memory does not grow with the calibration set."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from mirabelle.base.errors import InputError

BINS = 2048
# Values of one sample that are counted in a histogram: 300 samples make ten million, and the rest
# would only cost time. The extremes are those of all values.
COUNTED = 1 << 15


@dataclass
class Histogram:
    """Counts of a signed quantity over 2 * BINS equal bins of [-reach, reach], in the quantity's
    units.

    The reach is a power of two above every value. It doubles when a value falls outside:
    neighboring bins merge in pairs. Both the bins' edges and the arithmetic that finds a value's
    bin are exact, so that the order of the data and its batches make no difference.

    axis: the dimension whose indices are channels, of which more is wanted: `channels`, the least
    and the largest value of each, and `means`.
    rectified: no value is below zero.
    """

    reach: float = 0.0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(2 * BINS, dtype=np.int64))
    low: float = 0.0
    high: float = 0.0
    axis: int | None = None
    rectified: bool = False
    channels: tuple[np.ndarray, np.ndarray] | None = None
    sums: np.ndarray | None = None
    summed: int = 0

    def add(self, values: torch.Tensor, place: str = "a tensor") -> None:
        """Counts `values`, whose first dimension is samples: all of them, or `COUNTED` or so of
        each sample. NaN and infinity raise `InputError` with the place.
        """
        if values.numel() == 0:
            return
        values, axis = _as_it_lies(values.detach().float(), self.axis)
        own = None
        if axis is None:
            low, high = (float(v) for v in values.aminmax())
        else:
            highs = _along(torch.amax, values, axis)
            own = (
                np.zeros_like(highs) if self.rectified else _along(torch.amin, values, axis),
                highs,
            )
            low, high = float(own[0].min()), float(highs.max())
            sums = _along(torch.sum, values, axis).astype(np.float64)
            self.sums = sums if self.sums is None else self.sums + sums
            self.summed += values.numel() // len(sums)
        largest = max(-low, high)
        if not np.isfinite([low, high]).all():
            raise InputError(
                f"{place} holds NaN or infinite values on the calibration data; look for them "
                "in the data or in the weights before it"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        if own is not None:
            self.channels = (
                own
                if self.channels is None
                else (np.minimum(self.channels[0], own[0]), np.maximum(self.channels[1], own[1]))
            )
        if largest == 0.0 and self.reach == 0.0:
            self.counts[BINS] += _thinned(values).numel()
            return
        if self.reach == 0.0:
            zeros = self.counts[BINS]
            # Not below 2^-100, where one over the bins' width would leave float32.
            self.reach = 2.0 ** max(math.frexp(largest)[1], -100)
            self.counts[:] = 0
            self.counts[BINS] = zeros
        while largest >= self.reach:
            self._double()
        bins = (_thinned(values) * (BINS / self.reach)).floor_().add_(BINS).to(torch.int32)
        self.counts += torch.bincount(bins, minlength=2 * BINS).cpu().numpy()

    def stretch(self, factor: float) -> None:
        """Takes the extremes for `factor` (at least 1) times as far from zero as they were seen."""
        self.low, self.high = self.low * factor, self.high * factor
        if self.channels is not None:
            low, high = self.channels
            self.channels = (low * factor, high * factor)
        while 0 < self.reach <= self.maximum:
            self._double()

    def _double(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(1)
        self.counts[:] = 0
        self.counts[BINS // 2 : BINS // 2 + BINS] = merged
        self.reach *= 2

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def means(self) -> np.ndarray | None:
        """(C,) of each channel; None without an axis."""
        return None if self.sums is None else self.sums / max(1, self.summed)

    @property
    def maximum(self) -> float:
        """The largest absolute value seen."""
        return max(-self.low, self.high)

    @property
    def signed(self) -> bool:
        return self.low < 0

    def absolute(self) -> tuple[np.ndarray, np.ndarray]:
        """Bin centers and counts of the absolute value, over [0, reach]."""
        counts = self.counts[BINS:] + self.counts[:BINS][::-1]
        return (np.arange(BINS) + 0.5) * self.reach / BINS, counts

    def summary(self, bins: int = 96) -> dict:
        """For reports: counts over `bins` equal bins of [low, high], each bin of the histogram
        counted where its center falls.
        """
        low, high = (
            (self.low, self.high) if self.high > self.low else (self.low - 0.5, self.high + 0.5)
        )
        centers = (np.arange(2 * BINS) - BINS + 0.5) * self.reach / BINS
        counts, _ = np.histogram(
            np.clip(centers, low, high), bins=bins, range=(low, high), weights=self.counts
        )
        return {"low": low, "high": high, "counts": [int(c) for c in counts]}


def _as_it_lies(values: torch.Tensor, axis: int | None) -> tuple[torch.Tensor, int | None]:
    """The values with their dimensions after the first in the order in which they lie in memory,
    and where `axis` has come.
    """
    order = (
        [0, *sorted(range(1, values.ndim), key=lambda d: -values.stride(d))] if values.ndim else []
    )
    return values.permute(order), None if axis is None else order.index(axis % values.ndim)


def _along(reduce: Callable, values: torch.Tensor, axis: int) -> np.ndarray:
    """The extreme or the sum of each channel. Where channels lie innermost one dimension at a
    time, for which torch takes a tenth of the time.
    """
    others = [d for d in range(values.ndim) if d != axis]
    for dims in others if axis == values.ndim - 1 else [others]:
        values = reduce(values, dims, keepdim=True)
    return values.flatten().cpu().numpy()


def _thinned(values: torch.Tensor) -> torch.Tensor:
    """Every k-th value of each sample, flat; which ones does not depend on how samples are batched.
    k has no divisor in common with any dimension, so that no row, column or channel is left out.
    """
    each = values.numel() // len(values) if values.ndim else 1
    step = -(-each // COUNTED)
    if step <= 1:
        return values.flatten()
    while math.gcd(step, each) > 1:
        step += 1
    return values.reshape(len(values), -1)[:, ::step].flatten()
