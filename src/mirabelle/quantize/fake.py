"""Simulated quantisation: float tensors that hold only values of an integer grid, with gradients for training.

Everything here computes in float32 whatever autocast says: a grid of 256 steps does not fit bfloat16's 8 bits.
"""

from __future__ import annotations

import torch
from torch import nn


def round_half_even(x: torch.Tensor) -> torch.Tensor:
    """Rounds as ONNX's QuantizeLinear does; the gradient passes straight through. Bengio et al. 2013."""
    return x + (x.round() - x).detach()


class ActivationQuantizer(nn.Module):
    """x -> (clip(round(x / scale) + zero_point, low, high) - zero_point) * scale, one scale for the tensor.

    The scale is a parameter: training the network trains it (learned step size, Esser et al. 2020, eq. 3 follows from the straight-through gradient).
    """

    scale: nn.Parameter
    offset: torch.Tensor

    def __init__(self, scale: float, zero_point: int, low: int, high: int):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.low, self.high = low, high
        # A buffer, so that it is saved and loaded with the scale.
        self.register_buffer("offset", torch.tensor(zero_point))

    @property
    def zero_point(self) -> int:
        return int(self.offset)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            scale = _scaled_gradient(self.scale.abs(), x.numel() // max(1, len(x)) * (self.high - self.zero_point))
            steps = (x / scale).clamp(self.low - self.zero_point, self.high - self.zero_point)
            return round_half_even(steps) * scale

    def extra_repr(self) -> str:
        return f"scale={float(self.scale.detach()):.6g}, zero_point={self.zero_point}, levels=[{self.low}, {self.high}]"


class WeightQuantizer(nn.Module):
    """Symmetric, one scale per output channel (dimension `axis`): w -> clip(round(w / scale), -levels, levels) * scale."""

    scale: nn.Parameter

    def __init__(self, scale: torch.Tensor, axis: int, levels: int):
        super().__init__()
        self.scale = nn.Parameter(scale.detach().clone())
        self.axis, self.levels = axis, levels

    def _shaped(self, weight: torch.Tensor) -> torch.Tensor:
        return self.scale.abs().view([-1 if d == self.axis else 1 for d in range(weight.ndim)])

    def integers(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight's integers, int8."""
        return (weight / self._shaped(weight)).clamp(-self.levels, self.levels).round().to(torch.int8)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            weight = weight.float()
            scale = _scaled_gradient(self._shaped(weight), weight.numel() // len(self.scale) * self.levels)
            return round_half_even((weight / scale).clamp(-self.levels, self.levels)) * scale

    def extra_repr(self) -> str:
        return f"channels={len(self.scale)}, axis={self.axis}, levels=±{self.levels}"


def _scaled_gradient(scale: torch.Tensor, weight: int) -> torch.Tensor:
    """The scale itself, its gradient divided by sqrt(weight): the number of weights, or of features of one sample, times the largest level.

    Esser et al. 2020, section 2.2: steps then learn as fast as weights do.
    """
    scaled = scale * (1.0 / weight**0.5)
    return scale.detach() + (scaled - scaled.detach())
