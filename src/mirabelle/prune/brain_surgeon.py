"""Optimal Brain Surgeon on whole channels: what a channel costs once the weights that remain have been fitted again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mirabelle.graph.groups import Group
from mirabelle.moments import ridge
from mirabelle.prune.stats import Stats, per_channel

STEPS = 128  # at least so many removals one after the other for a group; larger groups lose several channels at once


@dataclass
class Reader:
    """What is left of one layer that reads the group: b columns for each of the n channels that remain.

    inverse: (n b, n b), the rows and columns of (A'A + r I)^-1 that belong to them. weights: (outputs, n b), over the root of the output's energy.
    """

    inverse: torch.Tensor
    weights: torch.Tensor
    block: int

    def costs(self) -> torch.Tensor:
        """(n,): for each channel c the least error of the outputs without it, tr(W_c ((H^-1)_cc)^-1 W_c')."""
        b = self.block
        n = len(self.inverse) // b
        blocks = self.inverse.view(n, b, n, b).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        weights = self.weights.view(-1, n, b).permute(1, 2, 0)
        return (weights * torch.linalg.solve(blocks, weights)).sum((1, 2))

    def remove(self, gone: torch.Tensor, left: torch.Tensor) -> None:
        """Fits the weights of the channels `left` to what the `gone` contributed, and takes the latter out of the inverse."""
        b = self.block
        s, r = ((c[:, None] * b + torch.arange(b)).flatten() for c in (gone, left))
        taken = torch.linalg.solve(self.inverse[s][:, s], self.inverse[s][:, r])
        self.weights = self.weights[:, r] - self.weights[:, s] @ taken
        self.inverse = self.inverse[r][:, r] - self.inverse[r][:, s] @ taken


def brain_surgeon(group: Group, stats: Stats) -> torch.Tensor:
    """How much the outputs of the group's readers suffer, at the least, when the channel goes after those with lower scores. No labels are needed.

    For a reader with weights W and H = A'A + r I of its inputs, the error of its outputs without the columns S, all others being fitted again, is
    tr(W_S ((H^-1)_SS)^-1 W_S'). The channel for which this is least, relative to the energy of the outputs and summed over the readers, goes first;
    then W and H^-1 are those of the fitted rest. The score is the greatest such increment so far, so that it grows with the order of removal and
    is comparable between groups. Hassibi & Stork 1993, eq. 5, on blocks as in ZipLM (Kurtic et al. 2023, eq. 4).

    Readers that are no plain convolution or linear layer, or have too many columns (`stats.MOST_COLUMNS`), count with the channel's share of their squared weights.
    """
    readers, scores = [], torch.zeros(group.channels, dtype=torch.float64)
    for slot in group.with_role("in"):
        weight = stats.tensors[slot.parameter].cpu().double()
        if slot.module not in stats.grams or slot.dim != 1:
            shares = per_channel(weight, slot).square().sum(1)
            scores += shares / shares.sum().clamp_min(1e-30)
            continue
        gram = stats.grams[slot.module].cpu()
        spread = weight[0, 0].numel()
        columns = (slot.index[..., None] * spread + torch.arange(spread)).reshape(-1)
        inverse = torch.linalg.inv(gram + ridge(gram))
        n, flat = gram[-1, -1], weight.flatten(1)
        energy = (flat @ (gram[:-1, :-1] - torch.outer(gram[-1, :-1], gram[-1, :-1]) / n) * flat).sum()  # about the mean, which a bias gives
        readers.append(Reader(inverse[columns][:, columns], flat[:, columns] / energy.clamp_min(1e-30).sqrt(), len(columns) // group.channels))
    return scores + _removed_in_order(readers, scores)


def _removed_in_order(readers: list[Reader], other: torch.Tensor) -> torch.Tensor:
    """The greatest cost so far, when the channel that is cheapest at the time goes next. other: (C,) what else a channel costs."""
    at_once = max(1, len(other) // STEPS)
    left, scores, highest = torch.arange(len(other)), torch.zeros_like(other), 0.0
    while readers and len(left):
        costs = torch.stack([r.costs() for r in readers]).sum(0)
        order = (costs + other[left]).argsort(stable=True)
        gone, stay = order[:at_once], order[at_once:].sort().values
        for c in gone.tolist():  # a little more each time, so that the order can be read from equal costs
            highest = scores[left[c]] = max(highest * (1 + 1e-6), float(costs[c]))
        for reader in readers:
            reader.remove(gone, stay)
        left = left[stay]
    return scores
