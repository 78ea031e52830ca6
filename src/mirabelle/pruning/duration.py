"""How long a cut will take, before its long part begins."""

from __future__ import annotations

import time

import torch
from torch import nn

from mirabelle.base.data import batches, length_of, samples
from mirabelle.base.progress import say, spoken, watched
from mirabelle.channels.groups import Coupling
from mirabelle.measurement.accuracy import predictor
from mirabelle.pruning.settings import Settings
from mirabelle.pruning.stats import TRIAL, layers_read

# Of ResNet-18, ResNet-50 and MobileNetV2 on one core, within a quarter: passes through the network
# for each sample, and inversions of a matrix as wide as a layer for each layer.
PASSES, INVERSIONS = 10.0, 10.0
COLUMNS = 512  # of the matrix that is inverted to see how fast this machine is
SHORT = 10.0  # seconds that nobody need be told of


def foretell(model: nn.Module, coupling: Coupling, settings: Settings) -> None:
    """Says how long scoring and least squares will take, where that is long and somebody looks."""
    whole = settings.criterion == "brain_surgeon" and settings.repair == "least-squares"
    if not watched() or not whole or settings.read is None:
        return
    seconds = foretold(model, coupling, settings)
    if seconds >= SHORT:
        say(
            f"scoring and fitting {len(layers_read(model, coupling))} layers on up to "
            f"{settings.samples} samples will take about {spoken(seconds)}"
        )


def foretold(model: nn.Module, coupling: Coupling, settings: Settings) -> float:
    """Seconds, from one pass of a few samples and one inversion."""
    assert settings.read is not None
    few, predict = next(samples(settings.read, TRIAL, what="data")), predictor(model)
    predict(few.head(1))  # the first pass is slow
    begun = time.perf_counter()
    predict(few)
    each = (time.perf_counter() - begun) / max(1, few.size)
    widths = layers_read(model, coupling).values()
    solving = sum((width / COLUMNS) ** 3 for width in widths) * _inversion()
    return PASSES * each * _count(settings) + INVERSIONS * solving


def _count(settings: Settings) -> int:
    """Samples that are read, as far as the loader says how many it has."""
    assert settings.read is not None and settings.data is not None
    length = length_of(settings.data)
    if length is None:
        return settings.samples
    return min(settings.samples, length * next(batches(settings.data, what="data")).size)


def _inversion() -> float:
    matrix = torch.eye(COLUMNS, dtype=torch.float64) + 1 / COLUMNS
    torch.linalg.inv(matrix)
    begun = time.perf_counter()
    torch.linalg.inv(matrix)
    return time.perf_counter() - begun
