"""From simulation to the form that PyTorch's own quantisation (PT2E) gives, which the converters of mobile runtimes read."""

# torch.fx types an argument of a node as the union of all that it may be; which of them it is depends on the operator.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false, reportIndexIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx
from torch.utils import _pytree as pytree

from mirabelle.graph.capture import get_tensor, parameter_name
from mirabelle.quantize.fold import drop_unused_tensors
from mirabelle.quantize.qdq import ops, to_qdq

QUANTIZE = (ops.quantize_per_tensor.default, ops.dequantize_per_tensor.default)
DEQUANTIZE = (ops.dequantize_per_tensor.default, ops.dequantize_per_channel.default)


def to_pt2e(model: fx.GraphModule, outputs: Sequence[str] = ()) -> tuple[fx.GraphModule, list[str]]:
    """The network in Q/DQ form with int8 activations, int8 weights and float biases, which hold only multiples of the accumulators' unit.

    uint8 grids are moved down by 128: the same values, as int8. outputs: sites whose integers become outputs behind the
    network's own. Returns the graph and the names of the sites in the order of their quantize operators.
    """
    network, sites = to_qdq(model)
    for node in list(network.graph.nodes):
        if node.target in QUANTIZE and node.args[-1] is torch.uint8:
            scale, zero_point, low, high, _ = node.args[1:]
            node.args = (node.args[0], scale, zero_point - 128, low - 128, high - 128, torch.int8)
        elif node.target in DEQUANTIZE and node.args[-1] is torch.int32 and parameter_name(node.args[0]) is not None:
            _as_float(network, node)
    _add_outputs(network, sites, outputs)
    drop_unused_tensors(network)
    network.graph.eliminate_dead_code()
    network.recompile()
    return network, sites


def _as_float(network: fx.GraphModule, node: fx.Node) -> None:
    """A stored bias as the floats that it stands for."""
    stored, scale = (get_tensor(network, str(a.target)) if isinstance(a, fx.Node) else a for a in node.args[:2])
    name = f"{node.args[0].target}_float"
    network.register_buffer(name, (stored.double() * torch.as_tensor(scale).double()).float())
    with network.graph.inserting_before(node):
        node.replace_all_uses_with(network.graph.get_attr(name))
    network.graph.erase_node(node)


def _add_outputs(network: fx.GraphModule, sites: list[str], outputs: Sequence[str]) -> None:
    if not outputs:
        return
    quantizers = [n for n in network.graph.nodes if n.target is ops.quantize_per_tensor.default]
    values = dict(zip(sites, quantizers, strict=True))
    end = network.graph.output_node()
    end.args = ((*pytree.tree_leaves(end.args), *(values[s] for s in outputs)),)
    network.graph.set_codegen(fx.graph.CodeGen())


__all__ = ["to_pt2e"]
