"""The plan, in one currency: how many channels each group keeps, which layers compute with integers
and which residual blocks go, by one knapsack over all menus.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from mirabelle.base.data import Batch
from mirabelle.base.knapsack import Choice, Menus, least_loss
from mirabelle.channels.groups import Coupling, analyze
from mirabelle.channels.skipping import skip
from mirabelle.channels.surgery import remove
from mirabelle.compression.losses import channel_scores, integer_losses
from mirabelle.compression.prices import FLOAT, INT8, Prices
from mirabelle.fitting.batchnorm import reestimate_where_better
from mirabelle.pruning.allocation import lost_with, widths_of
from mirabelle.pruning.checks import check_groups
from mirabelle.pruning.depth import block_losses, dead_layers, known_blocks
from mirabelle.pruning.repair import REPAIRS, Cut

TRIES = 12  # at weights of several limits
LEAST = 0.05  # of a group's channels always stay
GROUP, LAYER, BLOCK = "channels of ", "form of ", "block "


@dataclass(frozen=True)
class Plan:
    """kept: channels by group. floats: weights of layers that stay in float; None where nothing
    computes with integers. loss: predicted, see `losses`. costs: predicted, by quantity, relative
    to the original's. skipped: residual blocks that go.
    """

    kept: dict[str, int]
    floats: tuple[str, ...] | None
    loss: float
    costs: dict[str, float]
    skipped: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        floats = None if self.floats is None else list(self.floats)
        return found | {"floats": floats, "skipped": list(self.skipped)}

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Plan:
        floats = found["floats"]
        return cls(
            dict(found["kept"]),
            None if floats is None else tuple(floats),
            found["loss"],
            dict(found["costs"]),
            tuple(found["skipped"]),
        )


class Known(NamedTuple):
    """What was measured of a network: scores of channels by group, what integers lose by weight,
    and what is lost without each residual block.
    """

    scores: Mapping[str, torch.Tensor]
    layers: Mapping[str, float]
    blocks: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """Everything that a plan of one network needs: what each entry of each menu loses and costs.

    widths: the channels that each group may keep. scores: of the channels, see `losses`. layers:
    by weight, what integers lose; {} where the runtime has none. blocks: by residual block, what
    is lost without it. gone: blocks that were skipped before.
    """

    model: nn.Module
    coupling: Coupling
    widths: Mapping[str, np.ndarray]
    scores: Mapping[str, torch.Tensor]
    layers: Mapping[str, float]
    prices: Mapping[str, Prices]
    blocks: Mapping[str, float] = field(default_factory=dict)
    gone: tuple[str, ...] = ()

    @cached_property
    def layers_of(self) -> dict[str, frozenset[int]]:
        """By block, the places in `coupling.costs` of the layers that go with it."""
        found = known_blocks(self.coupling, ())
        return {b.name: dead_layers(self.coupling, [b]) for b in found if b.name in self.blocks}

    def numbers(self, weight: str) -> list[int]:
        """The places in `coupling.costs` of the layers with this weight."""
        return [i for i, c in enumerate(self.coupling.costs) if c.weight == weight]

    def whole(self, quantity: str) -> float:
        """What the original costs, in float."""
        forms = dict.fromkeys(range(len(self.coupling.costs)), FLOAT)
        return self.prices[quantity].network({}, forms)

    def uncut(self, quantity: str) -> float:
        """The share of the original's cost that integers everywhere leave, without a cut."""
        forms = dict.fromkeys(range(len(self.coupling.costs)), INT8)
        known = INT8 in self.prices[quantity].forms
        return self.prices[quantity].network({}, forms) / self.whole(quantity) if known else 1.0

    def plan(self, limits: Mapping[str, float], mixed: bool = True) -> Plan:
        """The plan that loses least within `limits`: by quantity, shares of the original's cost.

        mixed: layers may stay in float where the runtime has integers. Several limits are held by
        weighting their costs until each holds.
        """
        weights = {q: (1.0 if i == 0 else 1e-3) for i, q in enumerate(limits)}
        found, within = self._planned(limits, weights, mixed), 1.0
        for number in range(TRIES if len(limits) > 1 else 0):
            over = {q: found.costs[q] / max(limits[q], 1e-9) for q in limits}
            if max(over.values()) <= 1 + 1e-6:
                break
            weights = {q: w * max(0.5, over[q]) ** 3 for q, w in weights.items()}
            # Weights may swing from one limit to the other; a smaller budget holds both.
            within *= 0.9 if number >= TRIES // 2 else 1.0
            found = self._planned({q: within * v for q, v in limits.items()}, weights, mixed)
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
        whole = {BLOCK + n: 0 for n in self._open}
        return [half | whole | {LAYER + w: 0 for w in self.layers}]

    def _menus(self, weights: Mapping[str, float], mixed: bool) -> Menus:
        losses = {GROUP + n: lost_with(self.scores[n], w) for n, w in self.widths.items()}
        for weight, lost in self.layers.items():
            losses[LAYER + weight] = np.array([lost, 0.0] if mixed else [lost])
        losses |= {BLOCK + n: np.array([0.0, lost]) for n, lost in self._open.items()}
        scale = {q: w / self.whole(q) for q, w in weights.items()}

        def cost(choice: Choice) -> float:
            kept, forms = self._kept(choice), self._forms(choice)
            return sum(s * self.prices[q].network(kept, forms) for q, s in scale.items())

        def curve(choice: Choice, name: str) -> np.ndarray:
            if name.startswith(BLOCK):
                return np.array([cost({**choice, name: entry}) for entry in (0, 1)])
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
            along = [i for i in self.coupling.along[group] if i in forms]
            parts = (prices.layer(i, kept, forms[i]) for i in along)
            return sum(parts, np.zeros(len(self.widths[group])))
        mine = [i for i in self.numbers(name.removeprefix(LAYER)) if i in forms]
        found = []
        for form in (INT8, FLOAT):
            other = {**forms, **dict.fromkeys(mine, form)}
            layers = sum(float(prices.layer(i, kept, form)) for i in mine)
            found.append(layers + prices.conversions(other))
        return np.array(found)

    def _kept(self, choice: Choice) -> dict[str, int]:
        return {n: int(w[choice[GROUP + n]]) for n, w in self.widths.items()}

    def _forms(self, choice: Choice) -> dict[int, str]:
        """By place in `coupling.costs`, but for what is skipped. What has no weight of its own
        follows the network.
        """
        usual, dead = INT8 if self.layers else FLOAT, self.dead(self._skipped(choice))
        floats = {w for w in self.layers if choice[LAYER + w] == 1}
        return {
            i: FLOAT if c.weight in floats or (c.weight and c.weight not in self.layers) else usual
            for i, c in enumerate(self.coupling.costs)
            if i not in dead
        }

    def dead(self, skipped: Iterable[str]) -> frozenset[int]:
        """The places in `coupling.costs` of the layers that go with these blocks."""
        return frozenset().union(*(self.layers_of[n] for n in skipped))

    def _skipped(self, choice: Choice) -> tuple[str, ...]:
        return self.gone + tuple(n for n in self._open if choice[BLOCK + n] == 1)

    @property
    def _open(self) -> dict[str, float]:
        """The blocks that may still be skipped."""
        return {n: lost for n, lost in self.blocks.items() if n not in self.gone}

    def _read(self, choice: Choice, menus: Menus) -> Plan:
        kept, forms = self._kept(choice), self._forms(choice)
        left = [w for w in self.layers if any(i in forms for i in self.numbers(w))]
        floats = tuple(w for w in left if choice[LAYER + w] == 1)
        # integers of what is skipped lose nothing
        unread = sum(menus.losses[LAYER + w][choice[LAYER + w]] for w in self.layers.keys() - left)
        return Plan(
            kept,
            None if len(floats) == len(left) else floats,
            menus.loss(choice) - float(unread),
            {q: p.network(kept, forms) / self.whole(q) for q, p in self.prices.items()},
            self._skipped(choice),
        )


