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
from mirabelle.base.errors import CaptureError, InputError, MirabelleError, first_line
from mirabelle.base.quiet import copying

Network = TypeVar("Network", bound=nn.Module)


def check_module(model: object, argument: str = "model") -> nn.Module:
    """The network itself, if it is an `nn.Module`, out of the wrappers of `torch.compile`,
    DataParallel and DistributedDataParallel, and its tensors have sizes and values; else
    `InputError`.
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
        if tensor.is_meta:
            raise InputError(
                f"{argument}: {name} has no values, as it is on the device meta; load its weights "
                "first, on the CPU or another device"
            )
    return model


def check_python(model: nn.Module) -> nn.Module:
    """The network itself. `CaptureError` for scripted and traced modules, with the remedy."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"{name or type(model).__name__} is scripted or traced, and has no Python code to "
                "capture, train or measure; give the network that it was made from, with its "
                "weights (network.load_state_dict(scripted.state_dict()))"
            )
    return model


def check_network(model: object, argument: str = "model") -> nn.Module:
    """As `check_module`, with finite weights; `InputError` names the first tensor that is not.
    Buffers may be infinite, as attention masks are, but not NaN; running statistics neither.
    """
    model = check_module(model, argument)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        finite = isinstance(tensor, nn.Parameter) or "running_" in name
        values = tensor.detach()  # as made in inference mode they have no gradients
        wrong = ~torch.isfinite(values) if finite else values.isnan()
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
        raise InputError(
            f"the network does not run on {what} (inputs: {shapes}): {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


def check_runs(model: nn.Module, batch: Batch, what: str) -> object:
    """The network's output on `batch` in eval mode, without a graph. `InputError` with the shapes
    where it cannot run. It is a copy that runs: what forward counts or keeps stays as it was.
    """
    with torch.no_grad(), running(batch, what):
        return readable(batch.run(shell(model).eval()))


def readable(output: Any) -> Any:
    """The output itself, once torch knows how to look into the dataclasses in it: their tensors are
    not seen else, nor is a network exported that gives them.
    """
    while unknown := {type(v) for v in pytree.tree_leaves(output) if is_dataclass(v)}:
        for kind in unknown:
            torch.export.register_dataclass(kind)
    return output


def tensors_of(model: nn.Module, keep_vars: bool = False) -> dict[str, torch.Tensor]:
    """The state of a network as far as it is tensors: its parameters and buffers. What
    `get_extra_state` adds may be anything, and stays with the network. keep_vars: the parameters
    themselves.
    """
    state = model.state_dict(keep_vars=keep_vars)
    return {n: t for n, t in state.items() if isinstance(t, torch.Tensor)}


def every_tensor(model: nn.Module) -> dict[str, torch.Tensor]:
    """Its parameters and buffers under every name that they have: shared ones have several."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )


def load_state(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """`load_state_dict` of tensors that a network of this class gave. Plain tensors do not say by
    which version of a module they were written; it is this one (MNASNet refuses none, and BatchNorm
    adds what older versions lacked).
    """
    own: Any = model.state_dict()
    more = {n: v for n, v in own.items() if not isinstance(v, torch.Tensor)}
    state: Any = OrderedDict({**more, **tensors})
    state._metadata = own._metadata
    model.load_state_dict(state)


def check_float32(model: nn.Module, argument: str = "model") -> None:
    """`InputError` names the first parameter or buffer of another floating type."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.dtype is not torch.float32:
            raise InputError(
                f"{argument}: {name} is {str(tensor.dtype).removeprefix('torch.')}; quantization "
                "starts from float32: give model.float(), or a copy of it"
            )


def check_sound(model: Network, what: str) -> Network:
    """The network itself, after work on it. `MirabelleError` where its weights or statistics are
    no longer finite: it is not handed out.
    """
    try:
        check_network(model)
    except InputError as error:
        raise MirabelleError(
            f"after {what}: {str(error).partition(';')[0]}; the data reaches values that float32 "
            "cannot hold: look for extreme inputs, or scale them as for training"
        ) from error
    return model


def _unlike(value: Any, memo: dict[int, Any], seen: set[int]) -> None:
    """Puts into `memo` what inside `value` cannot be copied: locks, files and the like stay the
    original's, computed tensors become constants.
    """
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        if not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    elif isinstance(value, Mapping):
        for inner in value.values():
            _unlike(inner, memo, seen)
    elif isinstance(value, (list, tuple, set)):
        for inner in value:
            _unlike(inner, memo, seen)
    elif isinstance(value, nn.Module):
        _unlike(vars(value), memo, seen)
    else:
        try:
            copy.deepcopy(value)
        except Exception:
            memo[id(value)] = value


def copied(model: Network, memo: dict[int, Any]) -> Network:
    """A deep copy, in which what `memo` holds by id stands for what has that id. What cannot be
    copied, such as a lock or an open file, is shared.
    """
    with copying():
        try:
            return copy.deepcopy(model, dict(memo))
        except Exception:
            _unlike(model, memo, set(memo))
        try:
            return copy.deepcopy(model, memo)
        except Exception as error:
            raise InputError(
                f"the network, a {type(model).__name__}, cannot be copied, and no verb changes "
                f"what it is given: {type(error).__name__}: {first_line(error)}; take out what "
                "refuses, or give it a __deepcopy__"
            ) from error


def shell(model: Network) -> Network:
    """A copy of the modules around the same parameters: what forward keeps for itself, buffers
    among them, stays in the copy.
    """
    return copied(model, {id(p): p for p in model.parameters()})


def clone(model: Network) -> Network:
    """A deep copy that shares no weights with `model` and carries no gradients. What cannot be
    copied, such as a lock or an open file, is shared.
    """
    own = copied(model, {})
    for p in own.parameters():
        p.grad = None
    return own
