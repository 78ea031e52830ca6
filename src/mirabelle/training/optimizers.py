"""Optimizers and learning-rate schedules, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn


def adamw(parameters: list[dict], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)


def sgd(parameters: list[dict], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )


OPTIMIZERS: dict[str, Callable[[list[dict], float, float], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "sgd": sgd,
}


def constant(progress: float) -> float:
    return 1.0


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine. SGDR, Loshchilov & Hutter 2017, eq. 5, without restarts."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    return 1 - progress


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
}


def learning_rate(
    step: int, total: int, peak: float, schedule: Callable[[float], float], warmup: float
) -> float:
    """The rate of `step` (from 0) of `total`: a linear warm-up over the fraction `warmup`, then
    `schedule` over the rest.
    """
    ramp = warmup * total
    if step < ramp:
        return peak * (step + 1) / (ramp + 1)
    return peak * schedule((step - ramp) / max(1.0, total - ramp))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Vectors (biases, normalization scales, quantization steps) are not decayed; matrices and
    filters are.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
