"""Groups: the channels of coupled layers, which live and die together; and what cannot be pruned,
with its reason.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mirabelle.base.checks import check_network, check_runs, clone
from mirabelle.base.data import Batch
from mirabelle.base.errors import CaptureError, InputError, warn
from mirabelle.base.keep import check_keep, covers
from mirabelle.channels.flow import Flow
from mirabelle.channels.ids import FIXED, Parameter
from mirabelle.channels.parameters import first_names, read_parameters
from mirabelle.channels.rules import RULES
from mirabelle.graph.capture import capture, check_capturable, inputs_in_order, parameter_name
from mirabelle.graph.nodes import optional_argument
from mirabelle.graph.open_graph import OpenGraph, open_graph
from mirabelle.graph.proof import FLIPPED, difference
from mirabelle.measurement.macs import count_macs


@dataclass(frozen=True)
class Slot:
    """Where a group's channels sit in one dimension of one parameter.

    index: (C, m): the m indices that channel c occupies.
    role: `out` makes the channel, `in` reads it, `along` accompanies it (bias, BatchNorm,
    depthwise).
    """

    parameter: str
    dim: int
    role: str
    index: torch.Tensor

    @property
    def module(self) -> str:
        return self.parameter.rpartition(".")[0]


@dataclass(frozen=True)
class Group:
    """C channels that occupy the same slots. Removing channel c removes `index[c]` from
    every slot.
    """

    name: str
    channels: int
    slots: tuple[Slot, ...]

    def with_role(self, role: str) -> list[Slot]:
        return [s for s in self.slots if s.role == role]


@dataclass(frozen=True)
class Side:
    """A dimension of an operator that channels run along: its size, how many of its entries go with
    one channel, by group, and whether it is summed over.
    """

    size: int
    groups: Mapping[str, int]
    summed: bool

    def left(self, kept: Mapping[str, Any], channels: Mapping[str, int]) -> Any:
        """Entries that stay with `kept[group]` channels; an array of them where that of one group
        is an array.
        """
        return self.size - sum(
            (channels[g] - kept.get(g, channels[g])) * count for g, count in self.groups.items()
        )


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one operator for one sample, and what they shrink with. node: its
    name in the graph. weight: the parameter that is its weight; '' where that is computed.
    """

    macs: float
    sides: tuple[Side, ...]
    node: str = ""
    weight: str = ""

    def left(self, kept: Mapping[str, Any], channels: Mapping[str, int]) -> Any:
        """Those that stay with `kept[group]` channels; an array of them where that of one group is
        an array.
        """
        return self.macs * math.prod(side.left(kept, channels) / side.size for side in self.sides)


@dataclass(frozen=True)
class Frozen:
    """Channels that are left alone: `count` of dimension `dim` of `parameter`, which makes (`out`)
    or reads (`in`) them, and why.
    """

    parameter: str
    dim: int
    role: str
    count: int
    reason: str


@dataclass
class Coupling:
    """What `analyze` found in a network."""

    groups: list[Group]
    frozen: list[Frozen]
    costs: list[Cost]
    unknown: dict[str, list[str]]
    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    # multiply-accumulates for one sample that `costs` does not hold (operators without a rule),
    # which do not shrink
    rest: int = 0
    inputs: Batch = field(
        default=Batch((), {}, None), repr=False
    )  # the example, of at most two samples
    flow: Flow | None = field(default=None, repr=False)
    graph_module: fx.GraphModule | None = field(default=None, repr=False)
    samples: int = 1  # that the sizes in the graph are of
    captured: OpenGraph | None = field(default=None, repr=False)  # the same graph, for any batch

    @cached_property
    def channels(self) -> dict[str, int]:
        """How many channels each group has."""
        return {g.name: g.channels for g in self.groups}

    @cached_property
    def along(self) -> dict[str, list[int]]:
        """Which of `costs` the channels of each group run along."""
        return {
            g.name: [
                i
                for i, cost in enumerate(self.costs)
                if any(g.name in side.groups for side in cost.sides)
            ]
            for g in self.groups
        }

    def macs(self, kept: Mapping[str, int] | None = None) -> int:
        """The network's multiply-accumulates for one sample with `kept[group]` channels left in
        each group (all of them where not named).
        """
        return self.rest + sum(round(cost.left(kept or {}, self.channels)) for cost in self.costs)

    def parameters(self, kept: Mapping[str, int], trained: Iterable[str]) -> int:
        """The number of parameters with `kept[group]` channels left in each group."""
        sizes = {name: list(self.shapes[name]) for name in trained}
        for group in self.groups:
            gone = group.channels - kept.get(group.name, group.channels)
            for slot in group.slots:
                if slot.parameter in sizes:
                    sizes[slot.parameter][slot.dim] -= gone * slot.index.shape[1]
        return sum(math.prod(size) for size in sizes.values())


