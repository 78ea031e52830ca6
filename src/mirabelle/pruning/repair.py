"""Repair: what is mended in a network after the cut, without labels and without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from mirabelle.fitting.batchnorm import reestimate_batchnorm, reestimate_where_better
from mirabelle.pruning.reconstruct import Cut, reconstruct


def bn(small: nn.Module, cut: Cut, data: Iterable, count: int) -> nn.Module:
    """BatchNorm's statistics alone."""
    return reestimate_batchnorm(small, data, count)


def least_squares(small: nn.Module, cut: Cut, data: Iterable, count: int) -> nn.Module:
    """The weights of the layers whose inputs have changed, then BatchNorm's statistics, where those
    bring the outputs nearer to the original's on the same data.
    """
    return reestimate_where_better(reconstruct(small, cut, data, count), cut.original, data, count)


# (the cut network, what was cut, data, batches to use) -> the mended network
REPAIRS: dict[str, Callable[[nn.Module, Cut, Iterable, int], nn.Module]] = {
    "bn": bn,
    "least-squares": least_squares,
}
