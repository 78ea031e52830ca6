"""Simulated quantization: float tensors that hold only values of an integer grid, with gradients
for training.

Everything here computes in float32 whatever autocast says: a grid of 256 steps does not fit
bfloat16's 8 bits.
"""

from __future__ import annotations

import math

import torch
from torch import nn


def round_half_even(x: torch.Tensor) -> torch.Tensor:
    """Rounds as ONNX's QuantizeLinear does; the gradient passes straight through. Bengio et al.
    2013.
    """
    return x + (x.round() - x).detach()


class Quantizer(nn.Module):
    """x -> (clip(round(x / scale) + offset, low, high) - offset) * scale.

    scale, offset: one number for the tensor, or one for each index of dimension `axis`.

    The step is learned: training the network trains `log_ratio`, the logarithm of scale / `start`.
    The straight-through gradient gives eq. 3 of Esser et al. 2020 (LSQ).
    A logarithm, because Adam moves every parameter by about the learning rate: a step of 0.002
    would be gone at once, its logarithm moves by a share of itself (Jain et al. 2020, section 3.2).
    Its gradient is scaled so that plain gradient descent moves the step as LSQ does (section 2.2
    there).
    """

    start: torch.Tensor
    offset: torch.Tensor

    def __init__(
        self, scale: torch.Tensor, offset: torch.Tensor | None, low: int, high: int, axis: int = 0
    ):
        super().__init__()
        self.low, self.high, self.axis = low, high, axis
        self.enabled = True  # false: what comes in goes out
        self.register_buffer("start", scale.detach().float().clone())
        self.log_ratio = nn.Parameter(torch.zeros_like(self.start))
        # A buffer, so that it is saved and loaded with the scale; where there is none it is zero.
        self.register_buffer(
            "offset", torch.tensor(0) if offset is None else offset, persistent=offset is not None
        )

    @property
    def scale(self) -> torch.Tensor:
        return self.start * self.log_ratio.exp()

    @property
    def bits(self) -> int:
        return math.ceil(math.log2(self.high - self.low + 1))

    def reset(self, scale: torch.Tensor) -> None:
        """Takes `scale` for the step that training starts from."""
        with torch.no_grad():
            self.start.copy_(scale)
            self.log_ratio.zero_()

    def _spread(self, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (
            values.view([-1 if d == self.axis else 1 for d in range(x.ndim)])
            if values.numel() > 1
            else values
        )

    def _learned(self, features: int) -> torch.Tensor:
        """The scale. Its logarithm's gradient is multiplied by g / scale² with g = 1 /
        sqrt(features * largest level): then a step of gradient descent on the logarithm changes the
        scale by as much as one on the scale with gradient g * dL/dscale, which is LSQ's.
        """
        largest = self.high - (
            self.offset if self.offset.numel() == 1 else self.offset.float().mean()
        )
        weight = (
            self.scale.detach().square() * (features * largest).clamp_min(1).sqrt()
        ).reciprocal()
        scaled = self.log_ratio * weight
        return self.start * (self.log_ratio.detach() + (scaled - scaled.detach())).exp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.enabled:
            return x
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            scale = self._spread(
                self._learned(self._features(x)) if torch.is_grad_enabled() else self.scale, x
            )
            offset = self._spread(self.offset, x)
            return round_half_even((x / scale).clamp(self.low - offset, self.high - offset)) * scale

    def _features(self, x: torch.Tensor) -> int:
        """How many numbers share a step: those of one sample, or of one filter."""
        raise NotImplementedError


class ActivationQuantizer(Quantizer):
    """One step and one zero point for the tensor, whose first dimension is the batch."""

    def __init__(self, scale: float, zero_point: int, low: int, high: int):
        super().__init__(torch.tensor(float(scale)), torch.tensor(zero_point), low, high)

    @property
    def zero_point(self) -> int:
        return int(self.offset)

    def _features(self, x: torch.Tensor) -> int:
        return x.numel() // max(1, len(x))

    def extra_repr(self) -> str:
        return (
            f"scale={float(self.scale.detach()):.6g}, zero_point={self.zero_point}, "
            f"levels=[{self.low}, {self.high}]"
        )


class WeightQuantizer(Quantizer):
    """One step for each output channel (dimension `axis`), or a single one for all. Symmetric over
    [-levels, levels] where there is no `offset`; else over [-levels - 1, levels] with these zero
    points, as many as there are steps.
    """

    def __init__(
        self, scale: torch.Tensor, axis: int, levels: int, offset: torch.Tensor | None = None
    ):
        super().__init__(scale, offset, -levels if offset is None else -levels - 1, levels, axis)

    @property
    def levels(self) -> int:
        return self.high

    def integers(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight's integers as they are stored, with the zero points: int8, int16 for more than
        8 bits.
        """
        found = (weight / self._spread(self.scale.detach(), weight)).round() + self._spread(
            self.offset, weight
        )
        return found.clamp(self.low, self.high).to(torch.int8 if self.high < 128 else torch.int16)

    def centered(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight in steps: its integers without the zero points, int32."""
        return self.integers(weight).int() - self._spread(self.offset, weight).int()

    def _features(self, x: torch.Tensor) -> int:
        return x.numel() // self.start.numel()

    def extra_repr(self) -> str:
        return f"steps={self.start.numel()}, axis={self.axis}, levels=[{self.low}, {self.high}]"
