"""Placement: which values of a captured graph are quantised, so that runtimes can fuse every layer
into one integer kernel.
"""

# torch.fx types an argument of a node as the union of all that it may be; which of them it is
# depends on the operator. pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportUnhashable=false, reportReturnType=false pyright:
# reportIndexIssue=false, reportOptionalSubscript=false, reportCallIssue=false,
# reportOperatorIssue=false, reportGeneralTypeIssues=false pyright: reportOptionalIterable=false,
# reportAssignmentType=false

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import fx

from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.graph.capture import module_path, operator, parameter_name
from mirabelle.quantization.targets import TARGETS, Target

CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
CONTRACTIONS = CONVOLUTIONS | {"linear"}
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


@dataclass(frozen=True)
class Site:
    """A value that is quantised. node: its name in the graph. layer: the module path (and operator)
    that people know it by.

    source: the name of the site whose grid it shares, or None for a grid of its own.
    """

    node: str
    layer: str
    source: str | None = None


def layer_name(node: fx.Node) -> str:
    """`layer1.0.conv1` for a contraction, `layer1.0 (add)` for other operators, the input's own
    name for inputs.
    """
    if node.op == "placeholder":
        return f"input {node.name}"
    path = module_path(node)
    return (
        path
        if operator(node) in CONTRACTIONS and path
        else f"{path or 'network'} ({operator(node) or node.name})"
    )


def is_contraction(node: fx.Node) -> bool:
    return operator(node) in CONTRACTIONS and parameter_name(node.args[1]) is not None


def contractions(graph: fx.Graph, keep: Iterable[str] = ()) -> list[fx.Node]:
    """The layers that are quantised: those whose weight is a parameter, without those that `keep`
    names by module or parameter.
    """
    return [n for n in graph.nodes if is_contraction(n) and not is_kept(n, keep)]


def is_kept(node: fx.Node, keep: Iterable[str]) -> bool:
    """Whether `keep` names the module of a layer or product, one around it, or a layer's weight."""
    paths = (str(parameter_name(node.args[1])), module_path(node))
    return any(path == name or path.startswith(f"{name}.") for name in keep for path in paths)


def check_keep(graph: fx.Graph, keep: Iterable[str]) -> None:
    """`InputError` with the nearest names where `keep` names something without a convolution or
    linear layer.
    """
    layers = contractions(graph)
    for name in keep:
        if not any(is_kept(n, (name,)) for n in layers):
            known = dict.fromkeys(module_path(n) for n in layers)
            raise InputError(
                f"keep names {name!r}, which is no convolution or linear layer and has none "
                f"inside{did_you_mean(name, known)}"
            )


def unpadded(node: fx.Node) -> fx.Node | None:
    """What a padding of images with zeros pads, if convolutions alone read it: they can pad as
    well. None for any other node.
    """
    if operator(node) not in ("pad", "constant_pad_nd") or not all(
        operator(u) in CONVOLUTIONS and u.args[0] is node for u in node.users
    ):
        return None
    settings = (
        dict(zip(("mode", "value"), node.args[2:]))
        if operator(node) == "pad"
        else {"value": node.args[2] if len(node.args) > 2 else 0}
    )
    spatial = len(node.args[1]) <= 2 * (node.meta["val"].ndim - 2)
    return (
        node.args[0]
        if spatial
        and settings.get("mode", "constant") == "constant"
        and not settings.get("value")
        and min(node.args[1]) >= 0
        else None
    )


def layer_input(node: fx.Node) -> fx.Node:
    """What a layer reads, before a padding that it can do itself: the value that is quantised for
    it.
    """
    return unpadded(node.args[0]) or node.args[0]


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
    made = node.args[0] if node.args else None
    return (
        isinstance(made, fx.Node)
        and len(made.users) == 1
        and (is_contraction(made) or (is_addition(made) and operator(made) == "add"))
    )


def gives_no_negatives(node: fx.Node) -> bool:
    """Whether this is a rectifier that clips at zero."""
    return operator(node) in RECTIFIERS and rectifier_bounds(node)[0] == 0


