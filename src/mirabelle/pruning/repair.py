"""Repair: what is restored in a network after the cut, without labels and without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from mirabelle.channels.groups import Coupling
from mirabelle.channels.surgery import indices
from mirabelle.fitting import least_squares as fitted
from mirabelle.fitting.batchnorm import reestimate_batchnorm, reestimate_where_better
from mirabelle.pruning.settings import Settings


@dataclass(frozen=True)
class Cut:
    """What was done to a network: the channels `removed[group name]` of `original`."""

    original: nn.Module
    coupling: Coupling
    removed: Mapping[str, torch.Tensor]


def reconstruct(small: nn.Module, cut: Cut, data: Iterable) -> nn.Module:
    """A copy of `small` whose layers give, on `data`, outputs as close as possible to those of the
    same channels before the cut.
    """
    return fitted.reconstruct(
        small,
        cut.original,
        cut.coupling.inputs,
        indices(cut.coupling, cut.removed),
        data,
        captured=cut.coupling.captured,
    )


def bn(small: nn.Module, cut: Cut, data: Iterable) -> nn.Module:
    """BatchNorm's statistics alone."""
    return reestimate_batchnorm(small, data)


def least_squares(small: nn.Module, cut: Cut, data: Iterable) -> nn.Module:
    """The weights of the layers whose inputs have changed, then BatchNorm's statistics, where those
    bring the outputs nearer to the original's on the same data.
    """
    return reestimate_where_better(reconstruct(small, cut, data), cut.original, data)


# (the cut network, what was cut, data) -> the repaired network
REPAIRS: dict[str, Callable[[nn.Module, Cut, Iterable], nn.Module]] = {
    "bn": bn,
    "least-squares": least_squares,
}


def repaired(small: nn.Module, cut: Cut, settings: Settings) -> nn.Module:
    """The cut network, repaired as the settings say, where there are data for it."""
    if settings.repair is None or settings.read is None:
        return small
    return REPAIRS[settings.repair](small, cut, settings.read)
