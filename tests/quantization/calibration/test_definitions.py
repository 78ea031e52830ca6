"""Thresholds against their definitions, bin by bin, in plain loops that share no code with them."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mirabelle.quantization.calibration import thresholds
from mirabelle.quantization.calibration.thresholds import (
    AROUND_ZERO,
    RANGES,
    ROWS,
    THRESHOLDS,
    rules_for,
)


@dataclass
class Few:
    """A histogram of so few bins that each can be looked at; the first half is below zero."""

    counts: np.ndarray
    reach: float
    low: float
    high: float

    @property
    def maximum(self) -> float:
        return max(-self.low, self.high)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def absolute(self) -> tuple[float, np.ndarray]:
        half = len(self.counts) // 2
        return self.reach, self.counts[half:] + self.counts[:half][::-1]


def few(seed: int, bins: int = 64) -> Few:
    """Bell-shaped counts with holes, and single values far out on either side."""
    rng = np.random.default_rng(seed)
    place = np.arange(bins) - bins / 2 + 0.5
    counts = rng.poisson(400 * np.exp(-((place / (bins / 9)) ** 2))) * (rng.random(bins) > 0.2)
    counts[[0, 2, bins - 3, bins - 1]] = 1
    width = 2 * 4.0 / bins
    return Few(counts.astype(np.int64), 4.0, -4.0 + 0.3 * width, 4.0 - 0.4 * width)


def centers(h: Few) -> list[float]:
    bins = len(h.counts)
    return [(i - bins / 2 + 0.5) * 2 * h.reach / bins for i in range(bins)]


def error(h: Few, low: float, high: float, step: float, weight: float) -> float:
    """As the docstring of `mse` has it, one bin after another."""
    total = 0.0
    for center, count in zip(centers(h), h.counts.tolist(), strict=True):
        if center <= low or center > high:
            end = low if center <= low else high
            total += weight * count * (center - end) ** 2
        elif -step / 2 < center <= step / 2:
            total += count * center**2
        else:
            total += count * step**2 / 12
    return total


@pytest.mark.parametrize("name, weight", [("mse", 1.0), ("weighted-mse", 4.0)])
@pytest.mark.parametrize("levels", [1, 3, 15, 127])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_least_squared_error_of_512(name, weight, levels, seed):
    h = few(seed)
    tried = [h.maximum * 64 ** (-k / 511) for k in range(512)]
    errors = [error(h, -t, t, t / levels, weight) for t in tried]
    found = THRESHOLDS[name](h, levels)
    assert found == pytest.approx(tried[int(np.argmin(errors))], rel=1e-9)


@pytest.mark.parametrize("name, weight", [("mse", 1.0), ("weighted-mse", 4.0)])
@pytest.mark.parametrize("steps", [7, 63])
def test_the_least_squared_error_of_pairs_of_ends(name, weight, steps):
    h = few(2, bins=24)
    ratios, least, best = [64 ** (-k / 127) for k in range(128)], math.inf, (0.0, 0.0)
    for a in ratios:
        for b in ratios:
            step = (h.high * b - h.low * a) / steps
            zero = round(-h.low * a / step)
            now = error(h, -zero * step, (steps - zero) * step, step, weight)
            if now < least * (1 - 1e-12):
                least, best = now, (h.low * a, h.high * b)
    assert RANGES[name](h, steps) == pytest.approx(best, rel=1e-9)


def divergence(counts: list[float], stop: int, levels: int) -> float | None:
    """Of the first `stop` bins, quantized to `levels` + 1 steps, from all; by Migacz's recipe."""
    reference = [0.0, *counts[1:stop]]
    reference[-1] += sum(counts[stop:])
    groups: dict[int, list[int]] = {}
    for i in range(stop):
        groups.setdefault(min(i * (levels + 1) // stop, levels), []).append(i)
    candidate = [0.0] * stop
    for members in groups.values():
        filled = [i for i in members if i and counts[i] > 0]
        for i in filled:
            candidate[i] = sum(counts[j] for j in filled) / len(filled)
    if not sum(reference) or not sum(candidate):
        return None
    total = 0.0
    for p, q in zip(reference, candidate, strict=True):
        p, q = p / sum(reference), q / sum(candidate)
        if p > 0:
            total += p * math.log(p / (q or 1e-7))
    return total


def inside(counts: list[float], used: int, levels: int) -> int:
    """How many bins are inside the threshold of the least divergence."""
    covered, start = 0.0, len(counts)
    for i, count in enumerate(counts):
        covered += count
        if covered >= 0.999 * sum(counts):
            start = i + 1
            break
    best, least = used, math.inf
    for stop in range(min(max(levels + 1, start), used), used + 1, max(1, used // 256)):
        now = divergence(counts, stop, levels)
        if now is not None and now < least - 1e-12:
            best, least = stop, now
    return best


@pytest.mark.parametrize("levels", [1, 3, 7, 31])
@pytest.mark.parametrize("seed", range(4))
def test_the_least_divergence(levels, seed):
    rng = np.random.default_rng(seed)
    counts = np.sort(rng.geometric(0.02, 60))[::-1] * (rng.random(60) > 0.3)
    counts[40:] = rng.integers(0, 2, 20) if seed % 2 else 0
    used = 52 if seed < 2 else 60
    counts[used:] = 0
    found = thresholds._least_divergence(counts, used, levels)
    expected = inside(values := counts.astype(float).tolist(), used, levels)
    same = divergence(values, found, levels) == pytest.approx(divergence(values, expected, levels))
    assert found == expected or (same and not counts[expected:found].any())  # a tie


def test_the_divergence_is_looked_at_in_steps_where_bins_are_many():
    counts = (2000 / (1 + np.arange(600)) ** 1.2).astype(np.int64)
    assert thresholds._least_divergence(counts, 600, 3) == inside(
        counts.astype(float).tolist(), 600, 3
    )


@pytest.mark.parametrize("levels", [7, 15, 30])
def test_no_fewer_bins_than_levels_are_inside(levels):
    """Of which nearly all are in the first five, so that few would do."""
    counts = np.ones(40, np.int64)
    counts[:5] = 100_000
    found = thresholds._least_divergence(counts, 40, levels)
    assert found == inside(counts.astype(float).tolist(), 40, levels) >= levels + 1


def test_a_distribution_of_zeros_alone_has_nothing_to_clip():
    counts = np.zeros(40, np.int64)
    counts[0] = 9
    assert thresholds._least_divergence(counts, 30, 7) == 30


def test_entropy_takes_the_upper_edge_of_the_last_bin_inside():
    h = few(3)
    _, counts = h.absolute()
    used = math.ceil(h.maximum / h.reach * len(counts))
    bins = inside(counts.astype(float).tolist(), used, 7)
    assert thresholds.entropy(h, 7) == min(h.maximum, bins * h.reach / len(counts))


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_entropy_on_either_side(seed):
    """The upper end first, with all that is below; then the lower one, down from there."""
    h = few(seed)
    counts, width = h.counts.astype(float).tolist(), 2 * h.reach / 64
    first, last = (math.floor(v / width) + 32 for v in (h.low, h.high))
    high = first + inside(counts[first:], last + 1 - first, 15)
    low = high - inside(counts[:high][::-1], high - first, 15)
    expected = max((low - 32) * width, h.low), min((high - 32) * width, h.high)
    assert thresholds.entropy_range(h, 15) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 0.9999])
def test_percentiles_leave_out_what_they_say(share):
    h = few(6)
    _, counts = h.absolute()
    index = next(i for i in range(32) if counts[: i + 1].sum() >= share * counts.sum())
    assert thresholds.percentile(h, 127, share) == min(h.maximum, (index + 1) * h.reach / 32)
    outside = (1 - share) / 2 * h.total
    low = next(i for i in range(64) if h.counts[: i + 1].sum() > outside)
    high = next(i for i in range(64) if h.counts[: i + 1].sum() >= h.total - outside)
    expected = max(h.low, (low - 32) / 8), min(h.high, (high + 1 - 32) / 8)
    assert thresholds.percentile_range(h, 255, share) == expected


def test_percentiles_leave_out_one_in_ten_thousand():
    """Of 9998 values in one bin and two far out, one on each side may go, and two upwards."""
    h = Few(np.array([1, 0, 0, 0, 0, 9998, 0, 1]), 4.0, -3.5, 3.5)
    assert thresholds.percentile(h, 127) == 3.5  # 9998 are less than 9999
    h.counts[0], h.counts[5] = 0, 9999
    assert thresholds.percentile(h, 127) == 2.0
    h.counts[5] = 29999
    assert thresholds.percentile_range(h, 255) == (0.0, 2.0)


@pytest.mark.parametrize("levels", [0.5, 1, 2, 7.5, 127, 255, 32767])
def test_closed_forms_solve_their_equations(levels):
    r = thresholds._laplace_ratio(levels)
    assert r * math.exp(r) == pytest.approx(12 * levels**2, rel=1e-9)
    r = thresholds._gauss_ratio(levels)
    tail = math.exp(-r * r / 2) / math.sqrt(2 * math.pi) - r * math.erfc(r / math.sqrt(2)) / 2
    assert 24 * levels**2 * tail == pytest.approx(r, rel=1e-6)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("center", [0.0, 0.3])
def test_mean_powers_by_hand(power, center):
    """Bins at -2.5, -1.5, ..., 2.5; around zero the two beside it do not count."""
    h = Few(np.array([5, 1, 4, 2, 3, 1]), 3.0, -2.9, 2.9)
    beside = [] if center == 0 else [-0.5] * 4 + [0.5] * 2
    values = [-2.5] * 5 + [-1.5] + beside + [1.5] * 3 + [2.5]
    expected = sum(abs(v - center) ** power for v in values) / len(values)
    assert thresholds._mean_power(h, power, center) == pytest.approx(expected)
    zeros = Few(np.array([0, 0, 5, 0]), 2.0, 0.0, 0.0)
    assert thresholds._mean_power(zeros, power, 0.0) == 0.0


@pytest.mark.parametrize("steps", [4, 16])
def test_closed_forms_on_either_side_of_the_mean(steps):
    """From the ten values themselves; around zero those beside it do not count, so b = σ = 1.5."""
    h = Few(np.array([1, 2, 2, 5]), 2.0, -50.0, 50.0)
    values = np.array([-1.5, -0.5, -0.5, 0.5, 0.5, 1.5, 1.5, 1.5, 1.5, 1.5])
    mean, b, sigma = values.mean(), np.abs(values - values.mean()).mean(), values.std()
    for name, half in (
        ("laplace", thresholds._laplace_ratio(steps / 2) * b),
        ("gauss", thresholds._gauss_ratio(steps / 2) * sigma),
    ):
        assert RANGES[name](h, steps) == pytest.approx((mean - half, mean + half))
    level = steps // 2
    assert thresholds.laplace(h, level) == pytest.approx(thresholds._laplace_ratio(level) * 1.5)
    assert thresholds.gauss(h, level) == pytest.approx(thresholds._gauss_ratio(level) * 1.5)


def test_ranges_hold_zero_and_no_more_than_was_seen():
    h = Few(np.array([0, 0, 0, 0, 0, 0, 3, 2]), 4.0, 2.1, 3.9)
    h.low = 0.0
    assert thresholds._inside(h, 2.0, 5.0) == (0.0, 3.9)
    h.low, h.high = -3.0, 0.0
    assert thresholds._inside(h, -7.0, -1.0) == (-3.0, 0.0)
    assert thresholds.absmax_range(h, 255) == (-3.0, 0.0) and thresholds.absmax(h, 127) == 3.0


@pytest.mark.parametrize("levels", [1, 7, 127])
def test_rows_try_96_thresholds(levels):
    rows = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[1, 0] = 30.0
    for row, found in zip(rows, ROWS["mse"](rows, levels), strict=True):
        tried = [float(row.abs().max()) * 16 ** (-k / 95) for k in range(96)]
        errors = []
        for threshold in tried:
            step = threshold / levels
            grid = [max(-levels, min(levels, round(float(v) / step))) * step for v in row]
            errors.append(sum((g - float(v)) ** 2 for g, v in zip(grid, row, strict=True)))
        assert float(found) == pytest.approx(tried[int(np.argmin(errors))], rel=1e-9)


def test_rules_are_those_of_the_grid():
    assert rules_for(True) is THRESHOLDS
    assert rules_for(False) == RANGES | AROUND_ZERO
