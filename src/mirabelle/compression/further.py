"""A trained network of a search, to be cut further: what its channels are worth now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from mirabelle.base.data import Batch
from mirabelle.channels.groups import Coupling, analyze
from mirabelle.compression.losses import channel_scores
from mirabelle.compression.plan import Plan, Table, cut


class Further(NamedTuple):
    """table: for plans, in the groups and the costs of the original. scores, coupling: of the
    network itself.
    """

    table: Table
    model: nn.Module
    coupling: Coupling
    scores: Mapping[str, torch.Tensor]


def further(found: Table, plan: Plan, network: nn.Module, data: list[Batch]) -> Further | None:
    """The table of a network that the plan has cut from the original, and that was trained since.

    found: the original's. None where the groups of the network are others than the original's, so
    that its channels have no prices.
    """
    coupling = analyze(network, found.coupling.inputs, any_batch=True)
    mine = [n for n in coupling.channels if n in plan.kept]
    if not mine or any(coupling.channels[n] != plan.kept[n] for n in mine):
        return None
    own = replace(coupling, groups=[g for g in coupling.groups if g.name in mine])
    scores = channel_scores(network, own, data)
    # channels that went with a block cost nothing, and are worth nothing
    worth = {n: scores.get(n, torch.zeros(k)) for n, k in plan.kept.items()}
    widths = {
        n: w[w <= plan.kept[n]] if n in scores else w[w == plan.kept[n]]
        for n, w in found.widths.items()
    }
    if any(not len(w) or w[-1] != plan.kept[n] for n, w in widths.items()):
        return None
    table = replace(found, widths=widths, scores=worth, gone=plan.skipped)
    return Further(table, network, own, scores)


def cut_further(found: Further, plan: Plan, data: list[Batch]) -> nn.Module:
    """The network with the widths of a plan of its table."""
    kept = {n: plan.kept[n] for n in found.scores}
    skipped = tuple(n for n in plan.skipped if n not in found.table.gone)
    table = replace(
        found.table, model=found.model, coupling=found.coupling, scores=found.scores, gone=()
    )
    return cut(table, replace(plan, kept=kept, skipped=skipped), data)


def same(plan: Plan, other: Mapping[str, Any]) -> bool:
    """Whether two plans cut the same."""
    return plan.kept == other["kept"] and set(plan.skipped) == set(other["skipped"])
