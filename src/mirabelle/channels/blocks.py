"""Residual blocks that can be left out: an addition of a value and of what is computed from it
becomes the value alone, and what only the other branch needed goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.graph.capture import inputs_in_order, operator, parameter_name
from mirabelle.graph.layers import layer_of
from mirabelle.graph.nodes import has_value, setting, value_of

ADDITIONS = ("add", "add_")


@dataclass(frozen=True)
class Block:
    """A residual block. name: the path of the last layer of its branch. add: where the branch meets
    `identity`. gone: what only the branch needs, in the graph's order; layers: those of them that
    are layers.
    """

    name: str
    add: fx.Node
    identity: fx.Node
    branch: fx.Node
    gone: tuple[fx.Node, ...]
    layers: tuple[fx.Node, ...]

    @property
    def parameters(self) -> set[str]:
        """The names of parameters and buffers that only it reads."""
        return {str(n.target) for n in self.gone if n.op == "get_attr"}


def blocks(graph: fx.Graph) -> list[Block]:
    """The blocks of a captured network, in its order.

    A block is an addition of two values of one shape, one of which the other is computed from; its
    branch has a layer, and writes into nothing that others read.
    """
    before: dict[fx.Node, set[fx.Node]] = {}
    found: list[Block] = []
    names: set[str] = set()
    for node in graph.nodes:
        before[node] = {n for a in node.all_input_nodes for n in (a, *before[a])}
        sides = _sides(node, before)
        if sides is None:
            continue
        gone = _only_for(node, sides[1], graph)
        layers = [n for n in gone if layer_of(n) is not None]
        if not layers or any(_writes_outside(n, set(gone)) for n in gone):
            continue
        weight = layer_of(layers[-1]).weight  # type: ignore[union-attr]
        name = (parameter_name(weight) or node.name).removesuffix(".weight")
        while name in names:
            name += "+"
        names.add(name)
        found.append(Block(name, node, *sides, tuple(gone), tuple(layers)))
    return found


def _sides(node: fx.Node, before: dict[fx.Node, set[fx.Node]]) -> tuple[fx.Node, fx.Node] | None:
    """The identity and the branch of an addition; None where it is no such one."""
    if operator(node) not in ADDITIONS or setting(node, "alpha") != 1:
        return None
    one, other = node.args[:2]
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node) or one is other:
        return None
    if not has_value(one) or not has_value(other) or value_of(one).shape != value_of(other).shape:
        return None
    if one in before[other]:
        return one, other
    return (other, one) if other in before[one] else None


def _only_for(add: fx.Node, branch: fx.Node, graph: fx.Graph) -> list[fx.Node]:
    """The nodes whose results nothing but the addition's branch needs, in order."""
    if set(branch.users) != {add}:
        return []
    found: dict[fx.Node, None] = {branch: None}
    for node in reversed(list(graph.nodes)):
        if node.op != "placeholder" and node.users and all(u in found for u in node.users):
            found[node] = None
    return [n for n in graph.nodes if n in found]


def _writes_outside(node: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether an operator writes into a value that is read elsewhere."""
    if node.op != "call_function" or not operator(node).endswith("_"):
        return False
    return not all(a in inside for a in node.all_input_nodes[:1])


def chosen(graph: fx.Graph, names: Iterable[str]) -> list[Block]:
    """The blocks of these names; `InputError` for one that is not there."""
    known, names = {b.name: b for b in blocks(graph)}, set(names)
    for name in sorted(names):
        if name not in known:
            raise InputError(
                f"there is no residual block {name!r} that can be skipped"
                f"{did_you_mean(name, known)}"
            )
    return [b for n, b in known.items() if n in names]


def leave_out(graph_module: fx.GraphModule, names: Sequence[str]) -> None:
    """Takes the blocks out of a captured network, in place."""
    graph = graph_module.graph
    erased: set[fx.Node] = set()
    for block in reversed(chosen(graph, names)):
        if block.add in erased:  # inside another's branch
            continue
        erased |= {block.add, *block.gone}
        users = list(block.add.users)
        value = block.identity
        block.add.replace_all_uses_with(value)
        graph.erase_node(block.add)
        for node in reversed(block.gone):
            graph.erase_node(node)
        for user in users:
            if operator(user) in ("relu", "relu_") and operator(value) in ("relu", "relu_"):
                user.replace_all_uses_with(value)  # it does nothing a second time
                graph.erase_node(user)
            elif operator(user).endswith("_") and len(value.users) > 1:
                with graph.inserting_before(user):
                    copy = graph.call_function(torch.ops.aten.clone.default, (value,))
                copy.meta = dict(value.meta)
                user.replace_input_with(value, copy)
    graph.lint()
    graph_module.recompile()


class _Zeroed(fx.Interpreter):
    """The whole network, in which the branches of these blocks count for nothing."""

    def __init__(self, graph_module: fx.GraphModule, names: Sequence[str]):
        super().__init__(graph_module)
        self._blocks = {b.add: b for b in chosen(graph_module.graph, names)}

    def run_node(self, n: fx.Node) -> Any:
        block = self._blocks.get(n)
        if block is None:
            return super().run_node(n)
        return self.env[block.identity] + torch.zeros_like(self.env[block.branch])


def without(graph_module: fx.GraphModule, names: Sequence[str], inputs: Batch) -> Any:
    """What the captured network computes where the branches of these blocks are zero: what skipping
    must equal.
    """
    with torch.no_grad():
        flat = inputs_in_order(graph_module.graph, inputs)
        return _Zeroed(graph_module, names).run(*(t.clone() for t in flat))