def analyze(
    model: nn.Module, inputs: Batch, keep: Iterable[str] = (), any_batch: bool = False
) -> Coupling:
    """Which channels of `model` live and die together.

    keep: names of modules or parameters that stay as they are; `InputError` with the nearest names
    for one that is not there. any_batch: for who runs the graph on batches of data afterwards, it
    is captured for these (`Coupling.captured`). Channels that cannot be removed are in `frozen`
    with their reason; that is never an error.
    """
    model = check_network(model)
    keep = check_keep(model, keep)
    small = _few(model, inputs)
    take = open_graph if any_batch else capture
    try:
        found = take(model, small)
    except InputError:  # the first dimension is no batch, or its size is written into forward
        small, found = inputs, take(model, inputs)
    captured = found if isinstance(found, OpenGraph) else None
    graph_module = found.graph_module if isinstance(found, OpenGraph) else found
    samples = _samples_of(graph_module, small)
    names = first_names(model)
    parameters = read_parameters(graph_module, model)
    training = _training_graph(model, small, {p.name for p in parameters.values()})
    flow = Flow(graph_module, parameters, RULES, training)
    parameters = flow.parameters
    for name in keep:
        kept = {first for alias, first in names.items() if covers(name, alias)}
        for link in flow.labels.links.values():
            if link.parameter in kept:
                flow.labels.fix(link.labels, f"keep={name!r}")
    roots = flow.labels.solve()
    groups, frozen = _group(flow, roots)
    shapes = {p.name: tuple(p.tensor.shape) for p in parameters.values()}
    costs = _costs(flow, groups, roots, samples)
    whole = sum(work.macs for work in flow.works) // samples
    return Coupling(
        groups,
        frozen,
        costs,
        flow.unknown,
        shapes,
        _rest(model, small, whole),
        small,
        flow,
        graph_module,
        samples,
        captured,
    )


def _samples_of(graph_module: fx.GraphModule, inputs: Batch) -> int:
    """How many the graph's sizes are of: it may be captured with two of an example of one."""
    nodes = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    given = zip(nodes, inputs_in_order(graph_module.graph, inputs), strict=True)
    return next((len(n.meta["val"]) for n, value in given if value.ndim), inputs.size)


def _few(model: nn.Module, inputs: Batch) -> Batch:
    """Two samples of the example, so that a batch is no dimension of size one; a single large one,
    as the network runs on it several times. All of them where the network does something else with
    so few.
    """
    count = 1 if inputs.numbers > 1_000_000 else 2
    if inputs.size <= count:
        return inputs
    check_capturable(model)
    probe = clone(model)

    def run(batch: Batch) -> Any:
        return check_runs(probe, batch.map(torch.clone), "the example input")

    whole = run(inputs)
    for start in (0, inputs.size - count):
        rows = slice(start, start + count)
        expected = pytree.tree_map(
            lambda v, rows=rows: v[rows] if isinstance(v, torch.Tensor) and v.ndim else v, whole
        )
        try:
            found = run(inputs.map(lambda t, rows=rows: t[rows] if t.ndim else t))
        except InputError:
            return inputs
        if difference(expected, found, FLIPPED) is not None:
            return inputs
    return inputs.map(lambda t: t[:count] if t.ndim else t)


