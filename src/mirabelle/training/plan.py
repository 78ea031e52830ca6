"""What a training was asked for, and the steps that follow from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle.base.data import counted, preserved
from mirabelle.base.errors import InputError
from mirabelle.measurement.accumulator import Accumulator
from mirabelle.training.optimizers import SCHEDULES, learning_rate

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Settings:
    """The options of `train`, as there."""

    epochs: int
    steps: int | None
    seconds: float | None
    optimizer: str
    lr: float | None
    weight_decay: float
    schedule: str
    warmup: float
    ema: float | None
    precision: str
    clip: float | None
    accumulate: int | None
    seed: int
    holdout: float | None
    batchnorm: str | None
    validation: Iterable | None
    metric: str | Callable | Accumulator
    patience: int | None
    checkpoint: str | Path | None
    checkpoint_seconds: float
    device: str | torch.device | None
    extra: nn.Module | None
    sparsify: Mapping[str, Any] | None
    log: str | Callable | None
    progress: str

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        return cls(**{f.name: options[f.name] for f in fields(cls)})

    @property
    def batches(self) -> int | None:
        """How many batches all steps read, where that is given."""
        return None if self.steps is None else self.steps * (self.accumulate or 1)


@dataclass(frozen=True)
class Plan:
    """The steps of a training. length: batches of an epoch, of which `accumulate` make a step;
    total: steps in all.
    """

    length: int
    accumulate: int
    total: int

    @classmethod
    def of(cls, loader: Iterable, settings: Settings) -> Plan:
        with preserved(loader):
            length = counted(loader, settings.batches)
        if length == 0:
            raise InputError("the training loader is empty (its length is 0)")
        accumulate = settings.accumulate or 1
        per_epoch = math.ceil(length / accumulate)
        total = settings.steps if settings.steps is not None else settings.epochs * per_epoch
        return cls(length, accumulate, total)

    @property
    def per_epoch(self) -> int:
        return math.ceil(self.length / self.accumulate)

    def place(self, done: int) -> tuple[int, int]:
        """The epoch after `done` steps, and the batches of it that were read."""
        epoch, steps = divmod(done, self.per_epoch)
        return epoch, steps * self.accumulate

    def closes(self, number: int) -> bool:
        """Whether a step is taken behind this batch of an epoch."""
        return (number + 1) % self.accumulate == 0 or number + 1 == self.length

    def together(self, number: int) -> int:
        """The batches of the step that this batch of an epoch belongs to: the last step of an
        epoch may have fewer than the others.
        """
        first = number // self.accumulate * self.accumulate
        return min(self.accumulate, self.length - first) if number < self.length else 1

    def within(self, done: int, affordable: int) -> Plan:
        """The plan with at most so many steps after `done` ones: time may shorten it."""
        total = max(done, min(self.total, done + affordable))
        return self if total == self.total else replace(self, total=total)

    def rate(self, done: int, settings: Settings) -> float:
        """The learning rate of the step after `done` ones."""
        assert settings.lr is not None
        shape = SCHEDULES[settings.schedule]
        return learning_rate(done, self.total, settings.lr, shape, settings.warmup)


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision: None for plain float32. `auto` takes it only where the device
    computes in it natively.
    """
    if precision == "float32":
        return None
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        native = (
            getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
            or getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        )
        return torch.bfloat16 if device.type == "cpu" and native else None
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
