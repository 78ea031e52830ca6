"""Which channels of a captured graph can be divided by a factor where they are made and multiplied
by it where they are read, with the same output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from mirabelle.graph.capture import get_tensor, operator, parameter_name, parameter_uses
from mirabelle.graph.layers import Linear, Norm, as_norm, layer_of
from mirabelle.graph.nodes import (
    argument,
    computed_inputs,
    has_setting,
    has_value,
    optional_argument,
    setting,
    target_name,
    value_of,
)
from mirabelle.quantization.simulation.notes import (
    correction_of,
    moments_of,
    note_correction,
    note_moments,
)
from mirabelle.quantization.simulation.operators import (
    gives_no_negatives,
    is_contraction,
    unpadded,
    weight_name,
)

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
MOVES = {"permute", "transpose", "mean", *RESHAPES}
NORMS = {"layer_norm", "batch_norm"}


@dataclass(frozen=True)
class Maker:
    """A parameter whose dimension 0 makes the channels. node: the operator that it belongs to."""

    parameter: str
    node: fx.Node


@dataclass(frozen=True)
class Reader:
    """A weight (outputs, inputs / groups, ...) that reads the channels. repeat: consecutive inputs
    that one channel takes, after a flatten.
    """

    parameter: str
    node: fx.Node
    groups: int
    repeat: int

    @property
    def source(self) -> fx.Node:
        """The node that the layer reads."""
        return argument(self.node, 0)

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
        normalizations do not count.
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
            m for m in self.makers if is_contraction(m.node) and m.parameter == weight_name(m.node)
        ]

    @property
    def normalized(self) -> bool:
        """Whether normalizations alone make them."""
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
                if (moments := moments_of(node)) is not None:
                    note_moments(node, moments.over(factors))
                if (correction := correction_of(node)) is not None:
                    note_correction(node, correction.over(factors))
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
        name, norm = operator(node), as_norm(node)
        tensors = [a for a in computed_inputs(node) if has_value(a)]
        place = self.places.get(tensors[0]) if tensors else None
        if node.op == "output":
            self.freeze(*tensors)
        elif isinstance(node.meta.get("val"), (int, torch.SymInt)):  # a size
            return
        elif is_contraction(node) and (
            (bias := optional_argument(node, 2)) is None or parameter_name(bias) is not None
        ):
            self._contract(node, tensors[0], place)
        elif norm is not None and name in NORMS and (makers := _affine(norm)) is not None:
            self.freeze(*tensors)
            value = value_of(node)
            dim = 1 if name == "batch_norm" else value.ndim - 1
            if name == "batch_norm" or norm.last == 1:
                self._new(node, value.shape[dim], dim, makers)
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
            one, other = (self.places[t] for t in tensors)
            self._unite(one, other)
            self.places[node] = one
        else:
            self.freeze(*tensors)

    def _same(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether both values have as many channels at the same place."""
        one, other = self.places.get(a), self.places.get(b)
        if one is None or other is None or value_of(a).shape != value_of(b).shape:
            return False
        return (one.dim, one.repeat, self.of(one).count) == (
            other.dim,
            other.repeat,
            self.of(other).count,
        )

    def _contract(self, node: fx.Node, source: fx.Node, place: _Place | None) -> None:
        layer = layer_of(node)
        assert layer is not None
        weight, dim = target_name(layer.weight), layer.channel_dim()
        if place is not None:
            if (
                place.dim != value_of(source).ndim - 1
                if isinstance(layer, Linear)
                else place.dim != 1 or place.repeat != 1
            ):
                self.freeze(source)
            elif self.uses[weight] != 1:
                self.freeze(source)
            else:
                self.of(place).readers.append(Reader(weight, node, layer.groups, place.repeat))
        makers = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        self._new(node, int(value_of(node).shape[dim]), dim, makers)

    def _moved(self, node: fx.Node, name: str, place: _Place) -> _Place | None:
        """The place of the channels behind an operator that moves data or averages over other
        dimensions; None where that cannot be told.
        """
        if name not in MOVES:
            return None
        before, after = value_of(argument(node, 0)).shape, value_of(node).shape
        if name in ("permute", "transpose"):
            order = list(range(len(before)))
            if name == "permute":
                order = [d % len(before) for d in setting(node, "dims")]
            else:
                a, b = (setting(node, d) % len(before) for d in ("dim0", "dim1"))
                order[a], order[b] = order[b], order[a]
            return _Place(place.channels, order.index(place.dim), place.repeat)
        if name == "mean" and has_setting(node, "dim") and setting(node, "dim") is not None:
            given = setting(node, "dim")
            dims = {d % len(before) for d in ([given] if isinstance(given, int) else given)}
            if place.dim in dims or place.repeat != 1:
                return None
            kept = setting(node, "keepdim")
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


def _affine(norm: Norm) -> list[fx.Node] | None:
    """The nodes of a normalization's scale and, where there is one, its shift; None where it has no
    scale, which alone can divide its channels, or one of the two is no parameter.
    """
    if norm.weight is None:
        return None
    found = [norm.weight] if norm.bias is None else [norm.weight, norm.bias]
    return found if all(parameter_name(n) is not None for n in found) else None


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