def rectifier_bounds(node: fx.Node) -> tuple[float, float]:
    """What a rectifier clips to."""
    name = operator(node).rstrip("_")
    low, high = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0), "hardtanh": (-1.0, 1.0)}[name]
    given = [*node.args[1:3], *[low, high][len(node.args[1:3]) :]]
    return float(given[0]), float(given[1])  # type: ignore[arg-type]


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
    if operator(node) == "scaled_dot_product_attention":
        return list(node.args[:2])
    if operator(node) not in PRODUCTS or any(
        a.op == "get_attr" or "softmax" in operator(_moved(a)) for a in node.args[:2]
    ):
        return []
    return [a.args[0] if operator(a) in ("transpose", "permute") else a for a in node.args[:2]]


def _moved(node: fx.Node) -> fx.Node:
    """What a value was before it was moved about, or dropped out."""
    while operator(node) in PASSES | {"expand"}:
        node = node.args[0]
    return node


def _from_layers(node: fx.Node, layers: Collection[fx.Node]) -> bool:
    """Whether the layers that a value comes from, the nearest on each way, are all among these."""
    found, seen, waiting = False, set(), [node]
    while waiting:
        n = waiting.pop()
        if n in seen or not isinstance(
            n.meta.get("val"), (torch.Tensor, tuple, list)
        ):  # a number, as a size
            continue
        seen.add(n)
        if is_contraction(n):
            if n not in layers:
                return False
            found = True
        else:
            waiting.extend(n.all_input_nodes)
    return found


def integer_nodes(graph: fx.Graph, sites: Iterable[Site], keep: Iterable[str] = ()) -> set[fx.Node]:
    """The operators that have an integer form in this placement."""
    known = {s.node for s in sites}
    layers = set(contractions(graph, keep))
    integer: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = [
            n
            for n in node.all_input_nodes
            if n.op != "get_attr" and isinstance(n.meta.get("val"), torch.Tensor)
        ]
        name, grids = operator(node), all((unpadded(n) or n).name in known for n in inputs)
        ends = tail(node).name in known
        if node in layers and grids:
            integer.add(node)
        elif (
            is_addition(node)
            and any(n in integer and n is summed(node, layers) for n in inputs)
            and any(n.name in known for n in inputs)
        ):
            integer.add(node)
        elif name in RECTIFIERS and tail(inputs[0]) is node and inputs[0] in integer:
            integer.add(node)
        elif grids and unpadded(node) is not None:
            integer.add(node)
        elif (
            grids
            and ends
            and (
                is_addition(node)
                or name == "cat"
                or name in PASSES
                or (name in AVERAGES and over_space(node))
            )
        ):
            integer.add(node)
    return integer


def float_operators(
    graph: fx.Graph, sites: Iterable[Site], keep: Iterable[str] = ()
) -> dict[str, int]:
    """The operators on tensors that have no integer form in this placement, with the number of
    calls.
    """
    integer = integer_nodes(graph, sites, keep)
    found: dict[str, int] = {}
    for node in graph.nodes:
        if (name := float_name(node)) and node not in integer:
            found[name] = found.get(name, 0) + 1
    return found


def float_name(node: fx.Node) -> str:
    """What an operator on tensors is called where it stays in float; '' for anything that is none.
    Operators of ONNX files that run as they are keep theirs.
    """
    if operator(node) == "onnx_node":
        return str(node.args[1]).partition(":")[0]
    computed = any(n.op != "get_attr" for n in node.all_input_nodes)
    return (
        operator(node).rstrip("_")
        if computed and isinstance(node.meta.get("val"), torch.Tensor)
        else ""
    )


