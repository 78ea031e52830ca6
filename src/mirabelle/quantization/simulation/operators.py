"""What operators are to a quantized network: layers, what is fused with them, and what hands on
the integers that it is given.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from mirabelle.graph.capture import operator, parameter_name
from mirabelle.graph.layers import as_attention
from mirabelle.graph.nodes import (
    argument,
    has_setting,
    has_value,
    optional_argument,
    setting,
    value_of,
)

CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
QUANTIZED_LAYERS = CONVOLUTIONS | {"linear"}
RECTIFIERS = {"relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_"}
AVERAGES = {"adaptive_avg_pool2d", "avg_pool2d", "mean"}
PRODUCTS = {"matmul", "bmm"}
# Operators that hand on the integers that they are given, on the same grid.
PASSES = {
    "max_pool2d",
    "flatten",
    "view",
    "reshape",
    "permute",
    "transpose",
    "squeeze",
    "unsqueeze",
    "dropout",
    "dropout_",
    "clone",
    "contiguous",
    "detach",
    "alias",
}


def is_contraction(node: fx.Node) -> bool:
    """Whether this is a layer of a kind that is quantized, with a parameter for its weight."""
    return operator(node) in QUANTIZED_LAYERS and parameter_name(argument(node, 1)) is not None


def weight_name(node: fx.Node) -> str:
    """The parameter that is the weight of a layer, before a network is quantized."""
    return str(parameter_name(argument(node, 1)))


def unpadded(node: fx.Node) -> fx.Node | None:
    """What a padding of images with zeros pads, if convolutions alone read it: they can pad as
    well. None for any other node.
    """
    if operator(node) not in ("pad", "constant_pad_nd") or not all(
        operator(u) in CONVOLUTIONS and u.args[0] is node for u in node.users
    ):
        return None
    widths = setting(node, "pad")
    mode = setting(node, "mode") if has_setting(node, "mode") else "constant"
    return (
        argument(node, 0)
        if len(widths) <= 2 * (value_of(node).ndim - 2)
        and mode == "constant"
        and not setting(node, "value")
        and min(widths) >= 0
        else None
    )


def layer_input(node: fx.Node) -> fx.Node:
    """What a layer reads, before a padding that it can do itself: the value that is quantized for
    it.
    """
    source = argument(node, 0)
    return unpadded(source) or source


def tail(node: fx.Node) -> fx.Node:
    """The rectifier that alone reads this node, or the node itself: kernels apply it to their
    accumulators.
    """
    users = list(node.users)
    return users[0] if len(users) == 1 and gives_no_negatives(users[0]) else node


def reads_alone(node: fx.Node) -> bool:
    """Whether what this operator reads is a new value, of a layer or an addition, that nothing else
    reads: then it can as well write over it.
    """
    made = optional_argument(node, 0)
    return (
        made is not None
        and len(made.users) == 1
        and (is_contraction(made) or (is_addition(made) and operator(made) == "add"))
    )


def gives_no_negatives(node: fx.Node) -> bool:
    """Whether this is a rectifier that clips at zero."""
    return operator(node) in RECTIFIERS and rectifier_bounds(node)[0] == 0


def rectifier_bounds(node: fx.Node) -> tuple[float, float]:
    """What a rectifier clips to."""
    if operator(node).startswith("hardtanh"):
        return float(setting(node, "min_val")), float(setting(node, "max_val"))
    return 0.0, {"relu": math.inf, "relu6": 6.0}[operator(node).rstrip("_")]


def before_rectifier(node: fx.Node) -> fx.Node:
    """The layer or addition whose rectified result this is; the node itself where it is none."""
    before = optional_argument(node, 0) if operator(node) in RECTIFIERS else None
    return before if before is not None and tail(before) is node else node


def is_addition(node: fx.Node) -> bool:
    """Whether this adds two computed tensors of one shape, as residual networks do."""
    operands = [
        a.meta.get("val") for a in node.args if isinstance(a, fx.Node) and a.op != "get_attr"
    ]
    shapes = [v.shape for v in operands if isinstance(v, torch.Tensor)]
    return (
        operator(node) in ("add", "add_")
        and not node.kwargs
        and len(shapes) == 2
        and shapes[0] == shapes[1]
    )


def factors(node: fx.Node) -> list[fx.Node]:
    """The queries and the keys that attention multiplies, and the factors of any product of two
    computed tensors, before a transposition for it; none for other nodes.

    What weighs the values of attention is left out: most of it is far below a 255th of the largest.
    """
    if (attention := as_attention(node)) is not None:
        return [attention.query, attention.key]
    if operator(node) not in PRODUCTS:
        return []
    operands = [argument(node, 0), argument(node, 1)]
    if any(a.op == "get_attr" or "softmax" in operator(_moved(a)) for a in operands):
        return []
    return [argument(a, 0) if operator(a) in ("transpose", "permute") else a for a in operands]


def _moved(node: fx.Node) -> fx.Node:
    """What a value was before it was moved about, or dropped out."""
    while operator(node) in PASSES | {"expand"}:
        node = argument(node, 0)
    return node


def over_space(node: fx.Node) -> bool:
    """Whether an average runs over the last two dimensions of images, as pooling kernels do."""
    name = operator(node)
    if name == "adaptive_avg_pool2d":
        return all(s == 1 for s in setting(node, "output_size"))
    if name != "mean":
        return True
    dims = setting(node, "dim") if has_setting(node, "dim") else None
    return (
        isinstance(dims, (list, tuple))
        and value_of(argument(node, 0)).ndim == 4
        and sorted(d % 4 for d in dims) == [2, 3]
    )


def float_name(node: fx.Node) -> str:
    """What an operator on tensors is called where it stays in float; '' for anything that is none.
    Operators of ONNX files that run as they are keep theirs.
    """
    if operator(node) == "onnx_node":
        return str(setting(node, "key")).partition(":")[0]
    computed = any(n.op != "get_attr" for n in node.all_input_nodes)
    return operator(node).rstrip("_") if computed and has_value(node) else ""
