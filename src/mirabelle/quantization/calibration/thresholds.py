"""Thresholds: where to clip, from a histogram of what is to be quantized.

`THRESHOLDS`, for symmetric grids: (histogram, levels) -> threshold. `levels` is the number of steps
between 0 and the threshold: 127 for a signed byte, 255 for an unsigned one. Thresholds are in the
units of x, in (0, maximum]; a histogram of zeros gives 0.

`RANGES`, for affine grids, by the same names: (histogram, steps) -> (low, high) with low <= 0 <=
high, inside of what was seen. `steps` is the number of steps from low
to high: 255 for a byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from mirabelle.quantization.calibration.histograms import Histogram

CLIPPED = 4.0  # times as much as the error of rounding, in `weighted_mse`


def absmax(histogram: Histogram, levels: int) -> float:
    """The largest absolute value: nothing is clipped. Jacob et al. 2018, section 3."""
    return histogram.maximum


def percentile(histogram: Histogram, levels: int, share: float = 0.9999) -> float:
    """The value that the fraction `share` of all |x| does not exceed (to the upper edge of its
    bin). Wu et al. 2020, section 3.3.
    """
    _, counts = histogram.absolute()
    if histogram.maximum == 0:
        return 0.0
    index = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
    return min(histogram.maximum, (index + 1) * histogram.reach / len(counts))


def mse(histogram: Histogram, levels: int) -> float:
    """The threshold that minimizes the squared error of rounding and clipping together, of 512 in
    equal ratios from maximum / 64 to maximum.

    Rounding: step^2 / 12 for each value inside, which holds where values are spread over many
    steps; values nearer to zero than half a step become zero and are counted with their own square.
    Clipping: (|x| - threshold)^2. Banner et al. 2019 (ACIQ), section 3, on the histogram instead of
    a prior.
    """
    return _least_error(histogram, levels, 1.0)


def weighted_mse(histogram: Histogram, levels: int) -> float:
    """`mse` with the error of clipping counted four times.

    Rounding errors of neighbors cancel in the sums that layers make of them; what clipping takes
    has one sign, and adds up.
    """
    return _least_error(histogram, levels, CLIPPED)


def _least_error(histogram: Histogram, levels: int, weight: float) -> float:
    if histogram.maximum == 0:
        return 0.0
    thresholds = histogram.maximum * np.geomspace(1 / 64, 1, 512)[::-1]
    errors = _squared_errors(histogram, -thresholds, thresholds, thresholds / levels, weight)
    return float(thresholds[errors.argmin()])


def _squared_errors(
    histogram: Histogram, low: np.ndarray, high: np.ndarray, step: np.ndarray, weight: float = 1.0
) -> np.ndarray:
    """The sum of the squared errors of clipping to [low, high], times `weight`, and of rounding to
    `step`, see `mse`; all three broadcast. From running sums, so each costs the same.
    """
    bins = len(histogram.counts)
    width = 2 * histogram.reach / bins
    centers = (np.arange(bins) - bins // 2 + 0.5) * width
    zero, one, two = (
        np.concatenate([[0.0], np.cumsum(histogram.counts * centers**p)]) for p in (0, 1, 2)
    )

    def below(value: np.ndarray) -> np.ndarray:
        """How many bins have their center at `value` or below it."""
        return np.clip(np.floor(value / width + 0.5).astype(np.int64) + bins // 2, 0, bins)

    i, j, k, l = below(low), below(high), below(-step / 2), below(step / 2)  # noqa: E741
    k, l = np.maximum(k, i), np.minimum(l, j)  # noqa: E741
    clipped = two[i] - 2 * low * one[i] + low**2 * zero[i]
    clipped = (
        clipped
        + (two[-1] - two[j])
        - 2 * high * (one[-1] - one[j])
        + high**2 * (zero[-1] - zero[j])
    )
    dead = np.maximum(l, k)
    return (
        weight * clipped
        + step**2 / 12 * (zero[j] - zero[i] - (zero[dead] - zero[k]))
        + (two[dead] - two[k])
    )


def entropy(histogram: Histogram, levels: int) -> float:
    """The threshold whose quantized distribution diverges least from the clipped one
    (Kullback-Leibler).

    Migacz 2017 (8-bit inference with TensorRT): the clipped mass goes to the last bin of the
    reference; the candidate merges the bins inside the threshold into `levels` + 1 steps and
    spreads each over its non-empty bins. The bin at zero is left out of both: rectified activations
    would drown the rest.
    At most one value in a thousand is clipped: the divergence does not see how far away a clipped
    value was, and where one value dominates (a constant background) the search alone would clip at
    that value.
    """
    _, counts = histogram.absolute()
    if histogram.maximum == 0:
        return 0.0
    used = int(np.ceil(histogram.maximum / histogram.reach * len(counts)))
    best = _least_divergence(counts, used, levels)
    return min(histogram.maximum, best * histogram.reach / len(counts))


def _least_divergence(counts: np.ndarray, used: int, levels: int) -> int:
    """How many of the bins, from the first on, are inside the threshold that `entropy` looks for;
    at most `used`.
    """
    counts = counts.astype(np.float64)
    start = int(np.searchsorted(np.cumsum(counts), 0.999 * counts.sum())) + 1
    counts[0] = 0
    best, least = used, np.inf
    for stop in range(min(max(levels + 1, start), used), used + 1, max(1, used // 256)):
        reference = counts[:stop].copy()
        reference[-1] += counts[stop:].sum()
        if reference.sum() == 0:
            continue
        steps = np.minimum((np.arange(stop) * (levels + 1)) // stop, levels)
        filled = counts[:stop] > 0
        mass = np.bincount(steps, counts[:stop], levels + 1)
        spread = np.bincount(steps, filled, levels + 1)
        candidate = np.where(filled, mass[steps] / np.maximum(spread[steps], 1), 0.0)
        if candidate.sum() == 0:
            continue
        p, q = reference / reference.sum(), candidate / candidate.sum()
        both = (p > 0) & (q > 0)
        # Mass where the candidate has none cannot be represented: a tiny probability stands for it,
        # as in smoothing.
        divergence = float(
            (p[both] * np.log(p[both] / q[both])).sum()
            + (p[(p > 0) & (q == 0)] * np.log(p[(p > 0) & (q == 0)] / 1e-7)).sum()
        )
        if divergence < least:
            best, least = stop, divergence
    return best


def laplace(histogram: Histogram, levels: int) -> float:
    """The best threshold, in squared error, for values from a Laplace distribution: t = b W(12
    levels²), with b the mean of |x| and W Lambert's function.

    From the error 2 b² exp(-t / b) + t² / (12 levels²). Zeros, which cost nothing, do not count:
    rectified activations are half of such a distribution. Banner et al. 2019 (ACIQ), section 3.1,
    eqs. 5 and 6: 2.83 b, 3.89 b, 5.03 b for levels 2, 4, 8.
    """
    return min(histogram.maximum, _laplace_ratio(levels) * _mean_power(histogram, 1, 0.0))


def gauss(histogram: Histogram, levels: int) -> float:
    """The best threshold, in squared error, for values from a normal distribution of mean 0: t = r
    σ, where 24 levels² (φ(r) - r Q(r)) = r; σ² is the mean of x².

    φ and Q are the density and the upper tail. Zeros do not count, as in `laplace`. Banner et al.
    2019 (ACIQ), section 3.2: 1.71 σ, 2.15 σ, 2.55 σ for levels 2, 4, 8.
    """
    return min(histogram.maximum, _gauss_ratio(levels) * math.sqrt(_mean_power(histogram, 2, 0.0)))


def _laplace_ratio(levels: float) -> float:
    """The r with r exp(r) = 12 levels², by Newton's method on its logarithm."""
    target = math.log(12 * levels**2)
    r = max(target, 1.0)
    for _ in range(50):
        r -= (r + math.log(r) - target) / (1 + 1 / r)
    return r


