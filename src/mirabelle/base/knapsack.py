"""The multiple-choice knapsack: of every menu one entry, so that all together lose least within a
budget. By Lagrangian relaxation (Everett 1963), where costs need not add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SWEEPS = 8  # of all menus at one price, at most
BISECTIONS = 24  # of the price
DOUBLINGS = 60  # of the price, until the budget holds
EXCHANGES = 400  # single changes at the end, at most

Choice = dict[str, int]  # the entry that is taken of each menu


@dataclass(frozen=True)
class Menus:
    """losses: (entries,) by menu; they add up. cost: of a choice of all menus. curve: the costs of
    a choice with each entry of one menu in place of its own, up to a constant.
    """

    losses: Mapping[str, np.ndarray]
    cost: Callable[[Choice], float]
    curve: Callable[[Choice, str], np.ndarray]

    def loss(self, choice: Choice) -> float:
        return float(sum(losses[choice[name]] for name, losses in self.losses.items()))


def least_loss(menus: Menus, budget: float, starts: Sequence[Choice] = ()) -> Choice:
    """The choice that loses least of those found whose cost is at most `budget`; where none is that
    cheap, the cheapest found.

    At a price for the unit of cost each menu takes the entry whose loss and price together are
    least, given the others' entries, in turn until none changes; the price is bisected until the
    cost fits. Where costs add up each choice is exact, and what is found loses least of all choices
    of its cost (Everett 1963, theorem 1). What the budget still holds is then spent by single
    changes, the one that gains most for its cost first.

    starts: choices from which the search starts, besides the one that loses least.
    """
    free = {name: int(losses.argmin()) for name, losses in menus.losses.items()}
    if menus.cost(free) <= budget:
        return free
    found = [_improved(menus, _relaxed(menus, budget, start), budget) for start in (free, *starts)]
    fits = [c for c in found if menus.cost(c) <= budget]
    return min(fits, key=menus.loss) if fits else min(found, key=menus.cost)


def _relaxed(menus: Menus, budget: float, start: Choice) -> Choice:
    """The choice at the lowest price at which the budget holds; at the highest one where it never
    does.
    """
    worst = sum(float(losses.max() - losses.min()) for losses in menus.losses.values())
    low, high, price = 0.0, math.inf, max(worst, 1e-30) / max(menus.cost(start), 1e-30) / 16
    cheap = start
    for _ in range(DOUBLINGS):
        cheap = _chosen_at(menus, price, start)
        if menus.cost(cheap) <= budget:
            high = price
            break
        low, price = price, 2 * price
    if math.isinf(high):
        return cheap
    for _ in range(BISECTIONS):
        price = (low + high) / 2
        chosen = _chosen_at(menus, price, cheap)
        if menus.cost(chosen) <= budget:
            high, cheap = price, chosen
        else:
            low = price
    return cheap


def _chosen_at(menus: Menus, price: float, choice: Choice) -> Choice:
    """What the menus take in turn at a price, from `choice` until none changes."""
    for _ in range(SWEEPS):
        before = dict(choice)
        for name, losses in menus.losses.items():
            total = losses + price * menus.curve(choice, name)
            best = int(total.argmin())
            if total[best] < total[choice[name]]:
                choice = {**choice, name: best}
        if choice == before:
            break
    return choice


def _improved(menus: Menus, choice: Choice, budget: float) -> Choice:
    """After single changes that lose less and fit, the one that gains most for its cost first."""
    left = budget - menus.cost(choice)
    for _ in range(EXCHANGES):
        best: tuple[float, str, int] | None = None
        for name, losses in menus.losses.items():
            here = choice[name]
            curve = menus.curve(choice, name)
            gains, more = losses[here] - losses, curve - curve[here]
            worth = np.where(
                (gains > 1e-12 * abs(losses[here])) & (more <= left),
                gains / np.maximum(more, 1e-12 * budget),
                0.0,
            )
            entry = int(worth.argmax())
            if worth[entry] > 0 and (best is None or worth[entry] > best[0]):
                best = (float(worth[entry]), name, entry)
        if best is None:
            break
        choice = {**choice, best[1]: best[2]}
        left = budget - menus.cost(choice)
    return choice
