"""Gradients of a loss, batch by batch, without a step being taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from mirabelle.checks import clone, running
from mirabelle.data import batches
from mirabelle.errors import InputError
from mirabelle.measure.accuracy import as_tensor
from mirabelle.progress import track


def loss_gradients(model: nn.Module, data: Iterable, loss: Callable | None, count: int, by_sample: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """For each of `count` labelled batches the gradient of the loss (cross entropy unless given) by parameter; parameters that it does not reach are left out.

    by_sample: for each sample by itself. Eval mode, because a pruned network keeps BatchNorm's statistics fixed too: in train mode w * g summed over a filter before
    BatchNorm is zero. It is a copy that runs: the network's gradients, flags and buffers are left as they were. Raises `InputError` for gradients that are not finite.
    """
    model = clone(model).eval()
    function = loss or nn.functional.cross_entropy
    trained = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    device = next(iter(trained.values())).device
    for p in trained.values():
        p.requires_grad_(True)
    for i, batch in enumerate(track(batches(data, count, labelled=True, what="data"), "gradients", count)):
        for part in batch.split(1) if by_sample else [batch]:
            part = part.to(device)
            with torch.enable_grad(), running(part, f"batch {i} of data"):
                value = function(as_tensor(model(*part.args, **part.kwargs)), part.target.to(device))
                grads = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
            found = {n: g for n, g in zip(trained, grads, strict=True) if g is not None}
            if bad := [n for n, g in found.items() if not bool(torch.isfinite(g).all())]:
                raise InputError(f"the gradient of {bad[0]} is not finite on batch {i} of data; look for NaN in the inputs or the loss")
            yield found
