"""Allocation: how many units each layer keeps. A function (scores by layer, shapes of the weights,
density, least) -> units kept of each layer.

density: the share of all units that is kept; the counts sum to it. least: the share of every layer
that stays in any case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from mirabelle.base.errors import InputError

Scores = Mapping[str, torch.Tensor]
Shapes = Mapping[str, Sequence[int]]


def by_threshold(scores: Scores, shapes: Shapes, density: float, least: float) -> dict[str, int]:
    """One order of the units of all layers: those with the largest scores stay; of each layer at
    least the share `least`.
    """
    floors = {n: _floor(s.numel(), least) for n, s in scores.items()}
    # What a layer keeps in any case stands before everything else in the order.
    raised = {n: s.flatten().clone() for n, s in scores.items()}
    for name, values in raised.items():
        values[values.argsort(descending=True, stable=True)[: floors[name]]] = math.inf
    order = torch.cat(list(raised.values())).argsort(descending=True, stable=True)
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order[: max(_total(scores, density), sum(floors.values()))]] = True
    parts = kept.split([s.numel() for s in scores.values()])
    return {name: int(part.sum()) for name, part in zip(scores, parts)}


def lamp(scores: Scores, shapes: Shapes, density: float, least: float) -> dict[str, int]:
    """One order by the share that a unit's squared score has in its own and all larger ones of its
    layer, so that no layer is emptied before the others.

    Lee et al. 2021 (LAMP), eq. 4, there with magnitudes. Zeros from before (scores of minus
    infinity) stay last.
    """
    return by_threshold({n: _relative(s) for n, s in scores.items()}, shapes, density, least)


def _relative(scores: torch.Tensor) -> torch.Tensor:
    ordered, index = scores.flatten().sort(stable=True)
    squares = ordered.clamp_min(0).square()
    rest = squares.flip(0).cumsum(0).flip(0)
    shares = torch.where(ordered == -torch.inf, ordered, squares / rest.clamp_min(1e-300))
    return torch.empty_like(ordered).index_copy_(0, index, shares)


def uniform(scores: Scores, shapes: Shapes, density: float, least: float) -> dict[str, int]:
    """The same share of every layer."""
    return shares(scores, dict.fromkeys(scores, 1.0), density, least)


def erk(scores: Scores, shapes: Shapes, density: float, least: float) -> dict[str, int]:
    """Shares in proportion to (inputs + outputs + kernel sizes) / (inputs * outputs * kernel
    sizes): small layers keep more.

    Erdős-Rényi-Kernel: Evci et al. 2020 (RigL), section 3; layers that would keep more than all are
    kept whole, and the others share the rest.
    """
    return shares(
        scores, {n: sum(shapes[n]) / math.prod(shapes[n]) for n in scores}, density, least
    )


def shares(
    scores: Scores, weights: Mapping[str, float], density: float, least: float
) -> dict[str, int]:
    """Counts in proportion to `weights` times the layers' sizes, none above a layer's size or below
    its floor, that sum to the total.
    """
    sizes = {n: s.numel() for n, s in scores.items()}
    low, high = {n: _floor(size, least) for n, size in sizes.items()}, sizes
    total = min(max(_total(scores, density), sum(low.values())), sum(high.values()))
    fixed: dict[str, int] = {}
    while True:
        free = [n for n in sizes if n not in fixed]
        left = total - sum(fixed.values())
        unit = left / max(1e-30, sum(weights[n] * sizes[n] for n in free))
        wanted = {n: unit * weights[n] * sizes[n] for n in free}
        above, below = (
            [n for n in free if wanted[n] > high[n]],
            [n for n in free if wanted[n] < low[n]],
        )
        # Of the two kinds of limits, the one that takes more away from the others comes first; what
        # it leaves may satisfy the other.
        excess, lack = (
            sum(wanted[n] - high[n] for n in above),
            sum(low[n] - wanted[n] for n in below),
        )
        if not above and not below:
            return fixed | _rounded(wanted, left)
        fixed |= {n: high[n] for n in above} if excess >= lack else {n: low[n] for n in below}


def _rounded(wanted: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers with this sum, each less than 1 from what was wanted: the largest remainders
    are rounded up.
    """
    found = {n: math.floor(v) for n, v in wanted.items()}
    for name in sorted(wanted, key=lambda n: found[n] - wanted[n])[: total - sum(found.values())]:
        found[name] += 1
    return found


def _floor(size: int, least: float) -> int:
    return min(size, max(1, math.ceil(least * size - 1e-9)))


def _total(scores: Scores, density: float) -> int:
    return round(density * sum(s.numel() for s in scores.values()))


def check_reachable(scores: Scores, density: float, least: float) -> None:
    """`InputError` where the floors of all layers are more than the total."""
    lowest = sum(_floor(s.numel(), least) for s in scores.values())
    if lowest > max(_total(scores, density), 0):
        size = sum(s.numel() for s in scores.values())
        raise InputError(
            f"sparsity={1 - density:g} leaves less than the share least={least:g} of every "
            f"layer: at most {1 - lowest / size:.6g} can be reached; lower least"
        )


ALLOCATIONS: dict[str, Callable[[Scores, Shapes, float, float], dict[str, int]]] = {
    "global": by_threshold,
    "lamp": lamp,
    "uniform": uniform,
    "erk": erk,
}
