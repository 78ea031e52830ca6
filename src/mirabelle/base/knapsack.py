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
EXCHANGES = 60  # changes at the end, at most
PAIRS = 64  # of changes, whose cost is looked at
SLACK = 0.75  # of the smaller one: in a product of widths two changes may cost less than their sum
MOST_MOVES = 1200  # of which pairs are made: more would take long

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
    of its cost (Everett 1963, theorem 1). What the budget still holds is then spent by
    changes of one menu, and of two at once, until none helps.

    starts: choices from which the search starts, besides the one that loses least; nothing that
    loses more than one of these which fits is returned.
    """
    free = {name: int(losses.argmin()) for name, losses in menus.losses.items()}
    if menus.cost(free) <= budget:
        return free
    begun = [s for s in starts if menus.cost(s) <= budget]
    begun += [_relaxed(menus, budget, start) for start in (free, *starts)]
    found = [_improved(menus, choice, budget) for choice in begun]
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
    """After changes of one menu or of two at once that lose less and fit: single ones first, the
    one that gains most for its cost.
    """
    for _ in range(EXCHANGES):
        left = budget - menus.cost(choice)
        moves = _moves(menus, choice)
        changed = _single(moves, left, budget) or _pair(menus, choice, moves, left, budget)
        if changed is None:
            break
        choice = {**choice, **changed}
    return choice


@dataclass(frozen=True)
class _Moves:
    """Every entry that is not taken: its menu and place, and what it gains and costs more."""

    names: list[str]
    menus: np.ndarray
    entries: np.ndarray
    gains: np.ndarray
    costs: np.ndarray

    def choice(self, *moves: int) -> Choice:
        return {self.names[self.menus[m]]: int(self.entries[m]) for m in moves}


def _moves(menus: Menus, choice: Choice) -> _Moves:
    names, found = list(menus.losses), []
    for number, name in enumerate(names):
        here, losses, curve = choice[name], menus.losses[name], menus.curve(choice, name)
        rows = [np.full(len(losses), number), np.arange(len(losses))]
        table = np.stack([*rows, losses[here] - losses, curve - curve[here]])
        found.append(np.delete(table, here, 1))
    menu, entry, gains, costs = np.concatenate(found, 1)
    return _Moves(names, menu.astype(int), entry.astype(int), gains, costs)


def _single(moves: _Moves, left: float, budget: float) -> Choice | None:
    fits = (moves.gains > 1e-15) & (moves.costs <= left)
    if not fits.any():
        return None
    worth = np.where(fits, moves.gains / np.maximum(moves.costs, 1e-12 * budget), -1.0)
    return moves.choice(int(worth.argmax()))


def _pair(menus: Menus, choice: Choice, moves: _Moves, left: float, budget: float) -> Choice | None:
    """The two changes, of two menus, that gain most together. What they cost together is asked
    again: in products of widths it is not the sum.
    """
    if len(moves.gains) > MOST_MOVES:
        return None
    gains = moves.gains[:, None] + moves.gains
    slack = SLACK * np.minimum(np.abs(moves.costs[:, None]), np.abs(moves.costs))
    fits = moves.costs[:, None] + moves.costs <= left + slack
    fits &= (gains > 1e-12) & (moves.menus[:, None] < moves.menus)
    places = np.argwhere(fits)
    order = np.argsort(-gains[fits], kind="stable")[:PAIRS]
    for one, other in places[order]:
        changed = moves.choice(int(one), int(other))
        if menus.cost({**choice, **changed}) <= budget:
            return changed
    return None
