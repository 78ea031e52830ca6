"""What each decision loses, in one unit: the squared error of the network's outputs, relative to
their energy about the mean. No labels are needed.
"""

from __future__ import annotations

import torch
from torch import nn

from mirabelle.base.data import Batch
from mirabelle.base.progress import bar
from mirabelle.channels.groups import Coupling
from mirabelle.pruning.criteria import CRITERIA, group_scores
from mirabelle.pruning.stats import collect
from mirabelle.quantization.api import quantize
from mirabelle.quantization.search.fallback import layer_errors, noise
from mirabelle.quantization.simulation.graph import captured

NAME = "brain_surgeon"


def channel_scores(
    model: nn.Module, coupling: Coupling, data: list[Batch]
) -> dict[str, torch.Tensor]:
    """(C,) by group: what the outputs lose when the channel goes after those that score less,
    `brain_surgeon`'s (`pruning/brain_surgeon.py`), which tries two cuts of each group out.
    """
    stats = collect(model, coupling, data, None, needs_gradients=False)
    found = {}
    with bar("what channels are worth", len(coupling.groups)) as shown:
        for group in coupling.groups:
            found[group.name] = group_scores(NAME, CRITERIA[NAME], group, stats, None, None)
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
    wanted, errors = layer_errors(network, captured(model, data[0]), data)
    spread = energy(wanted)
    return {weight: error / spread for weight, error in errors.items()}
