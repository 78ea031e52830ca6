"""The plan, in one currency: how many channels each group keeps and which layers compute with
integers, by one knapsack over all menus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.base.knapsack import Choice, Menus, least_loss
from mirabelle.channels.groups import Coupling, analyze
from mirabelle.channels.surgery import remove
from mirabelle.compression.losses import channel_scores, integer_losses
from mirabelle.compression.prices import FLOAT, INT8, Prices
from mirabelle.pruning.allocation import lost_with, widths_of
from mirabelle.pruning.repair import REPAIRS, Cut

TRIES = 12  # at weights of several limits
LEAST = 0.05  # of a group's channels always stay
GROUP, LAYER = "channels of ", "form of "


@dataclass(frozen=True)
class Plan:
    """kept: channels by group. floats: weights of layers that stay in float; None where nothing
    computes with integers. loss: predicted, see `losses`. costs: predicted, by quantity, relative
    to the original's.
    """

    kept: dict[str, int]
    floats: tuple[str, ...] | None
    loss: float
    costs: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        return found | {"floats": None if self.floats is None else list(self.floats)}

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Plan:
        floats = found["floats"]
        return cls(
            dict(found["kept"]),
            None if floats is None else tuple(floats),
            found["loss"],
            dict(found["costs"]),
        )


@dataclass(frozen=True)
class Table:
    """Everything that a plan of one network needs: what each entry of each menu loses and costs.

    widths: the channels that each group may keep. scores: of the channels, see `losses`. layers:
    by weight, what integers lose; {} where the runtime has none.
    """

    model: nn.Module
    coupling: Coupling
    widths: Mapping[str, np.ndarray]
    scores: Mapping[str, torch.Tensor]
    layers: Mapping[str, float]
    prices: Mapping[str, Prices]

    def numbers(self, weight: str) -> list[int]:
        """The places in `coupling.costs` of the layers with this weight."""
        return [i for i, c in enumerate(self.coupling.costs) if c.weight == weight]

    def whole(self, quantity: str) -> float:
        """What the original costs, in float."""
        forms = dict.fromkeys(range(len(self.coupling.costs)), FLOAT)
        return self.prices[quantity].network({}, forms)

    def plan(self, limits: Mapping[str, float], mixed: bool = True) -> Plan:
        """The plan that loses least within `limits`: by quantity, shares of the original's cost.

        mixed: layers may stay in float where the runtime has integers. Several limits are held by
        weighting their costs until each holds.
        """
        weights = {q: (1.0 if i == 0 else 1e-3) for i, q in enumerate(limits)}
        found = self._planned(limits, weights, mixed)
        for _ in range(TRIES if len(limits) > 1 else 0):
            over = {q: found.costs[q] / max(limits[q], 1e-9) for q in limits}
            if max(over.values()) <= 1 + 1e-6:
                break
            weights = {q: w * max(0.5, over[q]) ** 3 for q, w in weights.items()}
            found = self._planned(limits, weights, mixed)
        return found

    def _planned(
        self, limits: Mapping[str, float], weights: Mapping[str, float], mixed: bool
    ) -> Plan:
        """The plan for one budget: the weighted sum of the limits."""
        menus = self._menus(weights, mixed)
        budget = sum(w * limits[q] for q, w in weights.items())
        return self._read(least_loss(menus, budget, self._starts()), menus)

    def _starts(self) -> list[Choice]:
        """With all groups halved: from there some minima are reached that are not from the
        whole.
        """
        half = {GROUP + n: int(np.abs(w - w[-1] / 2).argmin()) for n, w in self.widths.items()}
        return [half | {LAYER + w: 0 for w in self.layers}]

    def _menus(self, weights: Mapping[str, float], mixed: bool) -> Menus:
        losses = {GROUP + n: lost_with(self.scores[n], w) for n, w in self.widths.items()}
        for weight, lost in self.layers.items():
            losses[LAYER + weight] = np.array([lost, 0.0] if mixed else [lost])
        scale = {q: w / self.whole(q) for q, w in weights.items()}

        def cost(choice: Choice) -> float:
            kept, forms = self._kept(choice), self._forms(choice)
            return sum(s * self.prices[q].network(kept, forms) for q, s in scale.items())

        def curve(choice: Choice, name: str) -> np.ndarray:
            kept, forms = self._kept(choice), self._forms(choice)
            found = np.zeros(len(losses[name]))
            for quantity, s in scale.items():
                found += s * self._curve(self.prices[quantity], kept, forms, name)[: len(found)]
            return found

        return Menus(losses, cost, curve)

    def _curve(
        self, prices: Prices, kept: dict[str, Any], forms: dict[int, str], name: str
    ) -> np.ndarray:
        if name.startswith(GROUP):
            group = name.removeprefix(GROUP)
            kept = {**kept, group: self.widths[group]}
            along = self.coupling.along[group]
            parts = (prices.layer(i, kept, forms[i]) for i in along)
            return sum(parts, np.zeros(len(self.widths[group])))
        mine = self.numbers(name.removeprefix(LAYER))
        found = []
        for form in (INT8, FLOAT):
            other = {**forms, **dict.fromkeys(mine, form)}
            layers = sum(float(prices.layer(i, kept, form)) for i in mine)
            found.append(layers + prices.conversions(other))
        return np.array(found)

    def _kept(self, choice: Choice) -> dict[str, int]:
        return {n: int(w[choice[GROUP + n]]) for n, w in self.widths.items()}

    def _forms(self, choice: Choice) -> dict[int, str]:
        """By place in `coupling.costs`. What has no weight of its own follows the network."""
        usual = INT8 if self.layers else FLOAT
        floats = {w for w in self.layers if choice[LAYER + w] == 1}
        return {
            i: FLOAT if c.weight in floats or (c.weight and c.weight not in self.layers) else usual
            for i, c in enumerate(self.coupling.costs)
        }

    def _read(self, choice: Choice, menus: Menus) -> Plan:
        kept, forms = self._kept(choice), self._forms(choice)
        floats = tuple(w for w in self.layers if choice[LAYER + w] == 1)
        nothing = not self.layers or len(floats) == len(self.layers)
        return Plan(
            kept,
            None if nothing else floats,
            menus.loss(choice),
            {q: p.network(kept, forms) / self.whole(q) for q, p in self.prices.items()},
        )


def table(
    model: nn.Module,
    data: Sequence[Batch],
    prices: Mapping[str, Prices],
    coupling: Coupling,
    align: int,
    known: tuple[Mapping[str, torch.Tensor], Mapping[str, float]] | None = None,
) -> Table:
    """The table of a network. data: samples without labels. prices: by quantity; where they have
    integers, what these lose is measured, too. known: scores and what integers lose, where they
    were found before.
    """
    integers = any(INT8 in p.forms for p in prices.values())
    few = list(data)
    if known is None:
        layers = integer_losses(model, few) if integers else {}
        known = channel_scores(model, coupling, few), layers
    widths = {g.name: widths_of(g, align, LEAST) for g in coupling.groups}
    return Table(model, coupling, widths, *known, prices)


def cut(found: Table, plan: Plan, data: Sequence[Batch]) -> nn.Module:
    """The network with the plan's widths, its layers fitted again by least squares."""
    removed = {
        g.name: found.scores[g.name].sort(stable=True).indices[: g.channels - plan.kept[g.name]]
        for g in found.coupling.groups
    }
    small = remove(found.model, found.coupling, removed)
    if not any(len(r) for r in removed.values()):
        return small
    how = Cut(found.model, found.coupling, removed)
    return REPAIRS["least-squares"](small, how, list(data), len(data))


def coupled(model: nn.Module, inputs: Batch, keep: Sequence[str] = ()) -> Coupling:
    """`analyze`, which must find something to prune."""
    coupling = analyze(model, inputs, keep)
    if not coupling.groups:
        reasons = "; ".join(sorted({f.reason for f in coupling.frozen})[:4])
        raise InputError(
            f"no channel of this network can be pruned: {reasons or 'it has no layers'}"
        )
    return coupling