def table(
    model: nn.Module,
    data: Sequence[Batch],
    prices: Mapping[str, Prices],
    coupling: Coupling,
    align: int,
    known: Known | None = None,
    keep: Sequence[str] = (),
) -> Table:
    """The table of a network. data: samples without labels. prices: by quantity; where they have
    integers, what these lose is measured, too. known: what was found before. keep: modules whose
    blocks are not skipped.
    """
    integers = any(INT8 in p.forms for p in prices.values())
    few = list(data)
    if known is None:
        layers = integer_losses(model, few) if integers else {}
        names = [b.name for b in known_blocks(coupling, keep)]
        assert coupling.captured is not None
        blocks = block_losses(model, coupling.captured, few, names) if names else {}
        known = Known(channel_scores(model, coupling, few), layers, blocks)
    widths = {g.name: widths_of(g, align, LEAST) for g in coupling.groups}
    return Table(model, coupling, widths, known.scores, known.layers, prices, known.blocks)


def cut(found: Table, plan: Plan, data: Sequence[Batch]) -> nn.Module:
    """The network without the plan's blocks and with its widths, its layers fitted again by least
    squares.
    """
    model, coupling, scores, kept = found.model, found.coupling, found.scores, plan.kept
    if plan.skipped:
        model = skip(model, coupling.inputs, plan.skipped)
        coupling = analyze(model, coupling.inputs, any_batch=True)
        same = same_groups(coupling, found.coupling)
        scores = {n: found.scores[old] for n, old in same.items()}
        kept = {n: plan.kept[old] for n, old in same.items()}
        model = reestimate_where_better(model, found.model, data)
    removed = {
        n: scores[n].sort(stable=True).indices[: coupling.channels[n] - k] for n, k in kept.items()
    }
    small = remove(model, coupling, removed)
    if not any(len(r) for r in removed.values()):
        return small
    return REPAIRS["least-squares"](small, Cut(model, coupling, removed), data)


def same_groups(coupling: Coupling, before: Coupling) -> dict[str, str]:
    """By group of a network without some blocks the group that it was: channels in the same places
    of a parameter. Groups that were none, as `keep` names them, are left out.
    """
    places = {(s.parameter, s.dim): (g, s) for g in before.groups for s in g.slots}
    found = {}
    for group in coupling.groups:
        for slot in group.slots:
            old, other = places.get((slot.parameter, slot.dim), (None, None))
            if old is not None and other is not None and torch.equal(slot.index, other.index):
                found[group.name] = old.name
                break
    return found


def coupled(model: nn.Module, inputs: Batch, keep: Sequence[str] = ()) -> Coupling:
    """`analyze`, which must find something to prune."""
    coupling = analyze(model, inputs, keep, any_batch=True)
    check_groups(model, coupling)
    return coupling
