"""BatchNorm's running statistics, estimated anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from mirabelle.base.checks import check_sound, clone, running
from mirabelle.base.data import First, batches, device_of, length_of
from mirabelle.base.progress import track
from mirabelle.measurement.accuracy import as_tensor, predictor

JUDGED = 64  # samples by which one of two networks is chosen


def reestimate_batchnorm(model: nn.Module, data: Iterable) -> nn.Module:
    """A copy whose BatchNorm statistics are the plain averages over the batches of `data`: what
    flows through the cut network has other means.

    Sun et al. 2019 (re-calibration); `momentum=None` is torch's cumulative average. Dropout stays
    off; the modes come back as they were.
    """
    repaired = clone(model)
    norms = [
        m
        for m in repaired.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if not norms:
        return repaired
    momentum = [m.momentum for m in norms]
    training = {m: m.training for m in repaired.modules()}
    repaired.eval()
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
        m.train()
    device = device_of(repaired)
    with torch.no_grad():
        total = length_of(data)
        for i, batch in enumerate(track(batches(data, what="data"), "BatchNorm statistics", total)):
            batch = batch.to(device)
            with running(batch, f"batch {i} of data"):
                batch.run(repaired)
    for m, value in zip(norms, momentum, strict=True):
        m.momentum = value
    for module, mode in training.items():
        module.training = mode
    return check_sound(repaired, "estimating BatchNorm's statistics anew")


def reestimate_where_better(model: nn.Module, original: nn.Module, data: Iterable) -> nn.Module:
    """`model`, or a copy with BatchNorm's statistics estimated anew, whichever has outputs nearer
    to the original's on the first JUDGED samples of the same data.

    Least squares reckon with the statistics that there were; whether the spread that they take away
    is worth more than what they fitted depends on the network.
    """
    other = reestimate_batchnorm(model, data)
    before, after = _distances((model, other), original, First(data, JUDGED))
    return other if after < before else model


def _distances(
    models: Sequence[nn.Module], original: nn.Module, data: Iterable
) -> tuple[float, ...]:
    """The squared error of each one's outputs over one pass of `data`: another may shuffle."""
    total = [0.0] * len(models)
    expects, *answers = (predictor(m) for m in (original, *models))
    for batch in batches(data, what="data"):
        expected, *found = (as_tensor(p(batch)).double() for p in (expects, *answers))
        for i, outputs in enumerate(found):
            total[i] += float((outputs - expected).square().sum())
    return tuple(total)
