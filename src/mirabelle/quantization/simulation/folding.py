"""BatchNorm folded into the convolution or linear layer before it, and paddings into the one behind
them, on a captured graph.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from mirabelle.graph.capture import get_tensor, operator, parameter_name, parameter_uses
from mirabelle.graph.layers import is_normed_alone
from mirabelle.quantization.simulation.placement import unpadded


def fold_batchnorm(graph_module: fx.GraphModule) -> list[str]:
    """Folds every BatchNorm whose input comes from one convolution or linear layer and goes nowhere
    else, in place; the names of those that stay.

    w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta, in float64.
    Jacob et al. 2018, eq. 14.
    """
    left = []
    uses = parameter_uses(graph_module.graph)
    for node in list(graph_module.graph.nodes):
        if operator(node) != "batch_norm":
            continue
        layer = node.args[0]
        if not is_normed_alone(layer, uses) or any(
            parameter_name(a) is None for a in node.args[3:5]
        ):
            left.append(node.name)
            continue
        weight_name = str(layer.args[1].target)
        gamma, beta, mean, variance = (
            None if a is None else get_tensor(graph_module, str(a.target)).double()
            for a in node.args[1:5]
        )
        factor = (variance + node.args[7]).rsqrt() * (1.0 if gamma is None else gamma)
        weight = get_tensor(graph_module, weight_name)
        bias_node = layer.args[2] if len(layer.args) > 2 else None
        bias = (
            get_tensor(graph_module, str(bias_node.target)).double()
            if bias_node is not None
            else torch.zeros_like(mean)
        )
        bias = (bias - mean) * factor + (0.0 if beta is None else beta)
        owner = weight_name.rpartition(".")[0]
        folded = (weight.double() * factor.view(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)
        module = graph_module.get_submodule(owner)
        setattr(module, weight_name.rpartition(".")[2], nn.Parameter(folded))
        bias_name = (
            str(bias_node.target)
            if bias_node is not None
            else _free_name(graph_module, f"{owner}.bias" if owner else "bias")
        )
        graph_module.get_submodule(bias_name.rpartition(".")[0]).register_parameter(
            bias_name.rpartition(".")[2], nn.Parameter(bias.to(weight.dtype))
        )
        if bias_node is None:
            with graph_module.graph.inserting_before(layer):
                bias_node = graph_module.graph.get_attr(bias_name)
            bias_node.meta["val"] = node.args[3].meta["val"]
        layer.args = (layer.args[0], layer.args[1], bias_node, *layer.args[3:])
        # Mean and standard deviation of each channel, as BatchNorm left them: what repairs without
        # data go by.
        layer.meta["moments"] = (
            torch.zeros_like(mean) if beta is None else beta,
            torch.ones_like(mean) if gamma is None else gamma.abs(),
        )
        node.replace_all_uses_with(layer)
        graph_module.graph.erase_node(node)
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    drop_unused_tensors(graph_module)
    graph_module.recompile()
    return left


def fold_padding(graph_module: fx.GraphModule) -> None:
    """Paddings of images with as many zeros on both sides, which convolutions alone read, become
    theirs: the padded images need not be written.
    """
    for node in list(graph_module.graph.nodes):
        if (source := unpadded(node)) is None:
            continue
        pads = node.args[1]
        if pads[::2] != pads[1::2] or not all(
            u.target._overloadname == "default" for u in node.users
        ):
            continue  # the other overload has names for its paddings
        rank = node.meta["val"].ndim - 2
        added = [*[0] * (rank - len(pads) // 2), *reversed(pads[::2])]
        for layer in list(node.users):
            bias, stride, own = (
                layer.args[i] if len(layer.args) > i else d
                for i, d in ((2, None), (3, [1] * rank), (4, [0] * rank))
            )
            own = [*own] * (rank // len(own))
            layer.args = (
                source,
                layer.args[1],
                bias,
                stride,
                [a + b for a, b in zip(own, added, strict=True)],
                *layer.args[5:],
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
