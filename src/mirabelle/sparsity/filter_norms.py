"""The lengths of filters, which BatchNorm makes free."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import clone
from mirabelle.base.data import Batch
from mirabelle.channels.parameters import read_parameters
from mirabelle.graph.capture import (
    capture,
    is_normed_alone,
    operator,
    parameter_name,
    parameter_uses,
)


def as_long_as(model: nn.Module, original: nn.Module, inputs: Batch) -> nn.Module:
    """A copy of `model` that gives the same, in which each filter in front of a BatchNorm is as
    long as the weights that it has are in `original`.

    The few weights that are left of a filter take over for the others and grow, ten times and more
    at 98 % zeros; an optimiser whose steps have a size of their own, as Adam's, then hardly moves
    them. BatchNorm divides a filter's outputs by their spread, so that its length is free (van
    Laarhoven 2017, section 2): running statistics follow it, and gamma makes up for what epsilon
    adds to them. Weights and statistics that are used twice, and filters of zeros, are left as they
    are.
    """
    captured = capture(original, inputs)
    graph, known = captured.graph, read_parameters(captured, original)
    uses = parameter_uses(graph)
    result = clone(model)
    own = dict(result.named_parameters(remove_duplicate=False)) | dict(
        result.named_buffers(remove_duplicate=False)
    )
    before = dict(original.named_parameters(remove_duplicate=False))
    for norm in graph.nodes:
        args: Any = norm.args
        if operator(norm) != "batch_norm" or not is_normed_alone(layer := args[0], uses):
            continue
        given = [
            *layer.args[1:2],
            args[1],
            args[3],
            args[4],
            *[a for a in layer.args[2:3] if a is not None],
        ]
        names = [parameter_name(a) if a is not None else None for a in given]
        if any(n is None or uses[n] != 1 or not known[n].editable for n in names):
            continue
        weight, gamma, mean, variance, *bias = (own[known[n].name] for n in names)  # type: ignore[index]
        was = before[known[names[0]].name].detach() * (weight != 0)  # type: ignore[index]
        with torch.no_grad():
            now, wanted = (w.detach().flatten(1).norm(dim=1) for w in (weight, was))
            factor = torch.where(
                (now > 0) & (wanted > 0), wanted / now.clamp_min(torch.finfo(now.dtype).tiny), 1.0
            )
            epsilon = float(args[7])
            gamma.mul_(
                ((factor.square() * variance + epsilon) / (variance + epsilon)).sqrt() / factor
            )
            weight.mul_(factor.view(-1, *[1] * (weight.ndim - 1)))
            for t in (mean, *bias):
                t.mul_(factor)
            variance.mul_(factor.square())
    return result
