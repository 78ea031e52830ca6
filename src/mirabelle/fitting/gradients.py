"""Losses by name, and their gradients, batch by batch, without a step being taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from mirabelle.base.checks import clone, running
from mirabelle.base.data import batches
from mirabelle.base.errors import InputError, choose
from mirabelle.base.progress import track
from mirabelle.measurement.accuracy import as_tensor


def cross_entropy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy of classes: integers of any width, or probabilities (N, C, ...).

    Raises `InputError` for integers that are no class; -100 is left out, as torch does.
    """
    if target.is_floating_point():
        return nn.functional.cross_entropy(output, target)
    try:
        return nn.functional.cross_entropy(output, target.long())
    except IndexError as error:
        classes = output.shape[min(1, output.ndim - 1)]
        wrong = ((target < 0) & (target != -100)) | (target >= classes)
        raise InputError(
            f"the target is {int(target[wrong].flatten()[0])} at index "
            f"{wrong.nonzero()[0].tolist()}, and the network gives {classes} classes"
            if bool(wrong.any())
            else f"cross_entropy does not take outputs {tuple(output.shape)} and targets "
            f"{tuple(target.shape)}: {error}"
        ) from error


def binary_cross_entropy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy of independent yes/no outputs; targets of the same shape."""
    _check_same_shape("binary_cross_entropy", output, target)
    return nn.functional.binary_cross_entropy_with_logits(output, target.to(output.dtype))


def mse(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean squared difference; targets may be integers."""
    _check_same_shape("mse", output, target)
    return nn.functional.mse_loss(output, target.to(output.dtype))


def _check_same_shape(loss: str, output: torch.Tensor, target: torch.Tensor) -> None:
    """torch would repeat the smaller of the two, and (N, 1) against (N,) is N x N differences."""
    if output.shape != target.shape:
        raise InputError(
            f"{loss} needs targets of the outputs' shape {tuple(output.shape)}, and they are "
            f"{tuple(target.shape)}"
        )


LOSSES: dict[str, Callable] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mse": mse,
}


def loss_function(loss: str | Callable | None) -> Callable:
    """That of a name of `LOSSES`; a callable (output, target) -> scalar as it is; None is cross
    entropy.
    """
    if isinstance(loss, str):
        return choose(loss, LOSSES, "loss")
    if loss is not None and not callable(loss):
        raise InputError(
            f"loss is a {type(loss).__name__}; expected one of {', '.join(LOSSES)}, or a "
            "callable (output, target) -> scalar"
        )
    return loss or LOSSES["cross_entropy"]


def loss_gradients(
    model: nn.Module,
    data: Iterable,
    loss: str | Callable | None,
    count: int,
    by_sample: bool = False,
) -> Iterator[dict[str, torch.Tensor]]:
    """For each of `count` labelled batches the gradient of the loss (`loss_function`) by parameter;
    parameters that it does not reach are left out.

    by_sample: for each sample by itself. Eval mode, because a pruned network keeps BatchNorm's
    statistics fixed too: in train mode w * g summed over a filter before BatchNorm is zero. It is a
    copy that runs: the network's gradients, flags and buffers are left as they were. Raises
    `InputError` for gradients that are not finite.
    """
    model, function = clone(model).eval(), loss_function(loss)
    trained = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    device = next(iter(trained.values())).device
    for p in trained.values():
        p.requires_grad_(True)
    for i, batch in enumerate(
        track(batches(data, count, labelled=True, what="data"), "gradients", count)
    ):
        for part in batch.split(1) if by_sample else [batch]:
            part = part.to(device)
            with torch.enable_grad(), running(part, f"batch {i} of data"):
                value = function(as_tensor(part.run(model)), part.target.to(device))
                grads = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
            found = {n: g for n, g in zip(trained, grads, strict=True) if g is not None}
            if bad := [n for n, g in found.items() if not bool(torch.isfinite(g).all())]:
                raise InputError(
                    f"the gradient of {bad[0]} is not finite on batch {i} of data; look for NaN "
                    "in the inputs or the loss"
                )
            yield found
