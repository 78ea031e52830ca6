"""What each decision loses, in one unit: the squared error of the network's outputs, relative to
their energy about the mean. No labels are needed.
"""

from __future__ import annotations

import torch
from torch import nn

from mirabelle.base.data import Batch
from mirabelle.base.progress import bar
from mirabelle.channels.groups import Coupling
from mirabelle.measurement.accuracy import predictor
from mirabelle.pruning.criteria import group_scores
from mirabelle.pruning.stats import collect
from mirabelle.quantization.api import quantize
from mirabelle.quantization.search.fallback import Switchboard, noise
from mirabelle.quantization.simulation.graph import captured

FEW = 64  # samples on which one layer alone computes with integers


def channel_scores(
    model: nn.Module, coupling: Coupling, data: list[Batch]
) -> dict[str, torch.Tensor]:
    """(C,) by group: what the outputs lose when the channel goes after those that score less,
    `brain_surgeon`'s (`pruning/brain_surgeon.py`), which tries two cuts of each group out.
    """
    from mirabelle.pruning.criteria import CRITERIA

    stats = collect(model, coupling, data, None, len(data), needs_gradients=False)
    found = {}
    with bar("what channels are worth", len(coupling.groups)) as shown:
        for group in coupling.groups:
            name = "brain_surgeon"
            found[group.name] = group_scores(name, CRITERIA[name], group, stats, None, None)
            shown.advance()
    return found


def energy(outputs: list[torch.Tensor]) -> float:
    """Of the outputs about their mean."""
    together = torch.cat([o.double() for o in outputs])
    return float((together - together.mean(0)).square().sum().clamp_min(1e-30))


def output_loss(model: nn.Module, wanted: list[torch.Tensor], data: list[Batch]) -> float:
    """What a network's outputs have lost, measured on `data`. wanted: the original's outputs."""
    return noise(model, data, [w.double() for w in wanted]) / energy(wanted)


def integer_losses(model: nn.Module, data: list[Batch]) -> dict[str, float]:
    """By weight: what the outputs lose when the layers of this weight alone compute with integers
    of eight bits.
    """
    network = quantize(model, data, repair=None)
    board = Switchboard(network, captured(model, data[0]))
    few: list[Batch] = []
    for batch in data:
        few.append(batch.head(FEW - sum(b.size for b in few)))
        if sum(b.size for b in few) >= FEW:
            break
    with board.only(None):
        wanted = [predictor(network)(b).double() for b in few]
    spread, found = energy(wanted), {}
    with bar("what integers lose, by layer", len(board.needs)) as shown:
        for weight in board.needs:
            with board.only(weight):
                found[weight] = noise(network, few, wanted) / spread
            shown.advance()
    return found
