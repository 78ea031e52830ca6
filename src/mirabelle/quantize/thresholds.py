"""Thresholds: where to clip, from a histogram of what is to be quantised. Each is a function (histogram, levels) -> threshold.

`levels` is the number of steps between 0 and the threshold: 127 for a signed byte, 255 for an unsigned one. Thresholds are in the units of x,
in (0, maximum]; a histogram of zeros gives 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mirabelle.quantize.observe import Histogram


def absmax(histogram: Histogram, levels: int) -> float:
    """The largest absolute value: nothing is clipped. Jacob et al. 2018, section 3."""
    return histogram.maximum


def percentile(histogram: Histogram, levels: int, share: float = 0.9999) -> float:
    """The value that the fraction `share` of all |x| does not exceed (to the upper edge of its bin). Wu et al. 2020, section 3.3."""
    _, counts = histogram.absolute()
    if histogram.maximum == 0:
        return 0.0
    index = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
    return min(histogram.maximum, (index + 1) * histogram.reach / len(counts))


def mse(histogram: Histogram, levels: int) -> float:
    """The threshold that minimises the squared error of rounding and clipping together.

    Rounding: step^2 / 12 for each value inside, which holds where values are spread over many steps; values nearer to zero than half a step
    become zero and are counted with their own square. Clipping: (|x| - threshold)^2. Searches 512 thresholds in equal ratios from
    maximum / 64 to maximum.
    Banner et al. 2019 (ACIQ), section 3, on the histogram instead of a prior.
    """
    if histogram.maximum == 0:
        return 0.0
    x, counts = histogram.absolute()
    best, least = histogram.maximum, np.inf
    for threshold in histogram.maximum * np.geomspace(1 / 64, 1, 512)[::-1]:
        step = threshold / levels
        rounded = np.where(x < step / 2, x**2, step**2 / 12)
        error = float((counts * np.where(x <= threshold, rounded, (x - threshold) ** 2)).sum())
        if error < least:
            best, least = float(threshold), error
    return best


def entropy(histogram: Histogram, levels: int) -> float:
    """The threshold whose quantised distribution diverges least from the clipped one (Kullback-Leibler).

    Migacz 2017 (8-bit inference with TensorRT): the clipped mass goes to the last bin of the reference; the candidate merges the bins inside
    the threshold into `levels` + 1 steps and spreads each over its non-empty bins. The bin at zero is left out of both: rectified activations
    would drown the rest.
    At most one value in a thousand is clipped: the divergence does not see how far away a clipped value was, and where one value dominates
    (a constant background) the search alone would clip at that value.
    """
    _, counts = histogram.absolute()
    if histogram.maximum == 0:
        return 0.0
    counts = counts.astype(np.float64)
    start = int(np.searchsorted(np.cumsum(counts), 0.999 * counts.sum())) + 1
    counts[0] = 0
    used = int(np.ceil(histogram.maximum / histogram.reach * len(counts)))
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
        # Mass where the candidate has none cannot be represented: a tiny probability stands for it, as in smoothing.
        divergence = float((p[both] * np.log(p[both] / q[both])).sum() + (p[(p > 0) & (q == 0)] * np.log(p[(p > 0) & (q == 0)] / 1e-7)).sum())
        if divergence < least:
            best, least = stop, divergence
    return min(histogram.maximum, best * histogram.reach / len(counts))


THRESHOLDS: dict[str, Callable[[Histogram, int], float]] = {"absmax": absmax, "percentile": percentile, "mse": mse, "entropy": entropy}
