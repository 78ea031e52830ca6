"""Least squares: the layers of a cut network, solved for one after the other so that each gives
what it gave before the cut.

Original and cut network run side by side, node by node of the captured graph. The cut one runs as
its reference does (`channels/masking.py`): at the original's sizes with removed elements at zero,
so that both have the same nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mirabelle.base.checks import check_runs, clone
from mirabelle.base.data import Batch, batches, device_of
from mirabelle.base.errors import InputError
from mirabelle.base.progress import track
from mirabelle.channels.flow import VIEWS, Flow
from mirabelle.channels.ids import Value
from mirabelle.channels.masking import Cutting, MaskedReference, compress
from mirabelle.channels.parameters import read_parameters
from mirabelle.channels.rules import RULES
from mirabelle.fitting.gram import ridge, solve_on_support
from mirabelle.fitting.patches import patches
from mirabelle.graph.capture import (
    capture,
    fixed_length,
    get_tensor,
    make_concrete,
    operator,
    parameter_name,
    parameter_uses,
)
from mirabelle.graph.layers import Norm, as_conv, as_norm, layer_of
from mirabelle.graph.nodes import argument, optional_argument, value_of

# bytes of activations that may be held between layers; what does not fit is computed again
MEMORY = 1.5e9
ROWS = 10  # for each column of a layer's inputs; at least LEAST_ROWS
LEAST_ROWS = 16384
PASSING = {
    "dropout",
    "dropout_",
    "clone",
    "contiguous",
    "detach",
    "alias",
}  # in eval mode they hand on what they get
Values = dict[fx.Node, tuple[Any, Any]]  # of the original and of the cut network


def reconstruct(
    small: nn.Module,
    original: nn.Module,
    inputs: Batch,
    gone: Mapping[tuple[str, int], torch.Tensor],
    data: Iterable,
    count: int,
    pruned: Mapping[str, torch.Tensor] | None = None,
) -> nn.Module:
    """A copy of `small` whose layers give, on `count` batches of `data`, outputs as close as
    possible to those of the same channels in `original`.

    gone: by parameter and dimension of the original the indices that `small` lacks. pruned: by
    parameter, True for each weight that is zero in `small` and stays so. inputs: an example, to
    capture the network with.

    For each convolution or linear layer whose inputs or weights have changed, with A the inputs
    (one row an output position, and a column of ones), W its weights in `small` and Y what it
    should give:

        W' = W + (A'A + r I)^-1 (A'Y - A'A W),   r = `moments.ridge`

    ridge regression towards W, from streamed sums, solved in float64; in layers with groups for
    each group, so a depthwise layer solves for each channel's kernel; in sparse layers for each
    output among the weights that it has (`solve_on_support`). A are the inputs in the network as it
    is by then ("asymmetric"); Y are the outputs in the original, and where they are added to
    another branch that has changed, that branch's error is taken from them: a residual block mends
    what came before it. The column of ones goes into the layer's bias, or into the mean of the
    BatchNorm behind it. He et al. 2017 (channel pruning), sections 3.1 and 3.2.
    No labels are needed. Weights that are computed in forward or used twice are left as they are.
    Raises `InputError` for data that the network does not take or on which a layer is not finite.

    Of each sample so many random positions are read that there are ROWS rows for each column, if it
    has them.
    """
    graph_module = capture(original, inputs, dynamic_batch=True)
    given = next(n.meta["val"] for n in graph_module.graph.nodes if n.op == "placeholder")
    fixed = fixed_length(given)
    make_concrete(graph_module)
    flow = Flow(graph_module, read_parameters(graph_module, original), RULES)
    device = device_of(original)
    check_runs(original, next(batches(data, 1, what="data")).head(1).to(device), "batch 0 of data")
    own = dict(small.named_parameters(remove_duplicate=False)) | dict(
        small.named_buffers(remove_duplicate=False)
    )
    pair = Pair(
        graph_module, flow, gone, {n: (own[n].detach(), mask) for n, mask in (pruned or {}).items()}
    )
    chunks = [
        pair.begin(b.to(device))
        for batch in batches(data, count, what="data")
        for b in _pieces(batch, fixed)
    ]
    if not chunks:
        raise InputError(
            f"the network takes batches of {fixed} alone, and data yields none so large"
        )
    samples = sum(len(next(iter(c.values()))[0]) for c in chunks)
    at = -1
    with torch.no_grad():
        for layer in track(pair.layers, "least squares", len(pair.layers)):
            end = pair.position[layer]
            held = pair.last_that_fits(at, end, MEMORY / samples)
            equations = Equations(pair, layer, samples)
            for i, values in enumerate(chunks):
                for position in range(at + 1, end):
                    values = pair.step(values, position)
                    if position == held:
                        chunks[i] = values
                equations.add(values)
            equations.solve()
            at = held
    result = clone(small)
    own = dict(result.named_parameters(remove_duplicate=False)) | dict(
        result.named_buffers(remove_duplicate=False)
    )
    with torch.no_grad():
        for name in pair.solved:
            own[flow.parameters[name].name].copy_(
                compress(get_tensor(pair.after, name), pair.left[name])
            )
    return result


def _pieces(batch: Batch, fixed: int | None) -> list[Batch]:
    """A batch in pieces of the only size that the network takes; None: any."""
    if fixed is None:
        return [batch]
    return [piece for piece in batch._replace(target=None).split(fixed) if piece.size == fixed]


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
            for n in [*self._given, *self.order]
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
            value = (
                get_tensor(network.module, str(a.target))
                if a.op == "get_attr"
                else values[a][which]
            )
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


class Equations:
    """The normal equations of one layer: A'A and A'Y, summed over the chunks."""

    def __init__(self, pair: Pair, node: fx.Node, samples: int):
        self._pair, self._node, self._source = pair, node, argument(node, 0)
        self._name = str(parameter_name(argument(node, 1)))
        self._end = pair.added_to(node)
        self._bias, self._mean = self._intercept()
        self._weight = compress(get_tensor(pair.after, self._name), pair.left[self._name])
        self._groups = _groups(node, self._weight)
        self._columns = self._weight.shape[1:].numel()
        self._per_sample = -(-max(LEAST_ROWS, ROWS * self._columns) // samples)
        self._generator = torch.Generator().manual_seed(0)
        self._kept_in, self._kept_out = (
            pair.cutting.kept(pair.flow.values[n]) for n in (self._source, node)
        )
        self._rows = 0
        self._gram: Any = 0
        self._moment: Any = 0

    def _intercept(self) -> tuple[str | None, str | None]:
        """Where a constant that is added to the outputs can be kept: the layer's bias, or the mean
        of the BatchNorm behind it.
        """
        node, pair = self._node, self._pair
        if (given := optional_argument(node, 2)) is not None:
            bias = parameter_name(given)
            return (
                bias
                if bias is not None and pair.uses[bias] == 1 and pair.flow.parameters[bias].editable
                else None
            ), None
        norm = as_norm(next(iter(node.users)))
        alone = len(node.users) == 1 and norm is not None and norm.kind == "batch_norm"
        mean = parameter_name(norm.mean) if alone and norm is not None else None
        return None, mean if mean is not None and pair.uses[mean] == 1 else None

    def add(self, values: Values) -> None:
        y = self._pair.side(0, self._node, values)
        if self._end is not None:
            scale, other = self._end
            if other in values:
                y = y + (values[other][0] - values[other][1]) / scale
        x = values[self._source][1]
        a, y = _rows(
            self._node,
            compress(x, self._kept_in),
            compress(y, self._kept_out),
            self._groups,
            self._per_sample,
            self._generator,
        )
        if self._bias or self._mean:
            a = torch.cat([a, torch.ones_like(a[..., :1])], -1)
        self._rows += a.shape[1]
        self._gram = self._gram + (a.transpose(1, 2) @ a).double()
        self._moment = self._moment + (a.transpose(1, 2) @ y).double()

    def solve(self) -> None:
        """Writes the solution into the cut network."""
        after, w, left = self._pair.after, self._weight, self._pair.left[self._name]
        place = {0: left[0]} if 0 in left else {}
        current = w.reshape(self._groups, -1, self._columns).transpose(1, 2).double()
        constant = self._bias or self._mean
        start = compress(get_tensor(after, constant), place) if constant else w.new_zeros(0)
        if constant:
            begun = start if self._bias else torch.zeros_like(start)
            current = torch.cat([current, begun.reshape(self._groups, 1, -1).double()], 1)
        pruned = self._pair.pruned.get(self._name)
        if pruned is None:
            matrix = self._gram + ridge(self._gram, self._rows, bool(constant))
            solved = current + torch.linalg.solve(matrix, self._moment - self._gram @ current)
        else:
            support = torch.ones_like(current, dtype=torch.bool)
            support[:, : self._columns] = ~pruned.to(current.device).reshape(
                self._groups, -1, self._columns
            ).transpose(1, 2)
            solved = solve_on_support(self._gram, self._moment, current, support, self._rows)
        solved = solved.to(w.dtype)
        if not bool(torch.isfinite(solved).all()):
            raise InputError(
                f"the inputs or outputs of {self._name.rpartition('.')[0]} are not finite on "
                "data; look for NaN in it"
            )
        _put(
            get_tensor(after, self._name),
            solved[:, : self._columns].transpose(1, 2).reshape(w.shape),
            left,
        )
        self._pair.solved.append(self._name)
        if constant:
            found = solved[:, self._columns].reshape(-1)
            _put(get_tensor(after, constant), found if self._bias else start - found, place)
            self._pair.solved.append(constant)


def _groups(node: fx.Node, weight: torch.Tensor) -> int:
    """The groups of a layer whose weights are what is left: a depthwise one has as many as
    channels.
    """
    layer = layer_of(node)
    assert layer is not None
    groups = layer.groups
    channels = value_of(layer.input).shape[-3] if groups > 1 else 0
    return len(weight) // (value_of(node).shape[-3] // groups) if groups == channels else groups


def _rows(
    node: fx.Node,
    x: torch.Tensor,
    y: torch.Tensor,
    groups: int,
    per_sample: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(groups, rows, columns) what a layer reads at random positions of each sample, and (groups,
    rows, outputs) what it should give there.
    """
    if operator(node) == "linear":
        if x.ndim > 2:
            x, y = x.flatten(1, -2), y.flatten(1, -2)
            pick = torch.randperm(x.shape[1], generator=generator)[:per_sample].to(x.device)
            x, y = x[:, pick].flatten(0, 1), y[:, pick].flatten(0, 1)
        return x[None], y[None]
    conv = as_conv(node)
    assert conv is not None
    kernel = value_of(conv.weight).shape[2:]
    pick = torch.randperm(y[0, 0].numel(), generator=generator)[:per_sample]
    return patches(x, y, kernel, conv.stride, conv.padding, conv.dilation, groups, pick)


def _put(tensor: torch.Tensor, part: torch.Tensor, kept: Mapping[int, torch.Tensor]) -> None:
    """Writes `part` into the places of `tensor` that stay."""
    places = [
        kept.get(d, torch.arange(size)).to(tensor.device) for d, size in enumerate(tensor.shape)
    ]
    tensor[torch.meshgrid(*places, indexing="ij")] = part
