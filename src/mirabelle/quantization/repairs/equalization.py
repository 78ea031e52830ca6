"""Which channels of a captured graph can be divided by a factor where they are made and multiplied
by it where they are read, with the same output.
"""

# torch.fx types an argument of a node as the union of all that it may be; which of them it is
# depends on the operator. pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportUnhashable=false, reportReturnType=false pyright:
# reportIndexIssue=false, reportOptionalSubscript=false, reportCallIssue=false,
# reportOperatorIssue=false, reportGeneralTypeIssues=false pyright: reportOptionalIterable=false,
# reportAssignmentType=false

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from mirabelle.graph.capture import get_tensor, operator, parameter_name, parameter_uses
from mirabelle.quantization.simulation.placement import gives_no_negatives, is_contraction, unpadded

# f(s x) = s f(x) for s > 0, on each channel alone.
HOMOGENEOUS = {
    "relu",
    "relu_",
    "leaky_relu",
    "leaky_relu_",
    "dropout",
    "dropout_",
    "feature_dropout",
    "clone",
    "contiguous",
    "detach",
    "alias",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool2d",
    "upsample_nearest2d",
    "upsample_bilinear2d",
}
RESHAPES = {"flatten", "view", "reshape", "_unsafe_view", "squeeze", "unsqueeze"}
NORMS = {"layer_norm", "batch_norm"}


@dataclass(frozen=True)
class Maker:
    """A parameter whose dimension 0 makes the channels. node: the operator that it belongs to."""

    parameter: str
    node: fx.Node


@dataclass(frozen=True)
class Reader:
    """A weight (outputs, inputs / groups, ...) that reads the channels. repeat: consecutive inputs
    that one channel takes, behind a flatten.
    """

    parameter: str
    node: fx.Node
    groups: int
    repeat: int

    def by_channel(self, weight: torch.Tensor) -> torch.Tensor:
        """(groups, outputs of a group, channels of a group, the rest): a view in which channels
        have a dimension of their own.
        """
        return weight.view(
            self.groups, len(weight) // self.groups, weight.shape[1] // self.repeat, -1
        )


@dataclass(eq=False)
class Channels:
    """C channels with the same makers and readers. clipped: something like ReLU6 is between
    them.
    """

    count: int
    makers: list[Maker] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    frozen: bool = False
    clipped: bool = False

    def read_range(self, network: nn.Module) -> torch.Tensor:
        """(C,) the largest absolute weight that reads each channel."""
        ranges = [
            r.by_channel(get_tensor(network, r.parameter).detach().abs()).amax((1, 3)).reshape(-1)
            for r in self.readers
        ]
        return torch.stack(ranges).amax(0)

    def made_range(self, network: nn.Module) -> torch.Tensor:
        """(C,) the largest absolute weight of the layers that make each channel; biases and
        normalisations do not count.
        """
        return torch.stack(
            [
                get_tensor(network, m.parameter).detach().abs().flatten(1).amax(1)
                for m in self.weights
            ]
        ).amax(0)

    @property
    def weights(self) -> list[Maker]:
        """The makers that are weights of convolutions or linear layers."""
        return [
            m
            for m in self.makers
            if is_contraction(m.node) and m.parameter == m.node.args[1].target
        ]

    @property
    def normalised(self) -> bool:
        """Whether normalisations alone make them."""
        return not any(is_contraction(m.node) for m in self.makers)

    def scale(self, network: nn.Module, factors: torch.Tensor) -> None:
        """Divides the channels by `factors` (C,) where they are made, and multiplies them where
        they are read.
        """
        with torch.no_grad():
            for maker in self.makers:
                tensor = get_tensor(network, maker.parameter)
                tensor.div_(factors.to(tensor).view(-1, *[1] * (tensor.ndim - 1)))
            for node in {m.node for m in self.makers}:
                if "moments" in node.meta:
                    node.meta["moments"] = tuple(m / factors.to(m) for m in node.meta["moments"])
            for reader in self.readers:
                by_channel = reader.by_channel(get_tensor(network, reader.parameter))
                by_channel.mul_(factors.to(by_channel).view(reader.groups, 1, -1, 1))


