"""BatchNorm's running statistics, estimated anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mirabelle.checks import clone, running
from mirabelle.data import batches
from mirabelle.progress import track


def reestimate_batchnorm(model: nn.Module, data: Iterable, count: int) -> nn.Module:
    """A copy whose BatchNorm statistics are the plain averages over `count` batches of `data`: what flows through the cut network has other means.

    Sun et al. 2019 (re-calibration); `momentum=None` is torch's cumulative average. Dropout stays off; the modes come back as they were.
    """
    repaired = clone(model)
    norms = [m for m in repaired.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return repaired
    momentum = [m.momentum for m in norms]
    training = {m: m.training for m in repaired.modules()}
    repaired.eval()
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
        m.train()
    device = next(repaired.parameters()).device
    with torch.no_grad():
        for i, batch in enumerate(track(batches(data, count, what="data"), "BatchNorm statistics", count)):
            batch = batch.map(lambda t: t.to(device))
            with running(batch, f"batch {i} of data"):
                repaired(*batch.args, **batch.kwargs)
    for m, value in zip(norms, momentum, strict=True):
        m.momentum = value
    for module, mode in training.items():
        module.training = mode
    return repaired
