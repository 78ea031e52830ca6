"""What a captured and a quantized network carry with them, in `meta`: one accessor for each key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from mirabelle.quantization.calibration.histograms import Histogram

MOMENTS = "moments"  # of a node
CORRECTION = "correction"  # of a node
HISTOGRAMS = "histograms"  # of a network, by node
FLOAT_SIZES = "float_sizes"  # of a network, by parameter


class ChannelMoments(NamedTuple):
    """Mean and standard deviation of each channel that a layer gives, (C,) each."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def over(self, factors: torch.Tensor) -> ChannelMoments:
        """Those of the channels divided by `factors` (C,)."""
        return ChannelMoments(*(m / factors.to(m) for m in self))


def moments_of(node: fx.Node) -> ChannelMoments | None:
    """What the BatchNorm that was folded into a layer said of its channels; None where none was."""
    return node.meta.get(MOMENTS)


def note_moments(node: fx.Node, moments: ChannelMoments) -> None:
    node.meta[MOMENTS] = moments


class Correction(NamedTuple):
    """What brings each channel that a layer gives on made-up inputs to the mean and the deviation
    that it has on real ones: value * factor + shift, (C,) each.
    """

    factor: torch.Tensor
    shift: torch.Tensor

    def over(self, factors: torch.Tensor) -> Correction:
        """That of the channels divided by `factors` (C,)."""
        return Correction(self.factor, self.shift / factors.to(self.shift))

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """value: (n, C) or (n, C, ...)."""
        shape = (1, -1, *[1] * (value.ndim - 2))
        return value * self.factor.view(shape) + self.shift.view(shape)


def correction_of(node: fx.Node) -> Correction | None:
    """None where what a layer gives is taken as it is."""
    return node.meta.get(CORRECTION)


def note_correction(node: fx.Node, correction: Correction) -> None:
    node.meta[CORRECTION] = correction


def histograms_of(network: fx.GraphModule) -> Mapping[str, Histogram]:
    """What calibration saw, by node; empty for a network that was loaded."""
    found: Any = network.meta.get(HISTOGRAMS, {})
    return found


def float_sizes_of(network: nn.Module) -> dict[str, list[int]] | None:
    """The shapes of the parameters that the float network had; None where this is one."""
    found: Any = network.meta.get(FLOAT_SIZES) if isinstance(network, fx.GraphModule) else None
    return found
