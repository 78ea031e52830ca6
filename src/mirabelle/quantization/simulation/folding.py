"""BatchNorm folded into the convolution or linear layer before it, and paddings into the one behind
them, on a captured graph.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from mirabelle.graph.capture import get_tensor, parameter_name, parameter_uses
from mirabelle.graph.layers import Conv, Linear, Norm, as_conv, as_norm, is_normed_alone, layer_of
from mirabelle.graph.nodes import overload, setting, target_name, value_of
from mirabelle.quantization.simulation.notes import ChannelMoments, note_moments
from mirabelle.quantization.simulation.operators import unpadded


def fold_batchnorm(graph_module: fx.GraphModule) -> list[str]:
    """Folds every BatchNorm whose input comes from one convolution or linear layer and goes nowhere
    else, in place; the names of those that stay.

    w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta, in float64.
    Jacob et al. 2018, eq. 14.
    """
    left = []
    uses = parameter_uses(graph_module.graph)
    for node in list(graph_module.graph.nodes):
        norm = as_norm(node)
        if norm is None or norm.kind != "batch_norm":
            continue
        layer = layer_of(norm.input)
        if (
            layer is None
            or not is_normed_alone(layer.node, uses)
            or parameter_name(norm.mean) is None
            or parameter_name(norm.variance) is None
        ):
            left.append(node.name)
            continue
        _fold(graph_module, layer, norm)
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    drop_unused_tensors(graph_module)
    graph_module.recompile()
    return left


def _fold(graph_module: fx.GraphModule, layer: Conv | Linear, norm: Norm) -> None:
    """Puts a BatchNorm into the layer in front of it, and takes its node out of the graph."""

    def read(node: fx.Node | None) -> torch.Tensor | None:
        return None if node is None else get_tensor(graph_module, target_name(node)).double()

    gamma, beta, mean, variance = map(read, (norm.weight, norm.bias, norm.mean, norm.variance))
    assert mean is not None and variance is not None and norm.mean is not None
    assert norm.eps is not None
    factor = (variance + norm.eps).rsqrt() * (1.0 if gamma is None else gamma)
    weight_name = target_name(layer.weight)
    weight = get_tensor(graph_module, weight_name)
    bias = read(layer.bias)
    bias = ((torch.zeros_like(mean) if bias is None else bias) - mean) * factor
    bias = bias + (0.0 if beta is None else beta)
    folded = (weight.double() * factor.view(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)
    owner, _, leaf = weight_name.rpartition(".")
    setattr(graph_module.get_submodule(owner), leaf, nn.Parameter(folded))
    bias_name = (
        target_name(layer.bias)
        if layer.bias is not None
        else _free_name(graph_module, f"{owner}.bias" if owner else "bias")
    )
    graph_module.get_submodule(bias_name.rpartition(".")[0]).register_parameter(
        bias_name.rpartition(".")[2], nn.Parameter(bias.to(weight.dtype))
    )
    bias_node = layer.bias
    if bias_node is None:
        with graph_module.graph.inserting_before(layer.node):
            bias_node = graph_module.graph.get_attr(bias_name)
        bias_node.meta["val"] = value_of(norm.mean)
    layer.node.args = (layer.input, layer.weight, bias_node, *layer.node.args[3:])
    # As BatchNorm left them: what repairs without data go by.
    moments = ChannelMoments(
        torch.zeros_like(mean) if beta is None else beta,
        torch.ones_like(mean) if gamma is None else gamma.abs(),
    )
    note_moments(layer.node, moments)
    norm.node.replace_all_uses_with(layer.node)
    graph_module.graph.erase_node(norm.node)


def fold_padding(graph_module: fx.GraphModule) -> None:
    """Paddings of images with as many zeros on both sides, which convolutions alone read, become
    theirs: the padded images need not be written.
    """
    for node in list(graph_module.graph.nodes):
        if (source := unpadded(node)) is None:
            continue
        pads = setting(node, "pad")
        if pads[::2] != pads[1::2] or not all(overload(u) == "default" for u in node.users):
            continue  # the other overload has names for its paddings
        added = [*[0] * (value_of(node).ndim - 2 - len(pads) // 2), *reversed(pads[::2])]
        for reader in list(node.users):
            layer = as_conv(reader)
            assert layer is not None
            reader.args = (
                source,
                layer.weight,
                layer.bias,
                list(layer.stride),
                [own + a for (own, _), a in zip(layer.padding, added, strict=True)],
                *reader.args[5:],
            )
        graph_module.graph.erase_node(node)


def _free_name(graph_module: fx.GraphModule, name: str) -> str:
    """`name`, lengthened where the module has something else under it."""
    owner, _, leaf = name.rpartition(".")
    while getattr(graph_module.get_submodule(owner), leaf, None) is not None:
        name, leaf = name + "_", leaf + "_"
    return name


def drop_unused_tensors(graph_module: fx.GraphModule) -> None:
    """Removes parameters and buffers that no node reads."""
    read = {str(n.target) for n in graph_module.graph.nodes if n.op == "get_attr"}
    called = tuple(f"{n.target}." for n in graph_module.graph.nodes if n.op == "call_module")
    for name, _ in [*graph_module.named_parameters(), *graph_module.named_buffers()]:
        if name not in read and not name.startswith(called):
            owner, _, leaf = name.rpartition(".")
            delattr(graph_module.get_submodule(owner), leaf)
