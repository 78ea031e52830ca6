"""A graph for any number of samples where forward holds that number as an integer (`len(x)`,
`int(x.shape[0] / 4)`): `torch.export` takes such a number for the only one.
"""

from __future__ import annotations

import operator as py
from typing import Any

import torch
from torch import fx


def open_batch(graph: fx.Graph, more: fx.Graph, samples: int) -> bool:
    """Writes the numbers in `graph`, captured with so many samples, as multiples of how many there
    are. more: the same network, captured with one sample more.

    What grows evenly from the one graph to the other is a * samples + b. False, and the graph as it
    was, where the two are not of the same operators or something grows otherwise.
    """
    nodes, others = list(graph.nodes), list(more.nodes)
    if [(n.op, str(n.target)) for n in nodes] != [(n.op, str(n.target)) for n in others]:
        return False
    twins = dict(zip(others, nodes, strict=True))
    first = next((n for n in nodes if n.op == "placeholder" and _shape(n)[:1] == (samples,)), None)
    if first is None:
        return False
    last = [n for n in nodes if n.op == "placeholder"][-1]
    grown: dict[fx.Node, tuple[Any, Any]] = {}
    try:
        for node, other in zip(nodes, others, strict=True):
            given, also = (node.args, node.kwargs), (other.args, other.kwargs)
            arguments = _opened(given, also, twins, samples)
            if arguments is not None:
                grown[node] = arguments
    except ValueError:
        return False
    if not grown:
        return True
    with graph.inserting_after(last):
        size = graph.call_function(torch.ops.aten.sym_size.int, (first, 0))
    size.meta["val"] = samples
    for node, (args, kwargs) in grown.items():
        with graph.inserting_before(node):
            node.args = tuple(_computed(args, size))
            node.kwargs = _computed(kwargs, size)
    return True


class _Grows(tuple):
    """(a, b) of a number a * samples + b."""


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _opened(a: Any, b: Any, twins: dict[fx.Node, fx.Node], samples: int) -> Any:
    """The arguments `a` with `_Grows` where `b` has another number; None where they are the same.
    `ValueError` where they differ otherwise.
    """
    found = False

    def walk(one: Any, other: Any) -> Any:
        nonlocal found
        if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
            if len(one) != len(other):
                raise ValueError
            return [walk(x, y) for x, y in zip(one, other, strict=True)]
        if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
            return {k: walk(one[k], other[k]) for k in one}
        if isinstance(one, fx.Node) and isinstance(other, fx.Node):
            if twins.get(other) is not one:
                raise ValueError
            return one
        if type(one) is int and type(other) is int and one != other:
            found = True
            return _Grows((other - one, one - (other - one) * samples))
        if type(one) is not type(other) or one != other:
            raise ValueError
        return one

    walked = walk(a, b)
    return walked if found else None


def _computed(value: Any, size: fx.Node) -> Any:
    """The arguments with nodes that compute what grows."""
    if isinstance(value, _Grows):
        factor, offset = value
        graph, samples = size.graph, size.meta["val"]
        made = size
        if factor != 1:
            made = graph.call_function(py.mul, (size, factor))
            made.meta["val"] = samples * factor
        if offset:
            made = graph.call_function(py.add, (made, offset))
            made.meta["val"] = samples * factor + offset
        return made
    if isinstance(value, list):
        return [_computed(v, size) for v in value]
    if isinstance(value, dict):
        return {k: _computed(v, size) for k, v in value.items()}
    return value
