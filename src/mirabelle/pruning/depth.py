"""Depth: which residual blocks go, chosen beside the widths of all groups, in one currency."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from mirabelle.base.data import device_of, samples
from mirabelle.base.errors import InputError
from mirabelle.base.keep import covers
from mirabelle.base.knapsack import Choice, Menus, least_loss
from mirabelle.base.progress import track
from mirabelle.channels.blocks import Block, blocks, without
from mirabelle.channels.groups import Coupling
from mirabelle.channels.skipping import skip
from mirabelle.fitting.batchnorm import reestimate_where_better
from mirabelle.graph.open_graph import OpenGraph
from mirabelle.measurement.accuracy import as_tensor
from mirabelle.pruning.allocation import cost_curve, lost_with, widths_of
from mirabelle.pruning.settings import Settings

SAMPLES = 64  # on which a block is left out on trial
GROUP, BLOCK = "channels of ", "block "


def without_blocks(
    model: nn.Module, coupling: Coupling, gone: Sequence[str], settings: Settings
) -> tuple[nn.Module, list[str]]:
    """The network without these blocks, with BatchNorm's statistics where they are nearer, and what
    of `settings.keep` it still has.
    """
    small = skip(model, coupling.inputs, gone)
    if settings.repair is not None and settings.read is not None:
        small = reestimate_where_better(small, model, settings.read)
    left = {n for n, _ in [*small.named_modules(), *small.named_parameters()]}
    return small, [k for k in settings.keep if k in left]


@dataclass(frozen=True)
class LayersWithout:
    """A cost that is a sum over layers (`Macs`, `LatencyModel`) without some of these. dead: their
    places in `coupling.costs`.
    """

    cost: Any
    dead: frozenset[int]

    def layer(self, number: int, kept: Mapping[str, Any]) -> Any:
        return 0.0 if number in self.dead else self.cost.layer(number, kept)

    def __call__(self, kept: dict[str, int]) -> float:
        return float(self.cost(kept) - sum(float(self.cost.layer(i, kept)) for i in self.dead))


def block_losses(
    model: nn.Module, captured: OpenGraph, data: Iterable, names: Sequence[str]
) -> dict[str, float]:
    """By block, the squared error of the network's outputs without it, relative to their energy
    about the mean: the unit of `brain_surgeon`, measured, with nothing fitted again.
    """
    device = device_of(model)
    few = [b._replace(target=None).to(device) for b in samples(data, SAMPLES, what="data")]
    few = captured.pieces(few)

    def outputs(left_out: Sequence[str]) -> torch.Tensor:
        found = [as_tensor(without(captured.graph_module, left_out, b)) for b in few]
        return torch.cat(found).double()

    wanted = outputs(())
    energy = (wanted - wanted.mean(0)).square().sum().clamp_min(1e-30)
    return {
        name: float((outputs((name,)) - wanted).square().sum() / energy)
        for name in track(names, "what blocks are worth", len(names))
    }


def known_blocks(coupling: Coupling, keep: Iterable[str]) -> list[Block]:
    """The residual blocks of an analyzed network, but for those with a layer that `keep` names."""
    graph_module = coupling.graph_module
    assert isinstance(graph_module, fx.GraphModule)
    return [b for b in blocks(graph_module.graph) if not covers(keep, *b.parameters)]


def dead_layers(coupling: Coupling, gone: Collection[Block]) -> frozenset[int]:
    """The places in `coupling.costs` of the layers that go with these blocks."""
    names = {n.name for b in gone for n in b.gone}
    return frozenset(i for i, c in enumerate(coupling.costs) if c.node in names)


def costs_without(
    coupling: Coupling, cost: Callable[[dict[str, int]], float], trained: Iterable[str]
) -> Callable[[Collection[Block]], Callable[[dict[str, int]], float]]:
    """(blocks) -> the cost of the network without them, as a function of the channels kept.

    cost: of all of it; where it is no sum over layers, that of the parameters `trained`.
    """
    all_trained = list(trained)

    def of(gone: Collection[Block]) -> Callable[[dict[str, int]], float]:
        if hasattr(cost, "layer"):
            return LayersWithout(cost, dead_layers(coupling, gone))
        dead = {p for b in gone for p in b.parameters}
        left = [n for n in all_trained if n not in dead]
        return lambda kept: coupling.parameters(kept, left)

    return of


def to_skip(
    coupling: Coupling,
    found: Sequence[Block],
    losses: Mapping[str, float],
    scores: Mapping[str, torch.Tensor],
    cost_of: Callable[[Collection[Block]], Callable[[dict[str, int]], float]],
    budget: float,
    align: int,
    least: float,
) -> list[str]:
    """The blocks that go, when widths and blocks are chosen together so that least is lost.

    One knapsack over a menu of widths for each group and of two entries for each block. Of a block
    that goes the groups inside cost nothing, so that they lose nothing either.
    """
    widths = {g.name: widths_of(g, align, least) for g in coupling.groups}
    menu = {GROUP + n: lost_with(scores[n], w) for n, w in widths.items()}
    menu |= {BLOCK + b.name: np.array([0.0, losses[b.name]]) for b in found}

    def kept(choice: Choice) -> dict[str, int]:
        return {n: int(w[choice[GROUP + n]]) for n, w in widths.items()}

    def gone(choice: Choice) -> list[Block]:
        return [b for b in found if choice[BLOCK + b.name]]

    def cost(choice: Choice) -> float:
        return cost_of(gone(choice))(kept(choice))

    def curve(choice: Choice, name: str) -> np.ndarray:
        if name.startswith(BLOCK):
            return np.array([cost({**choice, name: entry}) for entry in (0, 1)])
        group = name.removeprefix(GROUP)
        return cost_curve(coupling, cost_of(gone(choice)), kept(choice), group, widths[group])

    lowest = {n: 0 for n in menu} | {BLOCK + b.name: 1 for b in found}
    if cost(lowest) > budget:
        whole = cost({GROUP + n: len(w) - 1 for n, w in widths.items()} | _none(found))
        raise InputError(
            f"a budget of {budget / whole:.3g} cannot be reached: with every group at its smallest "
            f"(align={align}, least={least:g}) and all blocks skipped {cost(lowest) / whole:.3g} "
            "stay; ask for more, or lower align or least, or shorten keep"
        )
    half = {GROUP + n: int(np.abs(w - w[-1] / 2).argmin()) for n, w in widths.items()}
    choice = least_loss(Menus(menu, cost, curve), budget, [half | _none(found)])
    return [b.name for b in gone(choice)]


def _none(found: Sequence[Block]) -> Choice:
    return {BLOCK + b.name: 0 for b in found}
