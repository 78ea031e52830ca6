"""A quantized network and the float one that it came from, run side by side, layer by layer."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mirabelle.base.data import Batch, device_of
from mirabelle.base.progress import bar
from mirabelle.graph.capture import get_tensor, inputs_in_order
from mirabelle.graph.nodes import argument, target_name
from mirabelle.quantization.forms.qdq import is_contraction_of_quantized


@dataclass(frozen=True)
class Reached:
    """A quantized layer that both networks have reached. inputs: what it reads in the quantized
    network, for each batch. targets: what it gives in the float one.

    What is changed in the layer's weight and bias before the next layer is asked for is what the
    following layers see.
    """

    node: fx.Node
    inputs: list[torch.Tensor]
    targets: list[torch.Tensor]
    network: fx.GraphModule

    def outputs(self) -> Iterator[torch.Tensor]:
        """What the layer gives in the quantized network, with its weights as they are now."""
        source = argument(self.node, 0)
        yield from _calls(self.node, [{source: x} for x in self.inputs], self.network)


def side_by_side(
    network: fx.GraphModule, reference: fx.GraphModule, batches: Sequence[Batch], what: str
) -> Iterator[Reached]:
    """Runs `network` (quantized) and `reference` (its float graph, with nodes of the same names)
    over the batches, and stops at each quantized layer.

    Each operator runs once for each batch and network, so the whole costs two forward passes; in
    exchange what is alive at a layer is held for all batches.
    """
    names = {n.name: n for n in reference.graph.nodes}
    device = device_of(network)
    feeds = [inputs_in_order(network.graph, b.to(device)) for b in batches]
    ours: list[dict[fx.Node, Any]] = [{} for _ in feeds]
    theirs: list[dict[fx.Node, Any]] = [{} for _ in feeds]
    last = {source: node for node in network.graph.nodes for source in node.all_input_nodes}
    last_float = {names[s.name]: n for s, n in _last_readers(network, names).items()}
    placeholder = 0
    count = sum(is_contraction_of_quantized(n, network) for n in network.graph.nodes)
    with torch.no_grad(), bar(what, count) as shown:
        for node in network.graph.nodes:
            twin = names.get(node.name)
            if node.op == "output" or _is_constant(node):
                continue
            if node.op == "placeholder":
                for feed, a, b in zip(feeds, ours, theirs):
                    a[node] = b[names[node.name]] = feed[placeholder]
                placeholder += 1
                continue
            if twin is not None:
                for b, value in zip(theirs, _calls(twin, theirs, reference)):
                    b[twin] = value
            if is_contraction_of_quantized(node, network):
                yield Reached(
                    node,
                    [a[argument(node, 0)] for a in ours],
                    [b[names[node.name]] for b in theirs],
                    network,
                )
                shown.advance()
            for a, value in zip(ours, _calls(node, ours, network)):
                a[node] = value
            for source in node.all_input_nodes:
                if last[source] is node:
                    for a in ours:
                        a.pop(source, None)
            for source in [s for s, reader in last_float.items() if reader is node]:
                for b in theirs:
                    b.pop(source, None)


def _last_readers(network: fx.GraphModule, names: dict[str, fx.Node]) -> dict[fx.Node, fx.Node]:
    """For each node of the quantized graph that the float graph has too, the node of the quantized
    graph at which its float value is read last.
    """
    found: dict[fx.Node, fx.Node] = {}
    own = {n.name: n for n in network.graph.nodes}
    for node in network.graph.nodes:
        if (twin := names.get(node.name)) is not None:
            found |= {own[s.name]: node for s in twin.all_input_nodes if s.name in own}
    return found


def _is_constant(node: fx.Node) -> bool:
    """Parameters, and their quantizers: these are computed when they are read, so that a change is
    seen.
    """
    return node.op == "get_attr" or (
        node.op == "call_module" and argument(node, 0).op == "get_attr"
    )


def _calls(
    node: fx.Node, batches: Sequence[dict[fx.Node, Any]], network: fx.GraphModule
) -> Iterator[Any]:
    """What the node gives for the values of each batch. Parameters, quantized where they are, are
    read once for all of them.
    """
    constants = {n: _constant(n, network) for n in node.all_input_nodes if _is_constant(n)}
    target: Any = (
        network.get_submodule(target_name(node)) if node.op == "call_module" else node.target
    )
    for values in batches:
        known: ChainMap[fx.Node, Any] = ChainMap(constants, values)
        args: Any = fx.map_arg(node.args, known.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, known.__getitem__)
        yield target(*args, **kwargs)


def _constant(node: fx.Node, network: fx.GraphModule) -> Any:
    if node.op == "get_attr":
        return get_tensor(network, target_name(node))
    value = get_tensor(network, target_name(argument(node, 0)))
    return network.get_submodule(target_name(node))(value)
