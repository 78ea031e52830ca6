"""Where a training stands: all that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mirabelle.base import structures
from mirabelle.base.checks import tensors_of
from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.training.curve import Curve
from mirabelle.training.optimizers import OPTIMIZERS, parameter_groups
from mirabelle.training.plan import Settings

Objective = Callable[[nn.Module, Batch], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Best:
    """The best score so far, and the weights that had it where they are wanted. done: the steps
    that led to them.
    """

    score: float | None = None
    state: dict[str, torch.Tensor] | None = None
    done: int = 0


class Step(nn.Module):
    """The objective as one forward call, so that DistributedDataParallel sees every parameter,
    those of `extra` too.
    """

    def __init__(self, model: nn.Module, objective: Objective, extra: nn.Module | None):
        super().__init__()
        self.model = model
        self.extra = extra
        self.objective = objective

    def forward(self, args: tuple, kwargs: dict, target: Any) -> dict[str, torch.Tensor]:
        return self.objective(self.model, Batch(args, kwargs, target))


@dataclass
class State:
    """step: the network and what is trained along. done: optimizer steps. stale: epochs without a
    better score. totals: the sums of an epoch that is not over. checks: the losses on held-back
    data so far. choices: what training chose by itself. curve: what a report draws.
    """

    step: Step
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    scaler: Any
    done: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    stale: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    checks: list[float] = field(default_factory=list)
    choices: dict[str, Any] = field(default_factory=dict)
    curve: Curve = field(default_factory=Curve)

    @classmethod
    def of(cls, step: Step, settings: Settings, where: torch.device, scaled: bool) -> State:
        """The start. scaled: gradients are scaled, for float16."""
        groups = parameter_groups(step, settings.weight_decay)
        optimizer = OPTIMIZERS[settings.optimizer](
            groups, settings.lr or 0.0, settings.weight_decay
        )
        average = None
        if settings.ema is not None:
            decay = get_ema_multi_avg_fn(settings.ema)
            average = AveragedModel(step.model, multi_avg_fn=decay, use_buffers=True)
        scaler = torch.amp.GradScaler(where.type, enabled=scaled)
        return cls(step, optimizer, average, scaler)

    @property
    def result(self) -> nn.Module:
        """The network as it would be returned now: the average where there is one."""
        return self.average.module if self.average is not None else self.step.model

    def note(self, figure: float) -> None:
        """Writes down a score as it is shown."""
        self.checks.append(figure)
        self.curve.score(self.done, figure)

    def watch(self, value: float, keep: bool, epoch: bool = True) -> None:
        """Takes note of a score. keep: the best weights too. epoch: it is that of a whole one.
        What is as good as the start takes its place.
        """
        best, at_start = self.best.score, self.best.done == 0 < self.done
        if best is not None and not (value > best or (at_start and value == best)):
            self.stale += epoch
            return
        weights = None
        if keep:
            weights = {k: v.detach().clone() for k, v in tensors_of(self.result).items()}
        self.best, self.stale = Best(value, weights, self.done), 0


def differentiable(parts: Mapping[str, torch.Tensor], place: str) -> torch.Tensor:
    """The sum of the losses of a batch; `InputError` names it where there is no gradient."""
    loss = torch.stack([p.float() for p in parts.values()]).sum()
    if not loss.requires_grad:
        raise InputError(
            f"the loss of {place} has no gradient for the network's weights; it must be computed "
            "by torch from outputs that are neither integers, masks nor detached"
        )
    return loss


def placed(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`, images with their channels last."""

    def move(t: torch.Tensor) -> torch.Tensor:
        if t.ndim != 4:
            return t.to(device)
        t = t.to(device, memory_format=torch.channels_last)
        # With one channel the strides do not tell the format by themselves, and a convolution of
        # weights in the usual format would take the slower one.
        _, c, h, w = t.shape
        return t.as_strided(t.shape, (c * h * w, 1, w * c, c)) if c == 1 else t

    target = structures.mapped(batch.target, lambda t: t.to(device))
    return batch.map(move)._replace(target=target)
