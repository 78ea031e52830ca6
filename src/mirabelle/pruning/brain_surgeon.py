"""Optimal Brain Surgeon on whole channels: what a channel costs once the weights that remain have
been fitted again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from mirabelle.channels.groups import Group, Slot
from mirabelle.fitting.gram import Gram, ridge
from mirabelle.pruning.stats import Stats, per_channel

# at least so many removals one after the other for a group; larger groups lose several channels at
# once
STEPS = 128


@dataclass
class Reader:
    """What is left of one layer that reads the group: b columns for each of the n channels that
    remain.

    inverse: (n b, n b), the rows and columns of (A'A + r I)^-1 that belong to them. weights:
    (outputs, n b), in units in which an error's sum of squares counts.
    """

    inverse: torch.Tensor
    weights: torch.Tensor
    block: int

    def costs(self) -> torch.Tensor:
        """(n,): for each channel c the least error of the outputs without it, tr(W_c ((H^-1)_cc)^-1
        W_c').
        """
        b = self.block
        n = len(self.inverse) // b
        blocks = self.inverse.view(n, b, n, b).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        weights = self.weights.view(-1, n, b).permute(1, 2, 0)
        return (weights * torch.linalg.solve(blocks, weights)).sum((1, 2))

    def remove(self, gone: torch.Tensor, left: torch.Tensor) -> None:
        """Fits the weights of the channels `left` to what the `gone` contributed, and takes the
        latter out of the inverse.
        """
        b = self.block
        s, r = ((c[:, None] * b + torch.arange(b)).flatten() for c in (gone, left))
        rows = self.inverse[r]  # the matrix is large: it is copied as seldom as can be
        across = rows[:, s]
        taken = torch.linalg.solve(self.inverse[s][:, s], across.T)
        self.weights = self.weights[:, r] - self.weights[:, s] @ taken
        self.inverse = rows[:, r].addmm_(across, taken, alpha=-1)


@dataclass
class ReadingGroup:
    """One group of one layer that reads the channels. rows: its filters among the layer's. inverse:
    of A'A + r I, without the column of ones. columns: (C, b).
    """

    parameter: str
    rows: slice
    weights: torch.Tensor
    inverse: torch.Tensor
    columns: torch.Tensor

    def without(self, gone: torch.Tensor) -> torch.Tensor:
        """Its weights with the columns of the channels `gone` at zero and all others fitted
        again.
        """
        s = self.columns[gone].reshape(-1)
        shares = torch.linalg.solve(self.inverse[s][:, s], self.weights[:, s].T).T
        fitted = self.weights - shares @ self.inverse[s]
        fitted[:, s] = 0
        return fitted


def brain_surgeon(group: Group, stats: Stats) -> torch.Tensor:
    """How much the network's outputs suffer, at the least, when the channel goes after those with
    lower scores. No labels are needed.

    For a reader with weights W and H = A'A + r I of its inputs, the error of its outputs without
    the columns S, all others being fitted again, is tr(F W_S ((H^-1)_SS)^-1 W_S'), F being how much
    the network's outputs depend on the reader's (`Gram.sensitivity`; where that is unknown, one
    over the energy of the reader's outputs). The channel for which the sum over the readers is
    least goes first; then W and H^-1 are those of the fitted rest. Hassibi & Stork 1993, eq. 5, on
    blocks as in ZipLM (Kurtic et al. 2023, eq. 4). A convolution with groups is a reader for each
    of them.

    The order is good within a group, but the sums take errors at different places as independent,
    which they are not: between groups they may be wrong by orders of magnitude. So a fifth and a
    half of the channels are removed on trial, and the increments are scaled to the error of the
    network's outputs that is measured then. The score is the greatest increment so far, so that it
    grows with the order of removal, relative to the energy of the network's outputs.

    Readers that are no plain convolution or linear layer, or have too many columns
    (`stats.MOST_COLUMNS`), count with the channel's share of their squared weights.
    """
    readers, layers, scores = [], [], torch.zeros(group.channels, dtype=torch.float64)
    for slot in group.with_role("in"):
        weight = stats.tensors[slot.parameter].cpu().double()
        if slot.module not in stats.grams or slot.dim != 1:
            shares = per_channel(weight, slot).square().sum(1)
            scores += shares / shares.sum().clamp_min(1e-30)
            continue
        for reader, layer in _readers(
            weight.flatten(1), slot, weight[0, 0].numel(), stats.grams[slot.module]
        ):
            readers.append(reader)
            layers.append(layer)
    scores = scores + _removed_in_order(readers, scores)
    return scores if stats.trial is None else _measured(group, stats, scores, layers)


def _measured(
    group: Group, stats: Stats, scores: torch.Tensor, layers: list[ReadingGroup]
) -> torch.Tensor:
    """The scores scaled to the errors of the outputs without the first fifth and the first half of
    the channels.
    """
    trial = stats.trial
    assert trial is not None
    order = scores.argsort(stable=True)
    rising = scaled_to_trials(
        scores[order],
        {group.channels // 5, group.channels // 2},
        lambda count: trial(_without(group, stats, layers, order[:count])),
    )
    return torch.empty_like(scores).index_copy_(0, order, rising)


def scaled_to_trials(
    costs: torch.Tensor, counts: Iterable[int], error: Callable[[int], float]
) -> torch.Tensor:
    """Predicted costs of what goes one after the other, scaled to errors of the network's outputs
    that are measured without the first so many; each at least the one before.

    costs: (n,) in the order of removal. counts: at which it is measured; 0 is left out.
    """
    predicted = costs.cumsum(0)
    scaled, begun, before, expected = costs.clone(), 0, 0.0, 0.0
    factor = 1.0
    for count in sorted(set(counts) - {0}):
        found = error(count)
        factor = max(found - before, 1e-2 * found, 1e-12) / max(
            float(predicted[count - 1]) - expected, 1e-30
        )
        scaled[begun:count] *= factor
        begun, before, expected = count, max(before, found), float(predicted[count - 1])
    scaled[begun:] *= factor
    return scaled.cummax(0).values * (1 + 1e-9 * torch.arange(len(scaled)))


def _without(
    group: Group, stats: Stats, layers: list[ReadingGroup], gone: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The weights of the group's readers when they do without these channels."""
    changes: dict[str, torch.Tensor] = {}
    for slot in group.with_role("in"):
        tensor = changes.get(slot.parameter, stats.tensors[slot.parameter].clone())
        tensor.index_fill_(slot.dim, slot.index[gone].reshape(-1).to(tensor.device), 0)
        changes[slot.parameter] = tensor
    for layer in layers:
        flat = changes[layer.parameter].flatten(1)
        flat[layer.rows] = layer.without(gone).to(flat)
    return changes


def _readers(
    weights: torch.Tensor, slot: Slot, spread: int, known: Gram
) -> list[tuple[Reader, ReadingGroup]]:
    """One for each group of a layer, whose inputs have `spread` columns each."""
    places = (slot.index[..., None] * spread + torch.arange(spread)).flatten(1)
    columns = places.reshape(-1)
    grams = known.matrix.cpu()
    each = len(weights) // len(grams)
    found = []
    for number, gram in enumerate(grams):
        rows = slice(number * each, (number + 1) * each)
        w = weights[rows]
        inverse = torch.linalg.inv(gram + ridge(gram, float(gram[-1, -1])))
        root = root_of_sensitivity(known, rows, w, about_mean(gram))
        plain = (
            inverse[:-1, :-1] - torch.outer(inverse[:-1, -1], inverse[-1, :-1]) / inverse[-1, -1]
        )
        layer = ReadingGroup(slot.parameter, rows, w, plain, places)
        found.append(
            (Reader(inverse[columns][:, columns], root @ w[:, columns], places.shape[1]), layer)
        )
    return found


def about_mean(gram: torch.Tensor) -> torch.Tensor:
    """A'A of what a layer reads, less its mean, which a bias can give."""
    return gram[:-1, :-1] - torch.outer(gram[-1, :-1], gram[-1, :-1]) / gram[-1, -1]


def root_of_sensitivity(
    known: Gram, rows: slice, weights: torch.Tensor, spread: torch.Tensor, ridge: float = 0.0
) -> torch.Tensor:
    """R with R'R = F, how much the network's outputs depend on these rows of the layer's; one over
    the energy of what they give where that is unknown. spread: `about_mean`. ridge: so much of the
    mean of F's diagonal is added to it.
    """
    if known.sensitivity is None:
        energy = ((weights @ spread) * weights).sum().clamp_min(1e-30)
        return torch.eye(len(weights), dtype=weights.dtype) / energy.sqrt()
    values, vectors = torch.linalg.eigh(known.sensitivity.cpu()[rows, rows])
    values = values.clamp_min(0)
    return (values + ridge * values.mean()).sqrt()[:, None] * vectors.T


def _removed_in_order(readers: list[Reader], other: torch.Tensor) -> torch.Tensor:
    """The greatest cost so far, when the channel that is cheapest at the time goes next. other:
    (C,) what else a channel costs.
    """
    at_once = max(1, len(other) // STEPS)
    left, scores, highest = torch.arange(len(other)), torch.zeros_like(other), 0.0
    while readers and len(left):
        costs = torch.stack([r.costs() for r in readers]).sum(0)
        order = (costs + other[left]).argsort(stable=True)
        gone, stay = order[:at_once], order[at_once:].sort().values
        for c in (
            gone.tolist()
        ):  # a little more each time, so that the order can be read from equal costs
            highest = scores[left[c]] = max(highest * (1 + 1e-6), float(costs[c]))
        for reader in readers:
            reader.remove(gone, stay)
        left = left[stay]
    return scores
