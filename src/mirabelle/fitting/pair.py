"""The original and the cut network side by side, node by node of one captured graph.

The cut one runs as its reference does (`channels/masking.py`): at the original's sizes with removed
elements at zero, so that both have the same nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from mirabelle.base.checks import clone
from mirabelle.base.data import Batch
from mirabelle.channels.flow import Flow
from mirabelle.channels.ids import Value
from mirabelle.channels.masking import Cutting, MaskedReference
from mirabelle.channels.operators import VIEWS
from mirabelle.graph.capture import get_tensor, operator, parameter_name, parameter_uses
from mirabelle.graph.layers import Norm, as_norm
from mirabelle.graph.nodes import argument, value_of

PASSING = {
    "dropout",
    "dropout_",
    "clone",
    "contiguous",
    "detach",
    "alias",
}  # in eval mode they hand on what they get
Values = dict[fx.Node, tuple[Any, Any]]  # of the original and of the cut network


class Pair:
    """The original and the cut network on one graph, in an order in which every branch that a
    solved layer is added to comes before it.

    layers: those that are solved for, in that order. after: the graph with the weights of the cut
    network, as far as they are solved, at the original's sizes.
    left: by parameter and dimension, the indices that stay. pruned: by parameter, which weights are
    zero and stay so. solved: the names of what has changed in `after`.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        flow: Flow,
        gone: Mapping[tuple[str, int], torch.Tensor],
        sparse: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
    ):
        """sparse: weights of the cut network and the masks of those that are pruned, by the
        network's names of parameters.
        """
        self.flow, self.cutting, self.left = flow, Cutting(flow, gone), _left(flow, gone)
        self.after: Any = clone(graph_module)
        self.pruned: dict[str, torch.Tensor] = {}
        for name, parameter in flow.parameters.items():
            if sparse and parameter.name in sparse and parameter.editable:
                weight, self.pruned[name] = sparse[parameter.name]
                with torch.no_grad():
                    get_tensor(self.after, name).copy_(weight)
        self._networks = (
            fx.Interpreter(graph_module, garbage_collect_values=False),
            MaskedReference(self.after, self.cutting),
        )
        self._given = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
        self.uses = parameter_uses(graph_module.graph)
        self.changed: set[fx.Node] = set()
        for n in graph_module.graph.nodes:
            if n.op == "call_function" and (
                any(
                    a in self.changed or parameter_name(a) in self.pruned for a in n.all_input_nodes
                )
                or self._is_cut(n)
            ):
                self.changed.add(n)
        self.order = self._ordered([n for n in graph_module.graph.nodes if n.op == "call_function"])
        self.position = {n: i for i, n in enumerate(self.order)}
        self._last = {
            n: max((self.position.get(u, len(self.order)) for u in n.users), default=-1)
            for n in graph_module.graph.nodes
            if n in self._given or n in self.position or n.op == "get_attr"
        }
        self.layers = [n for n in self.order if self._solvable(n)]
        self.solved: list[str] = []
        self._sizes = self._live_sizes()

    def begin(self, batch: Batch) -> Values:
        return {
            n: (t, t)
            for n, t in zip(self._given, [*batch.args, *batch.kwargs.values()], strict=True)
        }

    def step(self, values: Values, position: int) -> Values:
        """The values that are still needed once the node at `position` has run."""
        node = self.order[position]
        whole = self.side(0, node, values)
        result = (whole, self.side(1, node, values) if node in self.changed else whole)
        values = {**values, node: result}
        if _in_place(node):  # what reads the operand from here on reads what was written
            values[argument(node, 0)] = result
        return {n: v for n, v in values.items() if self._last[n] > position}

    def side(self, which: int, node: fx.Node, values: Values) -> Any:
        network = self._networks[which]
        network.env = {}
        for a in node.all_input_nodes:
            if a in values:
                value = values[a][which]
            else:  # a parameter or a buffer that no node has written to yet
                value = get_tensor(network.module, str(a.target))
            network.env[a] = value.clone() if _in_place(node) and a is node.args[0] else value
        return network.run_node(node)

    def last_that_fits(self, low: int, high: int, most: float) -> int:
        """The last position in [low, high) after which at most so many bytes of a sample are held;
        `low` where there is none.
        """
        return next((p for p in range(high - 1, low, -1) if self._sizes[p + 1] <= most), low)

    def _live_sizes(self) -> list[float]:
        """Bytes of one sample that are held after each position; first those of the inputs."""

        def size(node: fx.Node) -> float:
            tensors = [
                v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, torch.Tensor)
            ]
            return (
                (2 if node in self.changed else 1)
                * sum(t.numel() * t.element_size() for t in tensors)
                / batch
            )

        batch = max(1, next((n.meta["val"].shape[0] for n in self._given if n.meta["val"].ndim), 1))
        now = float(sum(map(size, self._given)))
        sizes = [now]
        for position, node in enumerate(self.order):
            now += size(node) - sum(
                size(a)
                for a in node.all_input_nodes
                if a.op != "get_attr" and self._last[a] == position
            )
            sizes.append(now)
        return sizes

    def _is_cut(self, node: fx.Node) -> bool:
        values = pytree.tree_leaves(self.flow.values[node], is_leaf=lambda v: isinstance(v, Value))
        return any(self.cutting.kept(v) for v in values if isinstance(v, Value))

    def _ordered(self, nodes: list[fx.Node]) -> list[fx.Node]:
        order: dict[fx.Node, None] = {}

        def needed(node: fx.Node) -> set[fx.Node]:
            found, waiting = set(), [node]
            while waiting:
                n = waiting.pop()
                if n.op == "call_function" and n not in found and n not in order:
                    found.add(n)
                    waiting.extend(n.all_input_nodes)
            return found

        for node in nodes:
            if node in order:
                continue
            if (
                self._solvable(node)
                and (end := self.added_to(node)) is not None
                and node not in (before := needed(end[1]))
            ):
                order.update(dict.fromkeys(n for n in nodes if n in before))
            order.setdefault(node)
        return list(order)

    def _solvable(self, node: fx.Node) -> bool:
        """Whether it is a layer whose inputs or weights have changed, with weights of its own that
        nothing else reads.
        """
        source: Any = node.args[0] if node.args else None
        if node.target not in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
            return False
        name = parameter_name(argument(node, 1))
        if (
            name is None
            or self.uses[name] != 1
            or (source not in self.changed and name not in self.pruned)
        ):
            return False
        parameter = self.flow.parameters[name]
        return (
            parameter.editable
            and parameter.tensor.is_floating_point()
            and parameter.tensor.ndim > 1
        )

    def added_to(self, node: fx.Node) -> tuple[torch.Tensor | float, fx.Node] | None:
        """What a layer's outputs are multiplied by before they are added to another branch that has
        changed, and that branch; None where they are not.
        """
        scale: Any = 1.0
        here = node
        while len(here.users) == 1:
            after = next(iter(here.users))
            name = operator(after)
            norm = as_norm(after) if name == "batch_norm" else None
            if norm is not None and norm.input is here:
                factor = self._factor(norm)
                if factor is None:
                    return None
                scale = scale * factor.view(-1, *[1] * (value_of(after).ndim - 2))
            elif (
                name in ("add", "add_")
                and len(after.args) > 1
                and not after.kwargs
                and isinstance(after.args[1], fx.Node)
            ):
                other: Any = after.args[1] if after.args[0] is here else after.args[0]
                alike = (
                    other.op == "call_function"
                    and other.meta["val"].shape == node.meta["val"].shape == after.meta["val"].shape
                )
                return (scale, other) if alike and other in self.changed else None
            elif name not in PASSING:
                return None
            here = after
        return None

    def _factor(self, norm: Norm) -> torch.Tensor | None:
        """(C,) gamma over the standard deviation of a BatchNorm; None where it is unknown, or zero
        for some channel.
        """
        gamma, variance = parameter_name(norm.weight), parameter_name(norm.variance)
        if variance is None or (gamma is None and norm.weight is not None):
            return None
        assert norm.eps is not None  # of a BatchNorm
        factor = (get_tensor(self.after, variance) + norm.eps).rsqrt() * (
            1 if gamma is None else get_tensor(self.after, gamma)
        )
        return factor if bool((factor.abs() > 1e-4 * factor.abs().max()).all()) else None


def _in_place(node: fx.Node) -> bool:
    """Whether it writes into its first operand, and that is no view of another tensor."""
    name, first = operator(node), node.args[0] if node.args else None
    return (
        name.endswith("_")
        and not name.endswith("__")
        and isinstance(first, fx.Node)
        and operator(first) not in VIEWS
    )


def _left(
    flow: Flow, gone: Mapping[tuple[str, int], torch.Tensor]
) -> dict[str, dict[int, torch.Tensor]]:
    """For each parameter of the graph, by dimension, the indices that stay; dimensions that stay
    whole are not named.
    """
    left: dict[str, dict[int, torch.Tensor]] = {}
    for node, parameter in flow.parameters.items():
        left[node] = {}
        for dim, size in enumerate(parameter.tensor.shape):
            if (index := gone.get((parameter.name, dim))) is not None:
                stays = torch.ones(size, dtype=torch.bool)
                stays[index] = False
                left[node][dim] = stays.nonzero()[:, 0]
    return left
