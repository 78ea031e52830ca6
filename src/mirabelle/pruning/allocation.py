"""Allocation: how many channels each group keeps, and which, for a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mirabelle.base.errors import InputError
from mirabelle.base.knapsack import Choice, Menus, least_loss
from mirabelle.channels.groups import Coupling, Group

Scores = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Macs:
    """The multiply-accumulates of one sample, as a function of the channels kept."""

    coupling: Coupling

    def __call__(self, kept: Mapping[str, int]) -> int:
        return self.coupling.macs(kept)

    def layer(self, number: int, kept: Mapping[str, Any]) -> Any:
        """Those of one of `coupling.costs`; an array where the width of one group is one."""
        return self.coupling.costs[number].left(kept, self.coupling.channels)


def step(group: Group, align: int) -> int:
    """So many channels of a group together make the sizes of its layers multiples of `align`: all
    that many, but fewer where one channel is several entries, as a head of attention is.
    """
    entries = math.gcd(*(s.index.shape[1] for s in group.with_role("out"))) or 1
    return align // math.gcd(align, entries)


def _limits(group: Group, align: int, least: float) -> tuple[int, int]:
    """The smallest count that a group may keep, aligned unless the group itself is smaller, and its
    whole size.
    """
    align = step(group, align)
    floor = max(1, round(least * group.channels))
    return min(group.channels, -(-floor // align) * align), group.channels


def aligned(count: int, group: Group, align: int, least: float) -> int:
    """The allowed count nearest to `count`: multiples of the group's `step`, and the group's own
    size, which need not be one.
    """
    low, high = _limits(group, align, least)
    align = step(group, align)
    nearest = (2 * count + align) // (2 * align) * align
    if high - count < abs(nearest - count):
        nearest = high
    return min(high, max(low, nearest))


def worth(
    coupling: Coupling, scores: Scores, cost: Callable[[dict[str, int]], float], align: int
) -> dict[str, torch.Tensor]:
    """Scores per unit of what one channel of the group costs, so that one order of all channels
    buys the most importance for the budget.

    Without it a channel of a late, cheap layer goes before one of an early layer that costs ten
    times as much. The cost is that of the last `align` channels together, or of the last block
    where `cost` is that of kernels that compute channels in wider ones (`LatencyModel.block`): they
    take hardly less for a part.
    """
    whole, found = cost({}), {}
    for g in coupling.groups:
        block = step(g, math.lcm(align, getattr(cost, "block", 1)))
        fewer = (g.channels - 1) // block * block or min(1, g.channels - 1)
        found[g.name] = scores[g.name] / max(
            1e-9 * whole, (whole - cost({g.name: fewer})) / (g.channels - fewer)
        )
    return found


def by_threshold(
    coupling: Coupling,
    scores: Scores,
    cost: Callable[[dict[str, int]], float],
    budget: float,
    align: int,
    least: float,
) -> dict[str, int]:
    """One global order of all channels: those under a threshold go, and the threshold is the
    highest that fits the budget.

    What alignment leaves of the budget is then spent block by block on the groups whose next
    channels score most.
    """
    values = torch.cat([scores[g.name] for g in coupling.groups]).unique()

    def counts(threshold: float) -> dict[str, int]:
        return {
            g.name: aligned(int((scores[g.name] >= threshold).sum()), g, align, least)
            for g in coupling.groups
        }

    low, high = 0, len(values)  # values[low:] keeps everything; past the end nothing but the floors
    while low < high:
        middle = (low + high) // 2
        if cost(counts(float(values[middle]))) <= budget:
            high = middle
        else:
            low = middle + 1
    kept = (
        counts(float(values[low]))
        if low < len(values)
        else {g.name: _limits(g, align, least)[0] for g in coupling.groups}
    )
    return _spend_rest(coupling, scores, cost, budget, align, kept)


def _spend_rest(
    coupling: Coupling,
    scores: Scores,
    cost: Callable[[dict[str, int]], float],
    budget: float,
    align: int,
    kept: dict[str, int],
) -> dict[str, int]:
    """Block by block the group whose next channels score most, as long as the cost fits. Costs rise
    with widths: a group that does not fit once is done.
    """
    ordered = {g.name: scores[g.name].sort(descending=True).values for g in coupling.groups}
    sizes = {g.name: (g.channels, step(g, align)) for g in coupling.groups}
    options: dict[str, tuple[float, str, int]] = {}

    def offer(name: str) -> None:
        (size, block), count = sizes[name], kept[name]
        more = min(size, (count // block + 1) * block)
        if more > count:
            options[name] = (float(ordered[name][count:more].sum()), name, more)

    for name in kept:
        offer(name)
    while options:
        _, name, more = max(options.values())
        del options[name]
        if cost({**kept, name: more}) <= budget:
            kept = {**kept, name: more}
            offer(name)
    return kept


def by_worth(
    coupling: Coupling,
    scores: Scores,
    cost: Callable[[dict[str, int]], float],
    budget: float,
    align: int,
    least: float,
) -> dict[str, int]:
    """`by_threshold` on importance per cost: right for scores in units of the loss, which say what
    a channel is worth whatever its layer.
    """
    return by_threshold(coupling, worth(coupling, scores, cost, align), cost, budget, align, least)


def uniform(
    coupling: Coupling,
    scores: Scores,
    cost: Callable[[dict[str, int]], float],
    budget: float,
    align: int,
    least: float,
) -> dict[str, int]:
    """The same share of every group, the largest that fits the budget."""
    for step in range(1000, -1, -1):
        kept = {
            g.name: aligned(round(g.channels * step / 1000), g, align, least)
            for g in coupling.groups
        }
        if cost(kept) <= budget:
            return _spend_rest(coupling, scores, cost, budget, align, kept)
    return {g.name: _limits(g, align, least)[0] for g in coupling.groups}


def knapsack(
    coupling: Coupling,
    scores: Scores,
    cost: Callable[[dict[str, int]], float],
    budget: float,
    align: int,
    least: float,
) -> dict[str, int]:
    """The widths that keep the most importance for the budget: the multiple-choice knapsack of
    `base/knapsack.py` over groups, begun at all channels and at the widths of `worth`.

    Nothing that keeps less than `worth` is returned. Widths are chosen by what each of them costs,
    so that costs may rise in steps, as where kernels compute channels in blocks.
    """
    widths = {g.name: widths_of(g, align, least) for g in coupling.groups}

    def kept(choice: Choice) -> dict[str, int]:
        return {name: int(w[choice[name]]) for name, w in widths.items()}

    def curve(choice: Choice, name: str) -> np.ndarray:
        return cost_curve(coupling, cost, kept(choice), name, widths[name])

    begun = by_worth(coupling, scores, cost, budget, align, least)
    start = {n: int(np.searchsorted(w, begun[n], "right")) - 1 for n, w in widths.items()}
    menus = Menus(
        {name: lost_with(scores[name], w) for name, w in widths.items()},
        lambda choice: cost(kept(choice)),
        curve,
    )
    return kept(least_loss(menus, budget, [start]))


def lost_with(scores: torch.Tensor, widths: np.ndarray) -> np.ndarray:
    """(widths,) the importance that goes when so many channels stay, the least important first."""
    lost = np.concatenate([[0.0], scores.sort().values.double().cumsum(0).numpy()])
    return lost[len(lost) - 1 - widths]


def widths_of(group: Group, align: int, least: float) -> np.ndarray:
    """The widths that a group may have, in order."""
    low, high = _limits(group, align, least)
    block = step(group, align)
    return np.array(sorted({low, high, *range(-(-low // block) * block, high, block)}))


def cost_curve(
    coupling: Coupling,
    cost: Callable[[dict[str, int]], float],
    kept: dict[str, int],
    name: str,
    widths: np.ndarray,
) -> np.ndarray:
    """What the group costs at each of its widths, the others' as they are, up to a constant. Costs
    that are sums over layers say what each of these takes (`Macs.layer`, `LatencyModel.layer`);
    parameters are products of widths, of degree two at most in one group, so three widths give all
    of them.
    """
    if (layer := getattr(cost, "layer", None)) is not None:
        return sum(
            (layer(i, {**kept, name: widths}) for i in coupling.along[name]), np.zeros(len(widths))
        )
    known = widths[[0, len(widths) // 2, -1]] if len(widths) > 2 else widths
    return np.polyval(
        np.polyfit(known, [cost({**kept, name: int(w)}) for w in known], len(known) - 1), widths
    )


ALLOCATIONS: dict[str, Callable[..., dict[str, int]]] = {
    "global": by_threshold,
    "worth": by_worth,
    "uniform": uniform,
    "knapsack": knapsack,
}


def check_feasible(
    coupling: Coupling,
    cost: Callable[[dict[str, int]], float],
    budget: float,
    whole: float,
    align: int,
    least: float,
    what: str,
) -> None:
    """`InputError` where even the floors of all groups cost more than the budget, with what could
    be reached.
    """
    lowest = cost({g.name: _limits(g, align, least)[0] for g in coupling.groups})
    if lowest > budget:
        finer = "" if align <= getattr(cost, "block", 1) else "align or "
        raise InputError(
            f"{what}={budget / whole:.3g} cannot be reached: with every group at its smallest "
            f"(align={align}, least={least:g}) "
            f"{lowest / whole:.3g} of the {what} stay; ask for more, or lower {finer}least, or "
            "shorten keep"
        )
