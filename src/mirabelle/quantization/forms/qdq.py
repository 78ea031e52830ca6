"""From simulation to the forms that files are made from: stored integers, and rounding where values
change between integer and float.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import fx

from mirabelle.base.checks import clone
from mirabelle.base.data import device_of
from mirabelle.base.errors import InputError
from mirabelle.graph.capture import get_tensor, parameter_name
from mirabelle.graph.nodes import argument, called, module, optional_argument, target_name
from mirabelle.onnx_files.qdq import META, Integers, Rounded, Stored, rounded
from mirabelle.quantization.simulation.description import Quantization, quantization
from mirabelle.quantization.simulation.folding import drop_unused_tensors
from mirabelle.quantization.simulation.operators import layer_input
from mirabelle.quantization.simulation.quantizers import (
    ActivationQuantizer,
    Quantizer,
    WeightQuantizer,
)
from mirabelle.quantization.targets import TARGETS


def with_integers(model: fx.GraphModule) -> tuple[fx.GraphModule, list[str]]:
    """The network as `onnx_proto` takes it, which puts weights as int8, biases as int32 and the
    rounding of values into its file (`onnx_files/qdq.py`).

    Returns it and the names of the sites in order.
    """
    found = Integers()

    def mark(graph: fx.Graph, value: fx.Node, quantizer: ActivationQuantizer) -> fx.Node:
        dtype = "int8" if quantizer.low < 0 else "uint8"
        found.values.append(
            Rounded(value.name, float(quantizer.scale.detach()), quantizer.zero_point, dtype)
        )
        return graph.call_function(rounded, (value, len(found.values) - 1))

    def store(network: fx.GraphModule, name: str, tensor: Stored) -> fx.Node:
        found.stored[name] = tensor
        network.register_buffer(f"{name}_quantized", torch.from_numpy(tensor.integers).float())
        return network.graph.get_attr(f"{name}_quantized")

    network, sites = in_integers(model, mark, store)
    network.meta[META] = found
    return network, sites


def in_integers(
    model: fx.GraphModule,
    mark: Callable[[fx.Graph, fx.Node, ActivationQuantizer], fx.Node],
    store: Callable[[fx.GraphModule, str, Stored], fx.Node],
) -> tuple[fx.GraphModule, list[str]]:
    """The network with its quantizers replaced: those of activations by the nodes that `mark`
    makes, those of weights, and biases, by those of `store`, which gets their names. Returns it and
    the names of the sites in the order of their nodes.
    """
    described = check_exportable(model)
    network, sites = clone(model), []
    for node in [n for n in network.graph.nodes if is_contraction_of_quantized(n, network)]:
        call = argument(node, 1)
        tensors = {1: (argument(call, 0).name, stored_weight(network, node))}
        if TARGETS[described.target].biases and (bias := stored_bias(network, node)) is not None:
            tensors[2] = (f"{node.name}_bias", bias)
        with network.graph.inserting_before(node):
            for place, (owner, tensor) in tensors.items():
                node.update_arg(place, store(network, owner, tensor))
        if not call.users:
            network.graph.erase_node(call)
    for call in [n for n in network.graph.nodes if n.op == "call_module"]:
        if (quantizer := called(network, call, ActivationQuantizer)) is not None:
            value = argument(call, 0)
            sites.append(value.name)
            with network.graph.inserting_before(call):
                new = mark(network.graph, value, quantizer)
            new.meta = {k: v for k, v in call.meta.items() if k == "nn_module_stack"}
            call.replace_all_uses_with(new)
            network.graph.erase_node(call)
    drop_unused_tensors(network)
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()
    return network.to(device_of(model)), sites  # what stands for integers is new


def check_exportable(model: fx.GraphModule) -> Quantization:
    """The description of a quantized network that files can hold: activations of 8 bits, weights of
    at most 8. `InputError` for any other.
    """
    described = quantization(model)
    if described is None:
        raise InputError("this network is not quantized; call mb.quantize first")
    layers = {f"quantizers.{s.node}": s.layer for s in described.sites}
    for name, quantizer in model.named_modules():
        if isinstance(quantizer, Quantizer) and (
            quantizer.bits > 8
            or (isinstance(quantizer, ActivationQuantizer) and quantizer.bits < 8)
        ):
            what = layers.get(name, name.removeprefix("quantizers."))
            raise InputError(
                f"runtimes take activations of 8 bits and weights of at most 8, {what} has "
                f"{quantizer.bits}; quantize the network with bits=8 to export it"
            )
    return described


def is_contraction_of_quantized(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether a layer reads its weight through a quantizer."""
    return (
        node.op == "call_function"
        and called(network, optional_argument(node, 1), WeightQuantizer) is not None
    )


def quantized_weight(network: fx.GraphModule, node: fx.Node) -> tuple[str, WeightQuantizer]:
    """The parameter that a quantized layer's weight is, and its quantizer."""
    call = argument(node, 1)
    quantizer = module(network, target_name(call), WeightQuantizer)
    return target_name(argument(call, 0)), quantizer


def stored_weight(network: fx.GraphModule, node: fx.Node) -> Stored:
    """The weight of a quantized layer."""
    name, quantizer = quantized_weight(network, node)
    integers = quantizer.integers(get_tensor(network, name).detach())
    return Stored(
        integers.cpu().numpy(),
        quantizer.scale.detach().cpu().numpy(),
        quantizer.offset.cpu().numpy(),
    )


def stored_bias(network: fx.GraphModule, node: fx.Node) -> Stored | None:
    """The bias of a quantized layer, if it has one, in units of its accumulators (input scale times
    weight scale): it is added without rescaling.
    """
    if (name := parameter_name(optional_argument(node, 2))) is None:
        return None
    units = quantized_weight(network, node)[1].scale.detach() * float(
        input_quantizer(network, node).scale.detach()
    )
    integers = bias_integers(get_tensor(network, name).detach(), units)
    return Stored(integers.cpu().numpy(), units.cpu().numpy(), np.zeros((), np.int32))


def bias_integers(bias: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The bias in units of the accumulators, int32."""
    return (bias.double() / scales.double()).round().clamp(-(2**31) + 1, 2**31 - 1).to(torch.int32)


def input_quantizer(network: fx.GraphModule, node: fx.Node) -> ActivationQuantizer:
    """The grid of what a layer reads, through a padding with zeros."""
    found = called(network, layer_input(node), ActivationQuantizer)
    assert found is not None, f"{node} reads a float"
    return found
