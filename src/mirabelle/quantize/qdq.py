"""From simulation to Q/DQ form: stored integers, and QuantizeLinear / DequantizeLinear where values change between integer and float."""

# torch.fx types an argument of a node as the union of all that it may be; which of them it is depends on the operator.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportUnhashable=false, reportReturnType=false
# pyright: reportIndexIssue=false, reportOptionalSubscript=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
# pyright: reportOptionalIterable=false, reportAssignmentType=false

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx
from torch.ao.quantization.fx._decomposed import quantized_decomposed_lib  # noqa: F401  registers the operators below

from mirabelle.errors import InputError
from mirabelle.graph.capture import get_tensor, parameter_name
from mirabelle.quantize.description import Quantization, quantization
from mirabelle.quantize.fake import ActivationQuantizer, Quantizer, WeightQuantizer
from mirabelle.quantize.fold import drop_unused_tensors
from mirabelle.quantize.place import is_contraction, unpadded
from mirabelle.quantize.targets import TARGETS

ops: Any = torch.ops.quantized_decomposed
DTYPES = {"uint8": torch.uint8, "int8": torch.int8}


def to_qdq(model: fx.GraphModule) -> tuple[fx.GraphModule, list[str]]:
    """The network with its quantisers replaced by quantize / dequantize operators, weights stored as int8 and biases as int32.

    Biases have the scale of the accumulators (input scale times weight scale) and so are added without rescaling.
    Returns the graph and the names of the sites in the order of their quantize operators.
    """
    described = check_exportable(model)
    network = copy.deepcopy(model)
    dtype = DTYPES[TARGETS[described.target].activations]
    for node in [n for n in network.graph.nodes if is_contraction_of_quantized(n, network)]:
        _weight(network, node, TARGETS[described.target].biases)
    order: list[str] = []
    for node in [n for n in network.graph.nodes if n.op == "call_module"]:
        quantizer = network.get_submodule(str(node.target))
        if isinstance(quantizer, ActivationQuantizer):
            order.append(node.args[0].name)
            _activation(network, node, quantizer, dtype)
    drop_unused_tensors(network)
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.recompile()
    return network, order


def check_exportable(model: fx.GraphModule) -> Quantization:
    """The description of a quantised network that files can hold: activations of 8 bits, weights of at most 8. `InputError` for any other."""
    described = quantization(model)
    if described is None:
        raise InputError("this network is not quantised; call mb.quantize first")
    layers = {f"quantizers.{s.node}": s.layer for s in described.sites}
    for name, quantizer in model.named_modules():
        if isinstance(quantizer, Quantizer) and (quantizer.bits > 8 or (isinstance(quantizer, ActivationQuantizer) and quantizer.bits < 8)):
            what = layers.get(name, name.removeprefix("quantizers."))
            raise InputError(
                f"runtimes take activations of 8 bits and weights of at most 8, {what} has {quantizer.bits}; quantise the network with bits=8 to export it"
            )
    return described


def is_contraction_of_quantized(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether a layer reads its weight through a quantiser."""
    weight = node.args[1] if len(node.args) > 1 else None
    if node.op != "call_function" or not isinstance(weight, fx.Node) or weight.op != "call_module":
        return False
    return isinstance(network.get_submodule(str(weight.target)), WeightQuantizer)


def _replace(network: fx.GraphModule, node: fx.Node, build: Any) -> None:
    with network.graph.inserting_before(node):
        new = build()
    new.meta = {k: v for k, v in node.meta.items() if k == "nn_module_stack"}
    node.replace_all_uses_with(new)
    network.graph.erase_node(node)


def _activation(network: fx.GraphModule, node: fx.Node, quantizer: ActivationQuantizer, dtype: torch.dtype) -> None:
    grid = (float(quantizer.scale.detach()), quantizer.zero_point, quantizer.low, quantizer.high, dtype)

    def build() -> fx.Node:
        quantized = network.graph.call_function(ops.quantize_per_tensor.default, (node.args[0], *grid))
        return network.graph.call_function(ops.dequantize_per_tensor.default, (quantized, *grid))

    _replace(network, node, build)


def _stored(
    network: fx.GraphModule, owner: str, values: torch.Tensor, scales: torch.Tensor, limits: tuple[int, int], zero_points: torch.Tensor | None = None
) -> fx.Node:
    """A dequantize of integers stored under the name of a node, per channel of dimension 0 where there is more than one scale."""
    zeros = torch.zeros(len(scales), dtype=torch.int64) if zero_points is None or zero_points.ndim == 0 else zero_points
    if len(scales) == 1:
        network.register_buffer(f"{owner}_quantized", values)
        stored = network.graph.get_attr(f"{owner}_quantized")
        return network.graph.call_function(ops.dequantize_per_tensor.default, (stored, float(scales), int(zeros), *limits, values.dtype))
    nodes = []
    for suffix, tensor in (("", values), ("_scale", scales), ("_zero_point", zeros)):
        key = f"{owner}_quantized{suffix}"
        network.register_buffer(key, tensor)
        nodes.append(network.graph.get_attr(key))
    return network.graph.call_function(ops.dequantize_per_channel.default, (*nodes, 0, *limits, values.dtype))


def _weight(network: fx.GraphModule, node: fx.Node, biases: bool) -> None:
    call = node.args[1]
    assert isinstance(call, fx.Node)
    quantizer = network.get_submodule(str(call.target))
    assert isinstance(quantizer, WeightQuantizer)
    name = str(parameter_name(call.args[0]))
    scales = quantizer.scale.detach()
    integers = quantizer.integers(get_tensor(network, name).detach())
    bias = node.args[2] if len(node.args) > 2 else None
    with network.graph.inserting_before(node):
        weight = _stored(network, call.args[0].name, integers, scales, (-128, 127), quantizer.offset)
        new_bias = bias
        if biases and isinstance(bias, fx.Node) and (bias_name := parameter_name(bias)) is not None:
            accumulator = scales * float(input_quantizer(network, node).scale.detach())
            stored = bias_integers(get_tensor(network, bias_name).detach(), accumulator)
            new_bias = _stored(network, f"{node.name}_bias", stored, accumulator, (-(2**31), 2**31 - 1))
    node.args = (node.args[0], weight, *([new_bias] if len(node.args) > 2 else []), *node.args[3:])
    if not call.users:
        network.graph.erase_node(call)


def bias_integers(bias: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The bias in units of the accumulators, int32."""
    return (bias.double() / scales.double()).round().clamp(-(2**31) + 1, 2**31 - 1).to(torch.int32)


def input_quantizer(network: fx.GraphModule, node: fx.Node) -> ActivationQuantizer:
    """The grid of what a layer reads, through a padding with zeros."""
    source = node.args[0]
    source = unpadded(source) or source
    found = network.get_submodule(str(source.target)) if source.op == "call_module" else None
    assert isinstance(found, ActivationQuantizer), f"{node} reads a float"
    return found


__all__ = ["bias_integers", "is_contraction", "to_qdq"]
