"""Least squares after a cut of channels: `fitting/least_squares.py` does it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from mirabelle.channels.groups import Coupling
from mirabelle.channels.surgery import indices
from mirabelle.fitting import least_squares as layers


@dataclass(frozen=True)
class Cut:
    """What was done to a network: the channels `removed[group name]` of `original`."""

    original: nn.Module
    coupling: Coupling
    removed: Mapping[str, torch.Tensor]


def reconstruct(small: nn.Module, cut: Cut, data: Iterable, count: int) -> nn.Module:
    """A copy of `small` whose layers give, on `count` batches of `data`, outputs as close as
    possible to those of the same channels before the cut.
    """
    return layers.reconstruct(
        small, cut.original, cut.coupling.inputs, indices(cut.coupling, cut.removed), data, count
    )
