"""Least squares: the weights that read pruned channels, solved for so that each layer's output stays what it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from mirabelle.checks import clone
from mirabelle.data import batches
from mirabelle.graph.groups import Coupling
from mirabelle.moments import flat, has_rows, moments, order, put_flat, ridge
from mirabelle.progress import bar


@dataclass(frozen=True)
class Cut:
    """What was done to a network: the channels `removed[group name]` of `original`."""

    original: nn.Module
    coupling: Coupling
    removed: Mapping[str, torch.Tensor]


def reconstruct(small: nn.Module, cut: Cut, data: Iterable, count: int) -> nn.Module:
    """A copy of `small` whose layers give, on `count` batches of `data`, outputs as close as possible to those of the same channels before the cut.

    For each convolution or linear layer that reads pruned channels, in the order of execution, with A the inputs in the network as it is by then (one row an
    output position, through im2col, and a column of ones), Y the layer's outputs in the original and W the weights as they were cut:

        W' = W + (A'A + r I)^-1 (A'Y - A'A W),   r = RIDGE * trace(A'A) / columns

    ridge regression towards W, from streamed sums, solved in float64. At most ROWS_PER_SAMPLE random positions of each sample are used. The column of ones
    goes into the bias where the layer has one; elsewhere BatchNorm's re-estimated mean takes its place. No labels are needed. Depthwise layers read one
    channel each and are left as they are; so are layers that are not modules of their own or run several times in a pass.
    He et al. 2017 (channel pruning), section 3.1, with the inputs of the pruned network as in its "asymmetric" form.
    """
    training = {n: m.training for n, m in small.named_modules()}
    result, reference = clone(small).eval(), clone(cut.original).eval()
    readers = [n for n in _readers(cut) if has_rows(reference.get_submodule(n))]
    layers = order(reference, readers, next(iter(batches(data, 1, what="data"))))
    kept = _kept_outputs(cut)
    with torch.no_grad(), bar("least squares", len(layers)) as shown:
        for name in layers:
            _solve(reference, result, name, kept.get(name), data, count)
            shown.advance()
    for name, module in result.named_modules():
        module.training = training[name]
    return result


def _readers(cut: Cut) -> list[str]:
    """The modules that read channels of which some were removed."""
    return list(dict.fromkeys(s.module for g in cut.coupling.groups if len(cut.removed.get(g.name, ())) for s in g.with_role("in")))


def _kept_outputs(cut: Cut) -> dict[str, torch.Tensor]:
    """By module, the output channels that are left, in order."""
    kept: dict[str, torch.Tensor] = {}
    for group in cut.coupling.groups:
        gone = cut.removed.get(group.name)
        if gone is None or not len(gone):
            continue
        for slot in group.with_role("out"):
            size = cut.coupling.shapes[slot.parameter][slot.dim]
            left = torch.ones(size, dtype=torch.bool)
            left[slot.index[gone].reshape(-1)] = False
            kept[slot.module] = left & kept.get(slot.module, torch.ones(size, dtype=torch.bool))
    return {name: mask.nonzero()[:, 0] for name, mask in kept.items()}


def _solve(reference: nn.Module, result: nn.Module, name: str, kept: torch.Tensor | None, data: Iterable, count: int) -> None:
    module = result.get_submodule(name)
    w = flat(module)
    gram, moment = moments(reference, result, name, data, count, kept)
    put_flat(module, w + torch.linalg.solve(gram + ridge(gram), moment - gram @ w))
