"""From simulation to the form that PyTorch's own quantization (PT2E) gives, which the converters of
mobile runtimes read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.ao.quantization.fx._decomposed import quantized_decomposed_lib  # noqa: F401
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from mirabelle.onnx_files.qdq import Stored
from mirabelle.quantization.forms.qdq import in_integers
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer

ops: Any = torch.ops.quantized_decomposed  # which that import registers
LOW, HIGH = -128, 127


def to_pt2e(model: fx.GraphModule, outputs: Sequence[str] = ()) -> tuple[fx.GraphModule, list[str]]:
    """The network in Q/DQ form with int8 activations, int8 weights and float biases, which hold
    only multiples of the accumulators' unit.

    uint8 grids are moved down by 128: the same values, as int8. outputs: sites whose integers
    become outputs after the network's own. Returns the graph and the names of the sites in the
    order of their quantize operators.
    """
    network, sites = in_integers(model, _quantized, _stored)
    _add_outputs(network, sites, outputs)
    network.recompile()
    return network, sites


def _quantized(graph: fx.Graph, value: fx.Node, quantizer: ActivationQuantizer) -> fx.Node:
    down = quantizer.low - LOW
    grid = (
        float(quantizer.scale.detach()),
        quantizer.zero_point - down,
        LOW,
        quantizer.high - down,
        torch.int8,
    )
    return graph.call_function(
        ops.dequantize_per_tensor.default,
        (graph.call_function(ops.quantize_per_tensor.default, (value, *grid)), *grid),
    )


def _stored(network: fx.GraphModule, name: str, tensor: Stored) -> fx.Node:
    """Weights as integers after a dequantize operator, biases as the floats that theirs
    stand for.
    """
    graph, values, (scales, zeros), name = (
        network.graph,
        torch.from_numpy(tensor.integers),
        tensor.grid,
        f"{name}_quantized",
    )
    if values.dtype is torch.int32:
        network.register_buffer(
            name, (values.double() * torch.from_numpy(np.asarray(scales, np.float64))).float()
        )
        return graph.get_attr(name)
    network.register_buffer(name, values)
    if scales.ndim == 0:
        return graph.call_function(
            ops.dequantize_per_tensor.default,
            (graph.get_attr(name), float(scales), int(zeros), LOW, HIGH, values.dtype),
        )
    network.register_buffer(f"{name}_scale", torch.from_numpy(scales))
    network.register_buffer(f"{name}_zero_point", torch.from_numpy(zeros.astype(np.int64)))
    nodes = [graph.get_attr(n) for n in (name, f"{name}_scale", f"{name}_zero_point")]
    return graph.call_function(
        ops.dequantize_per_channel.default, (*nodes, 0, LOW, HIGH, values.dtype)
    )


def _add_outputs(network: fx.GraphModule, sites: list[str], outputs: Sequence[str]) -> None:
    if not outputs:
        return
    quantizers = [n for n in network.graph.nodes if n.target is ops.quantize_per_tensor.default]
    values = dict(zip(sites, quantizers, strict=True))
    end = network.graph.output_node()
    end.args = ((*pytree.tree_leaves(end.args), *(values[s] for s in outputs)),)
    network.graph.set_codegen(CodeGen())
