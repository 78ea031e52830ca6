"""Factors for the channels of what linear layers read, as a multiplication of their own in the
graph.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from mirabelle.graph.capture import operator, parameter_name
from mirabelle.graph.nodes import argument, value_of
from mirabelle.quantization.simulation.operators import is_contraction

FOLDER = "smoothing_factors"


def linear_readers(source: fx.Node) -> list[fx.Node]:
    """The linear layers that read the node."""
    return [
        n
        for n in source.users
        if operator(n) == "linear" and is_contraction(n) and argument(n, 0) is source
    ]


def smoothed(graph: fx.Graph) -> tuple[str, ...]:
    """The names of the nodes that are multiplied, in the order of the graph."""
    products = (n for n in graph.nodes if operator(n) == "mul" and len(n.args) == 2)
    return tuple(
        source.name
        for source, factors in (n.args for n in products)
        if isinstance(source, fx.Node) and parameter_name(factors) == f"{FOLDER}.{source.name}"
    )


def multiply(network: fx.GraphModule, source: fx.Node, factors: torch.Tensor) -> None:
    """Lets the linear layers that read `source` (..., C) read it times `factors` (C,)."""
    if not hasattr(network, FOLDER):
        network.add_submodule(FOLDER, nn.Module())
    network.get_submodule(FOLDER).register_buffer(source.name, factors)
    readers = linear_readers(source)
    with network.graph.inserting_after(source):
        own = network.graph.get_attr(f"{FOLDER}.{source.name}")
    with network.graph.inserting_after(own):
        product = network.graph.call_function(torch.ops.aten.mul.Tensor, (source, own))
    own.meta["val"], product.meta["val"] = factors, value_of(source)
    if "nn_module_stack" in readers[0].meta:
        product.meta["nn_module_stack"] = readers[0].meta["nn_module_stack"]
    for reader in readers:
        reader.replace_input_with(source, product)
