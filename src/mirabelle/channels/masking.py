"""What a network without some of its channels must compute: the whole network, run node by node, in
which removed elements count for nothing.

Removed elements are zero wherever they are read; statistics (LayerNorm, a mean of channels) are
taken over what is left. Surgery is checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from mirabelle.channels.flow import Flow
from mirabelle.channels.ids import FIXED, Parameter, Value, thin, varying, vector
from mirabelle.channels.recurrent import RECURRENT
from mirabelle.channels.rules import REDUCTIONS
from mirabelle.graph.capture import operator
from mirabelle.graph.layers import NORMS

OF_WHAT_IS_LEFT = (
    NORMS | REDUCTIONS | RECURRENT.keys()
)  # what they compute from removed elements is not zero, or reaches others


class Cutting:
    """Which elements of each value go. gone: by (parameter, dimension), the indices that are
    removed.
    """

    def __init__(self, flow: Flow, gone: Mapping[tuple[str, int], torch.Tensor]):
        self.flow = flow
        self._roots = flow.labels.solve()
        self._gone = torch.zeros(len(self._roots), dtype=torch.bool)
        for key, index in gone.items():
            if key in flow.labels.links:
                self._gone[self._roots[flow.labels.links[key].labels[index]]] = True
        self._gone[FIXED] = False

    def kept(self, value: Any) -> dict[int, torch.Tensor]:
        """By dimension, the indices that stay; dimensions that stay whole are not named."""
        if isinstance(value, Parameter):
            links = self.flow.labels.links
            linked = [dim for dim in range(len(value.shape)) if (value.name, dim) in links]
            stay = {dim: ~self._gone[self._roots[links[value.name, dim].labels]] for dim in linked}
            return {dim: s.nonzero()[:, 0] for dim, s in stay.items() if not s.all()}
        kept: dict[int, torch.Tensor] = {}
        for plane in value.planes if isinstance(value, Value) else ():
            roots = self._roots[thin(plane, varying(plane))]
            gone = self._gone[roots]
            if not gone.any():
                continue
            dims = varying(gone) or varying(roots)  # a part may go as a whole
            if len(dims) != 1:
                raise AssertionError("what is left of a tensor is no tensor")
            stays = ~vector(gone, dims[0])
            kept[dims[0]] = (
                stays & _mask(kept[dims[0]], len(stays)) if dims[0] in kept else stays
            ).nonzero()[:, 0]
        return kept


def _mask(index: torch.Tensor, size: int) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[index] = True
    return mask


def compress(tensor: torch.Tensor, kept: Mapping[int, torch.Tensor]) -> torch.Tensor:
    for dim, index in kept.items():
        if dim < tensor.ndim and tensor.shape[dim] > 1:
            tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor


def _spread(
    tensor: torch.Tensor, kept: Mapping[int, torch.Tensor], shape: tuple[int, ...]
) -> torch.Tensor:
    """The inverse of `compress`, with zeros for what was removed."""
    for dim, index in kept.items():
        size = list(tensor.shape)
        size[dim] = shape[dim]
        tensor = tensor.new_zeros(size).index_copy(dim, index.to(tensor.device), tensor)
    return tensor


class OtherSizeError(Exception):
    """Channels lie along a dimension that samples share with them, as heads of attention do, and
    there are more or fewer samples than the channels were followed with.
    """


class MaskedReference(fx.Interpreter):
    """`run(*inputs)` gives the outputs of the network without the removed channels, at the sizes of
    the whole network. Raises `OtherSizeError`.
    """

    def __init__(self, graph_module: fx.GraphModule, cutting: Cutting):
        super().__init__(graph_module)
        self._cutting = cutting

    def run_node(self, n: fx.Node) -> Any:
        values = self._cutting.flow.values
        if operator(n) in OF_WHAT_IS_LEFT and any(
            self._cutting.kept(values[a]) for a in n.all_input_nodes
        ):
            return self._of_what_is_left(n)
        result = super().run_node(n)
        labels = values[n]
        if n.op == "output" or n.op == "get_attr":
            return result
        leaves, spec = pytree.tree_flatten(result)
        mine = pytree.tree_leaves(labels) if not isinstance(labels, Parameter) else [labels]
        if len(mine) != len(leaves):
            return result
        return pytree.tree_unflatten(
            [self._zeroed(t, v) for t, v in zip(leaves, mine, strict=True)], spec
        )

    def _zeroed(self, tensor: Any, value: Any) -> Any:
        if not isinstance(tensor, torch.Tensor) or not isinstance(value, Value):
            return tensor
        kept = self._cutting.kept(value)
        if any(tensor.shape[dim] != value.shape[dim] for dim in kept):
            raise OtherSizeError
        return _spread(compress(tensor, kept), kept, value.shape) if kept else tensor

    def _of_what_is_left(self, n: fx.Node) -> Any:
        values = self._cutting.flow.values

        def small(node: fx.Node) -> Any:
            tensor = self.env[node]
            return (
                compress(tensor, self._cutting.kept(values[node]))
                if isinstance(tensor, torch.Tensor)
                else tensor
            )

        args: Any = fx.map_arg(n.args, small)
        kwargs: Any = fx.map_arg(n.kwargs, small)
        target: Any = n.target
        if operator(n) in ("layer_norm", "rms_norm"):
            args = (args[0], list(args[0].shape[args[0].ndim - len(args[1]) :]), *args[2:])
        result = target(*args, **kwargs)
        leaves, spec = pytree.tree_flatten(result)
        whole = pytree.tree_leaves(values[n])
        return pytree.tree_unflatten(
            [
                _spread(t, self._cutting.kept(v), v.shape)
                for t, v in zip(leaves, whole, strict=True)
            ],
            spec,
        )
