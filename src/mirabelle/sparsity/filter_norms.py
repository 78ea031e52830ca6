"""The lengths of filters, which BatchNorm makes free."""

from __future__ import annotations

import torch
from torch import nn

from mirabelle.base.checks import clone, every_tensor
from mirabelle.base.data import Batch
from mirabelle.channels.parameters import read_parameters
from mirabelle.graph.capture import capture, parameter_name, parameter_uses
from mirabelle.graph.layers import as_norm, is_normed_alone, layer_of
from mirabelle.graph.open_graph import OpenGraph


def as_long_as(
    model: nn.Module, original: nn.Module, inputs: Batch, captured: OpenGraph | None = None
) -> nn.Module:
    """A copy of `model` that gives the same, in which each filter in front of a BatchNorm is as
    long as the weights that it has are in `original`.

    The few weights that are left of a filter take over for the others and grow, ten times and more
    at 98 % zeros; an optimizer whose steps have a size of their own, as Adam's, then hardly moves
    them. BatchNorm divides a filter's outputs by their spread, so that its length is free (van
    Laarhoven 2017, section 2): running statistics follow it, and gamma makes up for what epsilon
    adds to them. Weights and statistics that are used twice, and filters of zeros, are left as they
    are. captured: the original, where that was done before.
    """
    traced = capture(original, inputs) if captured is None else captured.graph_module
    graph, known = traced.graph, read_parameters(traced, original)
    uses = parameter_uses(graph)
    result = clone(model)
    own = every_tensor(result)
    before = dict(original.named_parameters(remove_duplicate=False))
    for node in graph.nodes:
        norm = as_norm(node)
        if norm is None or norm.kind != "batch_norm" or not is_normed_alone(norm.input, uses):
            continue
        layer = layer_of(norm.input)
        assert layer is not None
        given = [layer.weight, norm.weight, norm.mean, norm.variance]
        given += [layer.bias] if layer.bias is not None else []
        names = [n for a in given if (n := parameter_name(a)) is not None]
        if len(names) < len(given) or any(uses[n] != 1 or not known[n].editable for n in names):
            continue
        weight, gamma, mean, variance, *bias = (own[known[n].name] for n in names)
        was = before[known[names[0]].name].detach() * (weight != 0)
        with torch.no_grad():
            now, wanted = (w.detach().flatten(1).norm(dim=1) for w in (weight, was))
            factor = torch.where(
                (now > 0) & (wanted > 0), wanted / now.clamp_min(torch.finfo(now.dtype).tiny), 1.0
            )
            epsilon = float(norm.eps or 0.0)
            gamma.mul_(
                ((factor.square() * variance + epsilon) / (variance + epsilon)).sqrt() / factor
            )
            weight.mul_(factor.view(-1, *[1] * (weight.ndim - 1)))
            for t in (mean, *bias):
                t.mul_(factor)
            variance.mul_(factor.square())
    return result
