"""The graph of a quantized network: captured, with quantizers in it, and built again from its
description.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import CodeGen

from mirabelle.base.checks import check_network
from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.graph.capture import capture, fixed_length, get_tensor, operator
from mirabelle.graph.nodes import argument, overload, setting, value_of
from mirabelle.graph.plain import compute_once, without_autocast
from mirabelle.onnx_files.source import SOURCE, source_of
from mirabelle.quantization.simulation.description import Quantization, describe
from mirabelle.quantization.simulation.folding import (
    drop_unused_tensors,
    fold_batchnorm,
    fold_padding,
)
from mirabelle.quantization.simulation.operators import reads_alone, weight_name
from mirabelle.quantization.simulation.placement import contractions, place
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer, WeightQuantizer
from mirabelle.quantization.simulation.smoothing import multiply
from mirabelle.quantization.targets import TARGETS, Target


def captured(model: nn.Module, first: Batch) -> fx.GraphModule:
    """Captured for any batch size, BatchNorm and paddings folded, rebuilt so that train() and
    eval() work and the first batch is not kept alive. What forward computes under autocast is in
    the type of its weights: integers take its place.
    """
    graph_module = capture(check_network(model), first, dynamic_batch=True)
    network = fx.GraphModule(graph_module, graph_module.graph)
    _plain_signature(network)
    without_autocast(network)
    _drop_dropout(network)
    fold_padding(network)
    fold_batchnorm(network)
    _write_out_of_place(network)
    network.meta[SOURCE] = source_of(model)
    if source_of(model) is None:  # a file keeps its nodes
        compute_once(network)
    return network.eval()


def _drop_dropout(network: fx.GraphModule) -> None:
    """Captured in eval mode, it does nothing."""
    for node in list(network.graph.nodes):
        if (
            operator(node) in ("dropout", "dropout_", "feature_dropout")
            and setting(node, "train") is False
        ):
            node.replace_all_uses_with(argument(node, 0))
            network.graph.erase_node(node)


def _write_out_of_place(network: fx.GraphModule) -> None:
    """Operators that write over what a layer or an addition made for them alone give it as a new
    value, which torch.onnx exports in half the time.
    """
    for node in network.graph.nodes:
        if (name := operator(node)).endswith("_") and reads_alone(node):
            new = getattr(torch.ops.aten, name.removesuffix("_"), None)
            node.target = getattr(new, overload(node), node.target)


def _plain_signature(network: fx.GraphModule) -> None:
    """Inputs and outputs without torch's descriptions of nested containers, which warn whenever
    they are copied; nested outputs keep theirs.
    """
    output = network.graph.output_node()
    codegen: Any = network.graph._codegen  # of torch.export, which says what is nested
    spec = codegen.pytree_info.out_spec
    if spec.is_leaf():
        results: Any = output.args[0]
        output.args = (results[0],)
    elif spec.type is not tuple or not all(child.is_leaf() for child in spec.children()):
        return
    network.graph.set_codegen(CodeGen())
    network.recompile()
    for name in ("_in_spec", "_out_spec"):  # the same, where torch.export left them
        network.__dict__.pop(name, None)


def takes_any_batch(network: fx.GraphModule) -> bool:
    """Whether the first dimension of every input was captured as free."""
    return all(
        fixed_length(value_of(n)) is None for n in network.graph.nodes if n.op == "placeholder"
    )


def weight_keys(network: fx.GraphModule, keep: Iterable[str] = ()) -> dict[str, str]:
    """The parameter that is the weight of each layer to be quantized -> the name of its quantizer:
    that of its first node.

    Names of nodes are unique in the graph, which parameter paths with their dots replaced are not.
    """
    names = {weight_name(n) for n in contractions(network.graph, keep)}
    keys: dict[str, str] = {}
    for node in network.graph.nodes:
        if node.op == "get_attr" and str(node.target) in names:
            keys.setdefault(str(node.target), node.name)
    return keys


def insert(
    network: fx.GraphModule,
    activations: Mapping[str, ActivationQuantizer],
    weights: Mapping[str, WeightQuantizer],
    described: Quantization,
) -> fx.GraphModule:
    """Puts the quantizers into the graph: after each site, and between each weight and its layer.
    activations: by node. weights: by `weight_keys`' names.
    """
    by_name = {n.name: n for n in network.graph.nodes}
    keys = weight_keys(network, described.keep)
    for name, quantizer in [*activations.items(), *((keys[n], weights[keys[n]]) for n in keys)]:
        if hasattr(getattr(network, "quantizers", None), name) or not isinstance(
            getattr(network, "quantizers", network), nn.Module
        ):
            raise InputError(
                "the network has something called 'quantizers' of its own, where "
                f"quantizers.{name} would go; rename it"
            )
        network.add_submodule(f"quantizers.{name}", quantizer)
    for site in described.sites:
        _call_after(network, by_name[site.node], f"quantizers.{site.source or site.node}")
    layers = set(contractions(network.graph, described.keep))
    for node in list(network.graph.nodes):
        if node.op == "get_attr" and str(node.target) in keys:
            readers = [u for u in node.users if u in layers and argument(u, 1) is node]
            _call_after(network, node, f"quantizers.{keys[str(node.target)]}", readers)
    drop_unused_tensors(network)
    result = fx.GraphModule(network, network.graph)
    describe(result, described)
    result.meta[SOURCE] = source_of(network)
    return result.eval()


def _call_after(
    network: fx.GraphModule, node: fx.Node, target: str, readers: list[fx.Node] | None = None
) -> None:
    with network.graph.inserting_after(node):
        call = network.graph.call_module(target, (node,))
    call.meta = {k: node.meta[k] for k in ("val", "nn_module_stack") if k in node.meta}
    for user in list(node.users) if readers is None else readers:
        if user is not call:
            user.replace_input_with(node, call)


def activation_grid(bits: int, target: Target) -> tuple[int, int]:
    """The lowest and the highest integer."""
    low = 0 if target.activations == "uint8" else -(2 ** (bits - 1))
    return low, low + 2**bits - 1


def example_of(described: dict[str, Any]) -> Batch:
    """Zeros of the shapes and types that a quantized network was captured with."""
    zeros = [
        (name, torch.zeros(shape, dtype=getattr(torch, dtype)))
        for name, shape, dtype in Quantization.from_dict(described).inputs
    ]
    return Batch(
        tuple(t for name, t in zeros if not name), {name: t for name, t in zeros if name}, None
    )


def rebuild(model: nn.Module, described: dict[str, Any]) -> fx.GraphModule:
    """The structure of a quantized network, from its float network (of the pruned sizes) and
    `Quantization.to_dict()`.

    The numbers come with its state.
    """
    found = Quantization.from_dict(described)
    network = captured(model, example_of(described))
    by_name = {n.name: n for n in network.graph.nodes}
    for name in found.smoothed:
        multiply(network, by_name[name], torch.ones(value_of(by_name[name]).shape[-1]))
    if [s.node for s in place(network.graph, found.keep, TARGETS[found.target])] != [
        s.node for s in found.sites
    ]:
        raise InputError(
            "this network has other layers than the one that was quantized; build the same one"
        )
    goal = TARGETS[found.target]
    activations = {
        s.node: ActivationQuantizer(
            1.0, 0, *activation_grid(found.precision.get(s.node, found.bits), goal)
        )
        for s in found.sites
        if s.source is None
    }
    weights = {}
    for name, key in weight_keys(network, found.keep).items():
        steps = torch.ones(get_tensor(network, name).shape[0] if found.per_channel else 1)
        offset = None if found.weight_symmetric else torch.zeros(len(steps), dtype=torch.int64)
        weights[key] = WeightQuantizer(
            steps, 0, 2 ** (found.precision.get(key, found.weight_bits) - 1) - 1, offset
        )
    return insert(network, activations, weights, found)