@dataclass(frozen=True)
class _Place:
    """Where the channels of a value run: along dimension `dim`, `repeat` consecutive entries each.
    channels: a key of `_Walk.channels`, to be looked up by `find`.
    """

    channels: int
    dim: int
    repeat: int


class _Walk:
    def __init__(self, graph: fx.Graph):
        self.channels: list[Channels] = []
        self.parents: list[int] = []
        self.places: dict[fx.Node, _Place] = {}
        self.uses = parameter_uses(graph)
        for node in graph.nodes:
            if node.op in ("call_function", "output"):
                self._run(node)

    def find(self, key: int) -> int:
        while self.parents[key] != key:
            key = self.parents[key]
        return key

    def of(self, place: _Place) -> Channels:
        return self.channels[self.find(place.channels)]

    def freeze(self, *nodes: Any) -> None:
        for node in nodes:
            if isinstance(node, fx.Node) and node in self.places:
                self.of(self.places[node]).frozen = True

    def _new(self, node: fx.Node, count: int, dim: int, makers: Sequence[fx.Node]) -> None:
        own = all(self.uses[str(m.target)] == 1 for m in makers)
        self.parents.append(len(self.channels))
        self.channels.append(
            Channels(count, [Maker(str(m.target), node) for m in makers], frozen=not own)
        )
        self.places[node] = _Place(len(self.channels) - 1, dim, 1)

    def _unite(self, a: _Place, b: _Place) -> None:
        first, second = self.find(a.channels), self.find(b.channels)
        if first == second:
            return
        one, other = self.channels[first], self.channels[second]
        self.parents[second] = first
        one.makers += other.makers
        one.readers += other.readers
        one.frozen |= other.frozen
        one.clipped |= other.clipped

    def _run(self, node: fx.Node) -> None:
        name, inputs = operator(node), [a for a in node.all_input_nodes if a.op != "get_attr"]
        tensors = [a for a in inputs if isinstance(a.meta.get("val"), torch.Tensor)]
        place = self.places.get(tensors[0]) if tensors else None
        if node.op == "output":
            self.freeze(*tensors)
        elif isinstance(node.meta.get("val"), (int, torch.SymInt)):  # a size
            return
        elif is_contraction(node) and all(
            a is None or parameter_name(a) is not None for a in node.args[2:3]
        ):
            self._contract(node, tensors[0], place)
        elif name in NORMS and all(parameter_name(a) is not None for a in _affine(node)):
            self.freeze(*tensors)
            value = node.meta["val"]
            dim = 1 if name == "batch_norm" else value.ndim - 1
            if name == "batch_norm" or len(node.args[1]) == 1:
                self._new(node, value.shape[dim], dim, _affine(node))
        elif (
            place is not None
            and len(tensors) == 1
            and (name in HOMOGENEOUS or unpadded(node))
            and place.dim <= 1
            and not node.kwargs
        ):
            self.places[node] = place
        elif place is not None and place.dim <= 1 and gives_no_negatives(node):
            self.places[node] = place
            self.of(place).clipped = True
        elif (
            place is not None
            and len(tensors) == 1
            and (moved := self._moved(node, name, place)) is not None
        ):
            self.places[node] = moved
        elif (
            name in ("add", "add_")
            and len(tensors) == 2
            and self._same(*tensors)
            and not node.kwargs
        ):
            self._unite(*(self.places[t] for t in tensors))
            self.places[node] = place  # type: ignore[assignment]
        else:
            self.freeze(*tensors)

    def _same(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether both values have as many channels at the same place."""
        one, other = self.places.get(a), self.places.get(b)
        if one is None or other is None or a.meta["val"].shape != b.meta["val"].shape:
            return False
        return (one.dim, one.repeat, self.of(one).count) == (
            other.dim,
            other.repeat,
            self.of(other).count,
        )

    def _contract(self, node: fx.Node, source: fx.Node, place: _Place | None) -> None:
        weight, value = str(node.args[1].target), node.meta["val"]
        linear = operator(node) == "linear"
        dim = value.ndim - 1 if linear else 1
        groups = node.args[6] if not linear and len(node.args) > 6 else 1
        if place is not None:
            if (
                place.dim != source.meta["val"].ndim - 1
                if linear
                else place.dim != 1 or place.repeat != 1
            ):
                self.freeze(source)
            elif self.uses[weight] != 1:
                self.freeze(source)
            else:
                self.of(place).readers.append(Reader(weight, node, groups, place.repeat))
        self._new(node, int(value.shape[dim]), dim, [a for a in node.args[1:3] if a is not None])

    def _moved(self, node: fx.Node, name: str, place: _Place) -> _Place | None:
        """The place of the channels behind an operator that moves data or averages over other
        dimensions; None where that cannot be told.
        """
        before, after = node.args[0].meta["val"].shape, node.meta["val"].shape
        if name in ("permute", "transpose"):
            order = list(range(len(before)))
            if name == "permute":
                order = [d % len(before) for d in node.args[1]]
            else:
                a, b = (d % len(before) for d in node.args[1:3])
                order[a], order[b] = order[b], order[a]
            return _Place(place.channels, order.index(place.dim), place.repeat)
        if name == "mean" and len(node.args) > 1 and node.args[1] is not None:
            dims = {
                d % len(before)
                for d in ([node.args[1]] if isinstance(node.args[1], int) else node.args[1])
            }
            if place.dim in dims or place.repeat != 1:
                return None
            kept = len(node.args) > 2 and node.args[2]
            return _Place(
                place.channels,
                place.dim if kept else place.dim - sum(d < place.dim for d in dims),
                1,
            )
        if name in RESHAPES:
            return _reshaped(list(before), list(after), place)
        return None


def _reshaped(before: list, after: list, place: _Place) -> _Place | None:
    """Sizes before the channels, of the channels and behind them must stay apart, but for those
    behind, which may be flattened into the channels.
    """
    d = place.dim
    behind = before[d + 1 :]
    for k in range(len(after)):
        if not _equal(math.prod(before[:d]), math.prod(after[:k])):
            continue
        if _equal(after[k], before[d]) and _equal(math.prod(behind), math.prod(after[k + 1 :])):
            return _Place(place.channels, k, place.repeat)
        if k == len(after) - 1 and _equal(after[k], before[d] * math.prod(behind)):
            return _Place(place.channels, k, place.repeat * int(math.prod(behind)))
    return None


def _equal(a: Any, b: Any) -> bool:
    """Of sizes that may be open."""
    return bool(a == b) if isinstance(a, int) and isinstance(b, int) else str(a) == str(b)


def _affine(node: fx.Node) -> tuple:
    """The nodes of a normalisation's scale and shift."""
    return tuple(node.args[1:3]) if operator(node) == "batch_norm" else tuple(node.args[2:4])


def scalable(graph: fx.Graph, clipped: bool = False) -> list[Channels]:
    """The channels that some layer makes and some layer reads, with nothing but positively
    homogeneous operators between them; with `clipped`, ReLU6 too.

    Residual additions unite the channels of both sides; a depthwise layer reads channels and makes
    others. What is not known to be homogeneous (ReLU6, GELU, gates, concatenations) leaves the
    channels that it touches out, and so do the network's inputs and outputs and weights that are
    used twice.
    """
    walk = _Walk(graph)
    found = [walk.channels[i] for i in range(len(walk.channels)) if walk.find(i) == i]
    return [
        c for c in found if not c.frozen and c.readers and c.makers and (clipped or not c.clipped)
    ]
