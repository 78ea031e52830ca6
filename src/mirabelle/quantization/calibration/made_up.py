"""What calibration takes back where its pictures were made up: what BatchNorm saw of real ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from mirabelle.base.data import Batch
from mirabelle.base.progress import bar
from mirabelle.graph.capture import get_tensor, inputs_in_order, operator, parameter_name
from mirabelle.graph.layers import as_norm
from mirabelle.graph.nodes import computed_inputs, target_name
from mirabelle.quantization.calibration.histograms import Histogram
from mirabelle.quantization.calibration.observation import PixelByPixel
from mirabelle.quantization.simulation.notes import (
    ChannelMoments,
    Correction,
    correction_of,
    moments_of,
    note_correction,
)
from mirabelle.quantization.simulation.operators import AVERAGES, over_space

MOST = 8.0  # times as far apart: channels that made-up pictures hardly move stay nearly still
# Real averages over space reach further than those of made-up pictures, which show no things: one
# bit of their grids is for what was not seen. That costs 0.6 dB at most where nothing comes, and
# clipped averages cost examples/fashion.py six.
ROOM = 2.0
BOUNDED = {"sigmoid", "hardsigmoid", "softmax", "tanh"}  # reach their ends on any input


def correct(network: fx.GraphModule, batches: Sequence[Batch]) -> None:
    """Notes at every node that a BatchNorm gives, folded or not, how its channels come to the mean
    and the deviation that they had on real inputs: BatchNorm's own shift and scale.

    In the order of execution, so that each BatchNorm is read with those before it corrected. What
    runs the network pixel by pixel (`PixelByPixel`) applies the notes; its weights stay. All
    batches are held at once, with what is alive at a node. After Sun et al. 2019, which
    re-estimates BatchNorm where the inputs have changed; Nagel et al. 2019, section 4.2.1, for what
    BatchNorm tells.
    """
    runner = PixelByPixel(network)
    given = [n for n in network.graph.nodes if n.op == "placeholder"]
    values: list[dict[fx.Node, Any]] = [
        dict(zip(given, inputs_in_order(network.graph, runner.placed(b)), strict=True))
        for b in batches
    ]
    last = {source: n for n in network.graph.nodes for source in n.all_input_nodes}
    nodes = [n for n in network.graph.nodes if n.op not in ("placeholder", "output")]
    with torch.no_grad(), bar("what BatchNorm saw", len(nodes)) as shown:
        for node in nodes:
            for held in values:
                runner.env = held
                held[node] = runner.run_node(node)
            if (wanted := _wanted(network, node)) is not None:
                note_correction(node, _between([held[node] for held in values], wanted))
                for held in values:
                    held[node] = correction_of(node)(held[node])  # type: ignore[misc]
            for source in {*node.all_input_nodes, node}:
                if last.get(source, node) is node:
                    for held in values:
                        held.pop(source, None)
            shown.advance()


def _wanted(network: fx.GraphModule, node: fx.Node) -> ChannelMoments | None:
    """What BatchNorm says of the channels of a node; None where it says nothing."""
    if (noted := moments_of(node)) is not None:
        return noted
    norm = as_norm(node)
    if norm is None or norm.kind != "batch_norm" or parameter_name(norm.mean) is None:
        return None
    assert norm.mean is not None
    mean = get_tensor(network, target_name(norm.mean)).detach()
    shift, scale = (
        None if n is None else get_tensor(network, target_name(n)).detach()
        for n in (norm.bias, norm.weight)
    )
    return ChannelMoments(
        torch.zeros_like(mean) if shift is None else shift,
        torch.ones_like(mean) if scale is None else scale.abs(),
    )


def _between(values: Sequence[torch.Tensor], wanted: ChannelMoments) -> Correction:
    """From the channels of `values`, (n, C, ...) each, to the moments that are wanted."""
    others = [d for d in range(values[0].ndim) if d != 1]
    count = sum(v.numel() // v.shape[1] for v in values)
    mean = torch.stack([v.sum(others).double() for v in values]).sum(0) / count
    shape = (1, -1, *[1] * (values[0].ndim - 2))
    squares = [(v - mean.to(v).view(shape)).square().sum(others).double() for v in values]
    deviation = (torch.stack(squares).sum(0) / count).sqrt()
    factor = (wanted.deviation.to(mean) / deviation).nan_to_num(1.0).clamp_max(MOST)
    shift = wanted.mean.to(mean) - mean * factor
    return Correction(factor.to(values[0]), shift.to(values[0]))


def give_room(
    graph: fx.Graph, histograms: Mapping[str, Histogram], sites: Collection[str]
) -> dict[str, str]:
    """Widens the histograms of sites of which BatchNorm says nothing, and names their rule:
    nothing is clipped.

    These are the network's inputs, whose black and white are flat and common in real pictures, and
    averages over space with what layers make of them: there ROOM times as much is expected as was
    seen. How far whole pictures differ from one another no BatchNorm tells.
    """
    found = {n.name: "absmax" for n in graph.nodes if n.op == "placeholder" and n.name in sites}
    for name in _averaged(graph):
        if name in sites:
            histograms[name].stretch(ROOM)
            found[name] = "absmax"
    return found


def _averaged(graph: fx.Graph) -> Iterable[str]:
    """The names of averages over space, and of what follows from these alone, up to the next
    BatchNorm.
    """
    found: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = computed_inputs(node)
        if node.op != "call_function" or correction_of(node) or operator(node) in BOUNDED:
            continue
        if (operator(node) in AVERAGES and over_space(node)) or (
            inputs and all(i in found for i in inputs)
        ):
            found.add(node)
            yield node.name