def _training_graph(
    model: nn.Module, inputs: Batch, known: set[str]
) -> tuple[fx.GraphModule, dict[str, Parameter]] | None:
    """The graph in training mode, with the parameters that it reads, where there are any that
    evaluation does not.
    """
    unread = [n for n, _ in model.named_parameters() if n not in known]
    if not unread:
        return None
    try:
        graph_module = capture(model, inputs, training=True)
    except (CaptureError, InputError) as error:
        warn(
            f"{unread[0]} and {len(unread) - 1} parameters more are not read in evaluation, and "
            f"training cannot be captured ({error}); they stay as they are: "
            "if training reads them, train without them, or keep= the layers before them"
        )
        return None
    return graph_module, read_parameters(graph_module, model)


def _costs(flow: Flow, groups: list[Group], roots: torch.Tensor, samples: int) -> list[Cost]:
    """What each operator costs, by the groups whose channels run along its dimensions."""
    owner: dict[int, str] = {}
    for group in groups:
        for slot in group.slots:
            labels = roots[flow.labels.links[slot.parameter, slot.dim].labels]
            owner |= dict.fromkeys(labels[slot.index.reshape(-1)].tolist(), group.name)
    channels = {g.name: g.channels for g in groups}
    costs = []
    for work in flow.works:
        sides = []
        for labels, summed in work.vectors:
            counts = Counter(owner[root] for root in roots[labels].tolist() if root in owner)
            if counts:
                sides.append(
                    Side(
                        len(labels),
                        {name: count // channels[name] for name, count in counts.items()},
                        summed,
                    )
                )
        node = work.node
        weight = parameter_name(optional_argument(node, 1)) or ""
        costs.append(Cost(work.macs / samples, tuple(sides), node.name, weight))
    return costs


def _rest(model: nn.Module, inputs: Batch, counted: int) -> int:
    try:
        return max(0, count_macs(clone(model), inputs) - counted)
    except InputError:  # it runs, but cannot be counted: torch.cond, modules under two names
        return 0


def _group(flow: Flow, roots: torch.Tensor) -> tuple[list[Group], list[Frozen]]:
    reason_of: dict[int, str] = {}
    for label, reason in flow.labels.reasons.items():
        reason_of.setdefault(int(roots[label]), reason)
    # (parameter, dim) -> role and the root of each index
    slots = {
        key: (link.role, roots[link.labels].numpy()) for key, link in flow.labels.links.items()
    }
    places: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for key, (_, labels) in slots.items():
        for index, root in enumerate(labels.tolist()):
            places[root][key].append(index)
    by_signature: dict[tuple, list[int]] = defaultdict(list)
    for root, where in places.items():
        roles = {slots[key][0] for key in where}
        if root == FIXED:
            continue
        if root not in reason_of and roles >= {"out", "in"}:
            by_signature[tuple((key, len(index)) for key, index in where.items())].append(root)
        else:
            reason_of.setdefault(
                root,
                "no layer makes these channels"
                if "out" not in roles
                else "no layer reads these channels",
            )
    groups = []
    for signature, members in by_signature.items():
        found = tuple(
            Slot(
                name,
                dim,
                slots[name, dim][0],
                torch.tensor([places[root][name, dim] for root in members]),
            )
            for (name, dim), _ in signature
        )
        first = next(s for s in found if s.role == "out")
        groups.append(Group(first.module or first.parameter, len(members), found))
    return _unique_names(groups), _frozen(slots, reason_of)


def _unique_names(groups: list[Group]) -> list[Group]:
    seen: dict[str, int] = {}
    named = []
    for group in groups:
        seen[group.name] = n = seen.get(group.name, 0) + 1
        named.append(group if n == 1 else Group(f"{group.name}#{n}", group.channels, group.slots))
    return named


def _frozen(
    slots: dict[tuple[str, int], tuple[str, np.ndarray]], reason_of: dict[int, str]
) -> list[Frozen]:
    frozen = []
    for (name, dim), (role, labels) in slots.items():
        if role == "along":
            continue
        counts: dict[str, int] = defaultdict(int)
        for root in labels.tolist():
            if root == FIXED:
                counts["the network's own input"] += 1
            elif root in reason_of:
                counts[reason_of[root]] += 1
        frozen += [Frozen(name, dim, role, count, reason) for reason, count in counts.items()]
    return frozen
