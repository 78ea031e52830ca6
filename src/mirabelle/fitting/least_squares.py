"""Least squares: the layers of a cut network, solved for one after the other so that each gives
what it gave before the cut. `fitting/pair.py` runs both side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from mirabelle.base.checks import check_runs, clone, every_tensor
from mirabelle.base.data import Batch, batches, device_of
from mirabelle.base.errors import InputError
from mirabelle.base.progress import track
from mirabelle.channels.flow import Flow
from mirabelle.channels.masking import OtherSizeError, compress
from mirabelle.channels.parameters import read_parameters
from mirabelle.channels.rules import RULES
from mirabelle.fitting.gram import ridge, solve_on_support
from mirabelle.fitting.pair import Pair, Values
from mirabelle.fitting.patches import patches
from mirabelle.graph.capture import get_tensor, operator, parameter_name
from mirabelle.graph.layers import as_conv, as_norm, layer_of
from mirabelle.graph.nodes import argument, optional_argument, value_of
from mirabelle.graph.open_graph import OpenGraph, open_graph

# bytes of activations that may be held between layers; what does not fit is computed again
MEMORY = 1.5e9
ROWS = 10  # for each column of a layer's inputs; at least LEAST_ROWS
LEAST_ROWS = 16384


def reconstruct(
    small: nn.Module,
    original: nn.Module,
    inputs: Batch,
    gone: Mapping[tuple[str, int], torch.Tensor],
    data: Iterable,
    pruned: Mapping[str, torch.Tensor] | None = None,
    captured: OpenGraph | None = None,
) -> nn.Module:
    """A copy of `small` whose layers give, on `data`, outputs as close as possible to those of the
    same channels in `original`.

    gone: by parameter and dimension of the original the indices that `small` lacks. pruned: by
    parameter, True for each weight that is zero in `small` and stays so. inputs: an example, to
    capture the network with; captured: what that gave, where it was done before.

    For each convolution or linear layer whose inputs or weights have changed, with A the inputs
    (one row an output position, and a column of ones), W its weights in `small` and Y what it
    should give:

        W' = W + (A'A + r I)^-1 (A'Y - A'A W),   r = `gram.ridge`

    ridge regression toward W, from streamed sums, solved in float64; in layers with groups for
    each group, so a depthwise layer solves for each channel's kernel; in sparse layers for each
    output among the weights that it has (`solve_on_support`). A are the inputs in the network as it
    is by then ("asymmetric"); Y are the outputs in the original, and where they are added to
    another branch that has changed, its error is taken from them: a residual block repairs
    what came before it. The column of ones goes into the layer's bias, or into the mean of the
    BatchNorm after it. He et al. 2017 (channel pruning), sections 3.1 and 3.2.
    No labels are needed. Weights that are computed in forward or used twice are left as they are.
    Raises `InputError` for data that the network does not take or on which a layer is not finite.

    Of each sample so many random positions are read that there are ROWS rows for each column, if it
    has them.
    """
    captured = captured or open_graph(original, inputs)
    device = device_of(original)
    check_runs(original, next(batches(data, 1, what="data")).head(1).to(device), "batch 0 of data")
    own = every_tensor(small)
    sparse = {n: (own[n].detach(), mask) for n, mask in (pruned or {}).items()}
    try:
        pair = _solved(captured, original, gone, data, sparse)
    except OtherSizeError:  # then with as many samples at once as the example has
        pair = _solved(replace(captured, fixed=inputs.size), original, gone, data, sparse)
    result = clone(small)
    own = every_tensor(result)
    with torch.no_grad():
        for name in pair.solved:
            own[pair.flow.parameters[name].name].copy_(
                compress(get_tensor(pair.after, name), pair.left[name])
            )
    return result


def _solved(
    captured: OpenGraph,
    original: nn.Module,
    gone: Mapping[tuple[str, int], torch.Tensor],
    data: Iterable,
    sparse: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
) -> Pair:
    """Both networks side by side, once all layers are solved."""
    graph_module, device = captured.graph_module, device_of(original)
    flow = Flow(graph_module, read_parameters(graph_module, original), RULES)
    pair = Pair(graph_module, flow, gone, sparse)
    given = captured.pieces(batches(data, what="data"))
    chunks = [pair.begin(b.to(device)) for b in given]
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
    return pair


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
            pair.cutting.kept(pair.flow.values[n])  # type: ignore[index]
            for n in (node.args[0], node)
        )
        self._rows = 0
        self._gram: Any = 0
        self._cross: Any = 0

    def _intercept(self) -> tuple[str | None, str | None]:
        """Where a constant that is added to the outputs can be kept: the layer's bias, or the mean
        of the BatchNorm after it.
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
        self._cross = self._cross + (a.transpose(1, 2) @ y).double()

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
            solved = current + torch.linalg.solve(matrix, self._cross - self._gram @ current)
        else:
            support = torch.ones_like(current, dtype=torch.bool)
            support[:, : self._columns] = ~pruned.to(current.device).reshape(
                self._groups, -1, self._columns
            ).transpose(1, 2)
            solved = solve_on_support(self._gram, self._cross, current, support, self._rows)
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
