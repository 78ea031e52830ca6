"""Rules for recurrent layers (LSTM, GRU, plain ones) over whole sequences, and for their cells,
step by step.

A hidden channel is one row of every gate. Layers and directions of one operator have the same
hidden size, so position j is one channel in all of them. A removed channel counts for nothing in
the steps that follow; initial states that forward makes from zeros have as many channels as are
left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from mirabelle.channels.flow import Flow
from mirabelle.channels.ids import Value, along
from mirabelle.graph.capture import operator

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
CELLS = {f"{name}_cell": gates for name, gates in GATES.items()}
RECURRENT = GATES | CELLS


def layers(
    flow: Flow,
    node: fx.Node,
    x: Any,
    states: Any,
    weights: Any,
    biased: Any,
    count: Any,
    dropout: Any,
    training: Any,
    both_ways: Any,
    *rest: Any,
) -> Any:
    """Sequences, batch first or not: (..., inputs) -> (..., directions x hidden channels), and the
    last states (layers x directions, batch, channels).
    """
    directions = 2 if both_ways else 1
    each = len(weights) // (count * directions)
    hidden = flow.labels.fresh(weights[0].shape[0] // RECURRENT[operator(node)])
    shown = (
        flow.labels.fresh(weights[each - 1].shape[0]) if each % 2 else hidden
    )  # an odd number: one of them projects
    source = flow.of(x)
    inputs, steps = flow.read(node, source, -1), math.prod(source.shape[:-1])
    for start in range(0, len(weights), each):
        into = inputs if start < each * directions else shown.repeat(directions)
        _one(flow, node, weights[start : start + each], into, hidden, shown, steps)
    _begin(flow, node, [shown, hidden])
    sequence, *last = node.meta["val"]
    return tuple(
        _wide(flow, v.shape, labels)
        for v, labels in zip(
            (sequence, *last), (shown.repeat(directions), shown, hidden), strict=False
        )
    )


def cell(flow: Flow, node: fx.Node, x: Any, states: Any, *weights: Any) -> Any:
    """One step: (batch, inputs) -> the next states (batch, hidden channels)."""
    source = flow.of(x)
    hidden = flow.labels.fresh(weights[0].shape[0] // RECURRENT[operator(node)])
    _one(
        flow,
        node,
        weights,
        flow.read(node, source, -1),
        hidden,
        hidden,
        math.prod(source.shape[:-1]),
    )
    _begin(flow, node, [hidden, hidden])
    values = node.meta["val"]
    return (
        tuple(_wide(flow, v.shape, hidden) for v in values)
        if isinstance(values, (tuple, list))
        else _wide(flow, values.shape, hidden)
    )


def _one(
    flow: Flow,
    node: fx.Node,
    weights: Sequence[Any],
    inputs: torch.Tensor,
    hidden: torch.Tensor,
    shown: torch.Tensor,
    steps: int,
) -> None:
    """One layer in one direction. weights: (gates x hidden, inputs), (gates x hidden, shown),
    biases of gates x hidden or none, and where the states that are shown are a projection of the
    hidden ones, (shown, hidden).
    """
    rows = hidden.repeat(weights[0].shape[0] // len(hidden))
    flow.attach(node, weights[0], {0: (rows, "out"), 1: (inputs, "in")})
    flow.attach(node, weights[1], {0: (rows, "out"), 1: (shown, "in")})
    flow.work(steps * math.prod(weights[0].shape), hidden, summed=[inputs])
    flow.work(steps * math.prod(weights[1].shape), hidden, summed=[shown])
    for weight in weights[2:]:
        if weight is None or len(weight.shape) == 1:
            flow.attach(node, weight, {0: (rows, "along")})
        else:
            flow.attach(node, weight, {0: (shown, "out"), 1: (hidden, "in")})
            flow.work(steps * math.prod(weight.shape), shown, summed=[hidden])


def _begin(flow: Flow, node: fx.Node, channels: Sequence[torch.Tensor]) -> None:
    """The channels of the initial states are those of the states that follow."""
    given: Any = node.args[1]
    for state, labels in zip(
        given if isinstance(given, (tuple, list)) else [given], channels, strict=False
    ):
        value = flow.of(flow.values[state])
        own = _wide(flow, value.shape, labels)
        if (
            operator(state) == "zeros"
            and not value.planes
            and all(operator(user) in RECURRENT for user in state.users)
        ):
            flow.values[state] = own
        else:
            flow.merge(node, own, value)


def _wide(flow: Flow, shape: Sequence[int], labels: torch.Tensor) -> Value:
    """A value whose last dimension has these channels."""
    return flow.value(shape, [along(labels, len(shape) - 1, tuple(shape))])
