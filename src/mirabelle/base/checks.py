"""Checks that are made before any long work starts."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils import _pytree as pytree

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError, MirabelleError
from mirabelle.base.quiet import copying

Network = TypeVar("Network", bound=nn.Module)


def check_network(model: object, argument: str = "model") -> nn.Module:
    """The network itself, if it is an `nn.Module` with finite weights; `InputError` names the first
    tensor that is not.

    What `torch.compile`, DataParallel or DistributedDataParallel were given comes out of their
    wrappers. Buffers may be infinite, as attention masks are, but not NaN.
    """
    model = unwrapped(model)
    if not isinstance(model, nn.Module):
        remedy = "; give its .module()" if isinstance(model, torch.export.ExportedProgram) else ""
        raise InputError(
            f"{argument} is a {type(model).__name__}; expected a torch.nn.Module{remedy}"
        )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise InputError(
                f"{argument}: {name} has no size yet, as its module is lazy; run the network once "
                "on an example first"
            )
        wrong = ~torch.isfinite(tensor) if isinstance(tensor, nn.Parameter) else tensor.isnan()
        if bad := int(wrong.sum()):
            raise InputError(
                f"{argument}: {name} holds {bad} of {tensor.numel()} values that are NaN or "
                "infinite; load sound weights first"
            )
    return model


def unwrapped(model: object) -> object:
    """What stands inside the wrappers of `torch.compile`, DataParallel and DistributedDataParallel;
    anything else as it is.
    """
    while isinstance(model, nn.Module):
        if type(model).__name__ == "OptimizedModule" and "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            break
    return model


@contextmanager
def running(batch: Batch, what: str) -> Iterator[None]:
    """What fails inside, because a network or a loss cannot take `batch`, becomes an `InputError`
    with the batch's shapes.
    """
    try:
        yield
    except MirabelleError:
        raise
    except Exception as error:
        shapes = ", ".join(
            f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in batch.tensors
        )
        first = str(error).strip().split("\n")[0]
        raise InputError(
            f"the network does not run on {what} (inputs: {shapes}): {type(error).__name__}: "
            f"{first}"
        ) from error


def check_runs(model: nn.Module, batch: Batch, what: str) -> object:
    """The network's output on `batch` in eval mode, without a graph. `InputError` with the shapes
    where it cannot run.
    """
    training = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), running(batch, what):
            return readable(model(*batch.args, **batch.kwargs))
    finally:
        for module, mode in training.items():
            module.training = mode


def readable(output: Any) -> Any:
    """The output itself, once torch knows how to look into the dataclasses in it: their tensors are
    not seen else, nor is a network exported that gives them.
    """
    while unknown := {type(v) for v in pytree.tree_leaves(output) if is_dataclass(v)}:
        for kind in unknown:
            torch.export.register_dataclass(kind)
    return output


def load_state(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """`load_state_dict` of tensors that a network of this class gave. Plain tensors do not say by
    which version of a module they were written; it is this one (MNASNet refuses none, and BatchNorm
    adds what older versions lacked).
    """
    state: Any = OrderedDict(tensors)
    own: Any = model.state_dict()
    state._metadata = own._metadata
    model.load_state_dict(state)


def shell(model: nn.Module) -> nn.Module:
    """A copy of the modules around the same tensors: what forward keeps for itself stays in the
    copy.
    """
    tensors = (*model.parameters(), *model.buffers())
    with copying():
        return copy.deepcopy(model, {id(t): t for t in tensors})


def clone(model: Network) -> Network:
    """A deep copy that shares nothing with `model` and carries no gradients."""
    with copying():
        copied = copy.deepcopy(model)
    for p in copied.parameters():
        p.grad = None
    return copied
