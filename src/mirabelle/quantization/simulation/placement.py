"""Placement: which values of a captured graph are quantized, so that runtimes can fuse every layer
into one integer kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import fx

from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.base.keep import covers
from mirabelle.graph.capture import module_path, operator, parameter_name
from mirabelle.graph.nodes import computed_inputs, has_value, optional_argument
from mirabelle.quantization.simulation.operators import (
    AVERAGES,
    CONVOLUTIONS,
    PASSES,
    QUANTIZED_LAYERS,
    RECTIFIERS,
    before_rectifier,
    factors,
    float_name,
    is_addition,
    is_contraction,
    layer_input,
    over_space,
    tail,
    unpadded,
)
from mirabelle.quantization.targets import TARGETS, Target


@dataclass(frozen=True)
class Site:
    """A value that is quantized. node: its name in the graph. layer: the module path (and operator)
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
        if operator(node) in QUANTIZED_LAYERS and path
        else f"{path or 'network'} ({operator(node) or node.name})"
    )


def contractions(graph: fx.Graph, keep: Iterable[str] = ()) -> list[fx.Node]:
    """The layers that are quantized: those whose weight is a parameter, without those that `keep`
    names by module or parameter.
    """
    return [n for n in graph.nodes if is_contraction(n) and not is_kept(n, keep)]


def is_kept(node: fx.Node, keep: Iterable[str]) -> bool:
    """Whether `keep` names the module of a layer or product, one around it, or a layer's weight."""
    paths = (str(parameter_name(optional_argument(node, 1))), module_path(node))
    return covers(keep, *paths)


def check_layers_kept(graph: fx.Graph, keep: Iterable[str]) -> None:
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
        inputs = [n for n in computed_inputs(node) if has_value(n)]
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


def place(graph: fx.Graph, keep: Iterable[str] = (), target: Target = TARGETS["x86"]) -> list[Site]:
    """The sites in order of execution.

    The inputs of every convolution and linear layer. Where the target rounds what convolutions
    give: their outputs, after the rectifier, and additions whose operands are both quantized; where
    it adds before it rounds: the operand of an addition that no convolution hands over directly.
    Averages over space of quantized values.
    Where the target multiplies them as integers: the queries and keys of attention, as far as they
    come from quantized layers. Data movement keeps the grid of what it moves. A value that only
    floats read is left in float, and so are the layers that `keep` names and whatever no rule
    names.
    """
    sites = _Sites(contractions(graph, keep), keep, target)
    for node in graph.nodes:
        if node.op == "call_function" and has_value(node):
            sites.visit(node)
    order = {node: i for i, node in enumerate(graph.nodes)}
    return [sites.chosen[n] for n in sorted(sites.chosen, key=order.__getitem__)]


class _Sites:
    """The sites of a graph whose nodes are visited in order. layers: those that are quantized."""

    def __init__(self, layers: Iterable[fx.Node], keep: Iterable[str], target: Target):
        self.layers, self.keep, self.target = set(layers), keep, target
        self.chosen: dict[fx.Node, Site] = {}

    def visit(self, node: fx.Node) -> None:
        name, inputs = operator(node), computed_inputs(node)
        if node in self.layers:
            self._choose(layer_input(node))
            if self.target.rounded and name in CONVOLUTIONS:
                self._choose(tail(node), node)
        elif is_addition(node):
            self._visit_addition(node, inputs)
        elif name in AVERAGES and over_space(node):
            self._visit_average(node, inputs[0])
        elif name in PASSES:
            if inputs and inputs[0] in self.chosen:
                self._choose(node)
        elif self.target.products:
            self._visit_product(node)

    def _choose(self, node: fx.Node, layer: fx.Node | None = None) -> None:
        """node gets a grid; behind data movement, that of what was moved."""
        if node in self.chosen:
            return
        inputs = computed_inputs(node)
        if (
            operator(node) in PASSES
            and len(inputs) == 1
            and inputs[0].op != "placeholder"
            and (inputs[0] in self.chosen or _computes(inputs[0]))
        ):
            self._choose(inputs[0])
            before = self.chosen[inputs[0]]
            self.chosen[node] = Site(node.name, layer_name(node), before.source or before.node)
        else:
            self.chosen[node] = Site(node.name, layer_name(layer or before_rectifier(node)))

    def _visit_addition(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        if self.target.sums:
            fused = summed(node, self.layers)
            other = next((i for i in inputs if i is not fused), None)
            if (
                fused is not None
                and other is not None
                and (other in self.chosen or before_rectifier(other) in self.layers)
            ):
                self._choose(other)
        elif all(i in self.chosen for i in inputs):
            self._choose(tail(node), node)

    def _visit_average(self, node: fx.Node, source: fx.Node) -> None:
        made = before_rectifier(source)
        if (
            self.target.averages
            and not self.target.rounded
            and (made in self.layers or is_addition(made))
        ):
            self._choose(source)
        if source in self.chosen:
            self._choose(node)

    def _visit_product(self, node: fx.Node) -> None:
        """Each operand gets a grid of its own where it is read: moving it about costs less in float
        than rounding it before and after.
        """
        operands = factors(node)
        if (
            operands
            and all(_from_layers(o, self.layers) for o in operands)
            and not is_kept(node, self.keep)
        ):
            for operand in operands:
                self.chosen.setdefault(operand, Site(operand.name, layer_name(operand)))


def _computes(node: fx.Node) -> bool:
    return operator(node) in PASSES | AVERAGES | RECTIFIERS | QUANTIZED_LAYERS or is_addition(node)


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