def place(graph: fx.Graph, keep: Iterable[str] = (), target: Target = TARGETS["x86"]) -> list[Site]:
    """The sites in order of execution.

    The inputs of every convolution and linear layer. Where the target rounds what convolutions
    give: their outputs, after the rectifier, and additions whose operands are both quantised; where
    it adds before it rounds: the operand of an addition that no convolution hands over directly.
    Averages over space of quantised values.
    Where the target multiplies them as integers: the queries and keys of attention, as far as they
    come from quantised layers. Data movement keeps the grid of what it moves. A value that only
    floats read is left in float, and so are the layers that `keep` names and whatever no rule
    names.
    """
    layers = set(contractions(graph, keep))
    chosen: dict[fx.Node, Site] = {}

    def site(node: fx.Node, layer: fx.Node | None = None) -> None:
        """node gets a grid; behind data movement, that of what was moved."""
        if node in chosen:
            return
        inputs = [a for a in node.all_input_nodes if a.op != "get_attr"]
        if (
            operator(node) in PASSES
            and len(inputs) == 1
            and inputs[0].op != "placeholder"
            and (inputs[0] in chosen or _computes(inputs[0]))
        ):
            site(inputs[0])
            before = chosen[inputs[0]]
            chosen[node] = Site(node.name, layer_name(node), before.source or before.node)
        else:
            chosen[node] = Site(node.name, layer_name(layer or _before_rectifier(node)))

    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        name = operator(node)
        inputs = [a for a in node.all_input_nodes if a.op != "get_attr"]
        if node in layers:
            site(layer_input(node))
            if target.rounded and name in CONVOLUTIONS:
                site(tail(node), node)
        elif is_addition(node) and target.sums:
            fused = summed(node, layers)
            other = next((i for i in inputs if i is not fused), None)
            if (
                fused is not None
                and other is not None
                and (other in chosen or _before_rectifier(other) in layers)
            ):
                site(other)
        elif is_addition(node) and all(i in chosen for i in inputs):
            site(tail(node), node)
        elif (
            target.products
            and (operands := factors(node))
            and all(_from_layers(o, layers) for o in operands)
            and not is_kept(node, keep)
        ):
            # on a grid of its own where it is read: moving it about costs less in float than
            # rounding it before and after
            for operand in operands:
                chosen.setdefault(operand, Site(operand.name, layer_name(operand)))
        elif name in AVERAGES and over_space(node):
            if (
                target.averages
                and not target.rounded
                and (
                    _before_rectifier(inputs[0]) in layers
                    or is_addition(_before_rectifier(inputs[0]))
                )
            ):
                site(inputs[0])
            if inputs[0] in chosen:
                site(node)
        elif name in PASSES and inputs and inputs[0] in chosen:
            site(node)
    order = {node: i for i, node in enumerate(graph.nodes)}
    return [chosen[n] for n in sorted(chosen, key=order.__getitem__)]


def _computes(node: fx.Node) -> bool:
    return operator(node) in PASSES | AVERAGES | RECTIFIERS | CONTRACTIONS or is_addition(node)


def _before_rectifier(node: fx.Node) -> fx.Node:
    """The layer or addition whose rectified result this is; the node itself where it is none."""
    before = node.args[0] if operator(node) in RECTIFIERS else None
    return before if isinstance(before, fx.Node) and tail(before) is node else node


def summed(node: fx.Node, layers: Collection[fx.Node]) -> fx.Node | None:
    """The operand of an addition that a convolution computes for it alone, and can add to the other
    before it rounds; the later one of two.
    """
    found = [
        i
        for i in node.all_input_nodes
        if i in layers and operator(i) in CONVOLUTIONS and len(i.users) == 1
    ]
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    return max(found, key=order.__getitem__, default=None)


def over_space(node: fx.Node) -> bool:
    """Whether an average runs over the last two dimensions of images, as pooling kernels do."""
    if operator(node) != "mean":
        return operator(node) != "adaptive_avg_pool2d" or all(s == 1 for s in node.args[1])
    x = node.args[0].meta["val"]
    dims = node.args[1] if len(node.args) > 1 else None
    return isinstance(dims, (list, tuple)) and x.ndim == 4 and sorted(d % 4 for d in dims) == [2, 3]