def _gauss_ratio(levels: float) -> float:
    """The r with 24 levels² (φ(r) - r Q(r)) = r, by bisection: the left side falls."""
    low, high = 0.0, 40.0
    for _ in range(100):
        r = (low + high) / 2
        tail = math.exp(-r * r / 2) / math.sqrt(2 * math.pi) - r * math.erfc(r / math.sqrt(2)) / 2
        low, high = (r, high) if 24 * levels**2 * tail > r else (low, r)
    return low


def _mean_power(histogram: Histogram, power: int, center: float) -> float:
    """The mean of |x - center|^power over the histogram, without the bins beside zero where the
    center is zero; 0 for a histogram of zeros.
    """
    bins = len(histogram.counts)
    counts = histogram.counts.astype(np.float64)
    if center == 0.0:
        counts[bins // 2 - 1 : bins // 2 + 1] = 0
    centers = (np.arange(bins) - bins // 2 + 0.5) * (2 * histogram.reach / bins)
    return float((counts * np.abs(centers - center) ** power).sum() / max(counts.sum(), 1.0))


def rows_absmax(rows: torch.Tensor, levels: int) -> torch.Tensor:
    """`absmax` of each row."""
    return rows.abs().amax(1)


def rows_mse(rows: torch.Tensor, levels: int) -> torch.Tensor:
    """`mse` of each row, with the true error of each of 96 thresholds in equal ratios from maximum
    / 16 to maximum: rows are short, and a histogram's estimate coarse.
    """
    most = rows.abs().amax(1, keepdim=True)
    best, least = most.clone(), torch.full_like(most, torch.inf)
    for ratio in np.geomspace(1, 1 / 16, 96):
        step = (most * ratio / levels).clamp_min(torch.finfo(rows.dtype).tiny)
        error = (
            ((rows / step).round().clamp(-levels, levels).mul_(step).sub_(rows))
            .square_()
            .sum(1, keepdim=True)
        )
        better = error < least
        best, least = torch.where(better, most * ratio, best), torch.where(better, error, least)
    return best[:, 0]


# --- affine
# --------------------------------------------------------------------------------------------------


def absmax_range(histogram: Histogram, steps: int) -> tuple[float, float]:
    """The smallest and the largest value."""
    return histogram.low, histogram.high


def percentile_range(
    histogram: Histogram, steps: int, share: float = 0.9999
) -> tuple[float, float]:
    """Leaves out half of 1 - `share` of the values on each side (to the edges of bins)."""
    total, bins = np.cumsum(histogram.counts), len(histogram.counts)
    outside = (1 - share) / 2 * total[-1]
    edges = (np.arange(bins + 1) - bins // 2) * (2 * histogram.reach / bins)
    low = float(edges[int(np.searchsorted(total, outside, side="right"))])
    return _inside(
        histogram, low, float(edges[int(np.searchsorted(total, total[-1] - outside)) + 1])
    )


def mse_range(histogram: Histogram, steps: int) -> tuple[float, float]:
    """The ends that minimize the squared error of rounding and clipping together, as for `mse`: the
    best pair of 128 on either side, in equal ratios.

    The grid moves until zero is one of its values, and the error is that of the grid as moved.
    """
    return _least_error_range(histogram, steps, 1.0)


def weighted_mse_range(histogram: Histogram, steps: int) -> tuple[float, float]:
    """`mse_range` with the error of clipping counted four times, as in `weighted_mse`."""
    return _least_error_range(histogram, steps, CLIPPED)


def _least_error_range(histogram: Histogram, steps: int, weight: float) -> tuple[float, float]:
    if histogram.maximum == 0:
        return 0.0, 0.0
    ratios = np.geomspace(1 / 64, 1, 128)[::-1]
    low, high = histogram.low * ratios[:, None], histogram.high * ratios[None, :]
    step = (high - low) / steps
    zero = np.rint(-low / step)
    errors = _squared_errors(histogram, -zero * step, (steps - zero) * step, step, weight)
    i, j = np.unravel_index(errors.argmin(), errors.shape)
    return float(low[i, 0]), float(high[0, j])


def entropy_range(histogram: Histogram, steps: int) -> tuple[float, float]:
    """`entropy` for the upper end with the lower one where it is, then for the lower end."""
    if histogram.maximum == 0:
        return 0.0, 0.0
    bins = len(histogram.counts)
    width = 2 * histogram.reach / bins
    first, last = (int(np.floor(v / width)) + bins // 2 for v in (histogram.low, histogram.high))
    high = first + _least_divergence(histogram.counts[first:], last + 1 - first, steps)
    low = high - _least_divergence(histogram.counts[:high][::-1], high - first, steps)
    return _inside(histogram, (low - bins // 2) * width, (high - bins // 2) * width)


def laplace_range(histogram: Histogram, steps: int) -> tuple[float, float]:
    """`laplace` on either side of the mean."""
    return _around_mean(
        histogram, lambda m: _laplace_ratio(steps / 2) * _mean_power(histogram, 1, m)
    )


def gauss_range(histogram: Histogram, steps: int) -> tuple[float, float]:
    """`gauss` on either side of the mean."""
    return _around_mean(
        histogram, lambda m: _gauss_ratio(steps / 2) * math.sqrt(_mean_power(histogram, 2, m))
    )


def _around_mean(histogram: Histogram, reach: Callable[[float], float]) -> tuple[float, float]:
    bins = len(histogram.counts)
    centers = (np.arange(bins) - bins // 2 + 0.5) * (2 * histogram.reach / bins)
    mean = float((histogram.counts * centers).sum() / max(1, histogram.total))
    return _inside(histogram, mean - reach(mean), mean + reach(mean))


def _inside(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    """Within what was seen, and around zero, which must be a value of the grid: padding and ReLU
    give it.
    """
    return min(0.0, max(float(low), histogram.low)), max(0.0, min(float(high), histogram.high))


THRESHOLDS: dict[str, Callable[[Histogram, int], float]] = {
    "absmax": absmax,
    "percentile": percentile,
    "mse": mse,
    "weighted-mse": weighted_mse,
    "entropy": entropy,
    "laplace": laplace,
    "gauss": gauss,
}
RANGES: dict[str, Callable[[Histogram, int], tuple[float, float]]] = {
    "absmax": absmax_range,
    "percentile": percentile_range,
    "mse": mse_range,
    "weighted-mse": weighted_mse_range,
    "entropy": entropy_range,
    "laplace": laplace_range,
    "gauss": gauss_range,
}


def _around_zero(rule: Callable[[Histogram, int], float]) -> Callable:
    """The grid of a rule of `THRESHOLDS`, as a range of an affine grid."""

    def ends(histogram: Histogram, steps: int) -> tuple[float, float]:
        if not histogram.signed:
            return 0.0, rule(histogram, steps)
        levels = steps // 2
        threshold = rule(histogram, levels)
        return -threshold * (levels + 1) / levels, threshold

    return ends


# What `threshold="auto"` chooses from besides `RANGES`: values that were not seen are clipped
# less where the shorter side has as much room as the longer.
AROUND_ZERO = {f"{name} around zero": _around_zero(rule) for name, rule in THRESHOLDS.items()}


def rules_for(symmetric: bool) -> Mapping[str, Callable]:
    """The table that names of rules are of: for grids around zero, or for affine ones."""
    return THRESHOLDS if symmetric else RANGES | AROUND_ZERO


# Rules that have a form of their own for the rows of a matrix (filters): (rows, levels) -> (rows,)
# thresholds. The others look at a histogram of each row.
ROWS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "absmax": rows_absmax,
    "mse": rows_mse,
}
