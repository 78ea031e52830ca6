"""Losses by name, and their gradients, batch by batch, without a step being taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import nn
from typing_extensions import Doc

from mirabelle.base import structures
from mirabelle.base.checks import clone, running
from mirabelle.base.data import Batch, batches, device_of, length_of
from mirabelle.base.errors import InputError, choose
from mirabelle.base.modes import full
from mirabelle.base.options import FromRun, OneOf
from mirabelle.base.progress import track
from mirabelle.measurement.accuracy import as_tensor

# Modules that training mode makes random, or that then learn statistics.
STILL = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


def cross_entropy(output: Any, target: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy of classes: integers of any width, or probabilities (N, C, ...). Of
    several outputs the first one counts.

    Raises `InputError` for integers that are no class; -100 is left out, as torch does.
    """
    output = _one(output, target, "cross_entropy")
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


def binary_cross_entropy(output: Any, target: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy of independent yes/no outputs; targets of the same shape."""
    output = _one(output, target, "binary_cross_entropy")
    _check_same_shape("binary_cross_entropy", output, target)
    return nn.functional.binary_cross_entropy_with_logits(output, target.to(output.dtype))


def mse(output: Any, target: torch.Tensor) -> torch.Tensor:
    """The mean squared difference; targets may be integers."""
    output = _one(output, target, "mse")
    _check_same_shape("mse", output, target)
    return nn.functional.mse_loss(output, target.to(output.dtype))


def _one(output: Any, target: Any, loss: str) -> torch.Tensor:
    """The first of the outputs, for targets that are a tensor."""
    if not isinstance(target, torch.Tensor):
        raise InputError(
            f"{loss} needs a tensor of targets, got a {type(target).__name__}; give loss=, a "
            "callable (output, target) -> scalar, or step=, a callable (network, batch) -> scalar"
        )
    return as_tensor(output)


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
LossOption = Annotated[
    str | Callable | None,
    OneOf(LOSSES),
    FromRun,
    Doc("a name, or (output, target) -> scalar; None is cross entropy"),
]


@dataclass(frozen=True)
class StepLoss:
    """A loss of the network and the batch: `step(network, batch)` gives a scalar, or a dict of
    scalars that are summed, as detectors do in training mode.
    """

    step: Callable[[nn.Module, Batch], Any]

    def __call__(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        found = self.step(network, batch.copied())
        parts = list(found.values()) if isinstance(found, Mapping) else [found]
        if not parts or not all(map(_is_number, parts)):
            given = [_form(p) for p in parts]
            raise InputError(
                f"step returned {' and '.join(given) or 'nothing'}; expected the loss, a "
                "tensor of one number, or a dict of such"
            )
        return torch.stack([p.reshape(()) for p in parts]).sum()


def _is_number(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex()


def _form(value: Any) -> str:
    """For a message: `a tensor (4, 3)`, or the type."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    return f"a {'complex ' * value.is_complex()}tensor {tuple(value.shape)}"


def check_loss(value: Any) -> torch.Tensor:
    """What a loss returned, as a tensor without a dimension; `InputError` where it is no number."""
    if not _is_number(value):
        raise InputError(
            f"the loss returned {_form(value)}; expected a tensor of one real number, such as the "
            "mean over the batch"
        )
    return value.reshape(())


Loss = str | Callable | StepLoss | None


def loss_function(loss: Loss, step: Callable | None = None) -> Callable:
    """That of a name of `LOSSES`; a callable (output, target) -> scalar as it is, which gets all
    that the network gives; None is cross entropy. step: takes its place.
    """
    if step is not None:
        if loss is not None:
            raise InputError("loss= and step= both compute the loss; give one of them")
        return StepLoss(step)
    if isinstance(loss, str):
        return choose(loss, LOSSES, "loss")
    if loss is not None and not callable(loss):
        raise InputError(
            f"loss is a {type(loss).__name__}; expected one of {', '.join(LOSSES)}, or a "
            "callable (output, target) -> scalar"
        )
    return loss or LOSSES["cross_entropy"]


def loss_of(function: Callable, network: nn.Module, batch: Batch) -> torch.Tensor:
    """The loss of a batch; of a `StepLoss`, or of the network's outputs, in float32 under mixed
    precision too, and the targets.
    """
    if isinstance(function, StepLoss):
        return function(network, batch)
    device = device_of(network)
    target = structures.mapped(batch.target, lambda t: t.to(device, copy=True))
    return check_loss(function(full(batch.run(network)), target))


@contextmanager
def evaluated(network: nn.Module, function: Callable) -> Iterator[None]:
    """Inside, the network runs as for evaluation; for a `StepLoss` as for training, since only so
    some networks compute a loss, but for what is random or counts: dropout and BatchNorm.
    """
    modes = {m: m.training for m in network.modules()}
    network.eval()
    if isinstance(function, StepLoss):
        for module in modes:
            module.training = not isinstance(module, STILL)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def loss_gradients(
    model: nn.Module, data: Iterable, loss: Loss, by_sample: bool = False
) -> Iterator[dict[str, torch.Tensor]]:
    """For each labeled batch the gradient of the loss (`loss_function`) by parameter; parameters
    that it does not reach are left out.

    by_sample: for each sample by itself. Eval mode, because a pruned network keeps BatchNorm's
    statistics fixed too: in train mode w * g summed over a filter before BatchNorm is zero. It is a
    copy that runs: the network's gradients, flags and buffers are left as they were. Raises
    `InputError` for gradients that are not finite.
    """
    model, function = clone(model).eval(), loss_function(loss)
    labeled = not isinstance(function, StepLoss)
    trained = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    device = next(iter(trained.values())).device
    for p in trained.values():
        p.requires_grad_(True)
    given = batches(data, labeled=labeled, what="data")
    for i, batch in enumerate(track(given, "gradients", length_of(data))):
        for part in batch.split(1) if by_sample else [batch]:
            part = part.to(device)
            with (
                torch.enable_grad(),
                running(part, f"batch {i} of data"),
                evaluated(model, function),
            ):
                value = loss_of(function, model, part)
                grads = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
            found = {n: g for n, g in zip(trained, grads, strict=True) if g is not None}
            if bad := [n for n, g in found.items() if not bool(torch.isfinite(g).all())]:
                raise InputError(
                    f"the gradient of {bad[0]} is not finite on batch {i} of data; look for NaN "
                    "in the inputs or the loss"
                )
            yield found
