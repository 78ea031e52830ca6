"""Tensors and arrays of the user's as networks take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mirabelle.base.errors import InputError


def as_input(value: Any, place: str) -> torch.Tensor:
    """What a loader yields as an input, as networks take it; `InputError` names `place`."""
    if isinstance(value, torch.Tensor):
        return _plain(value, place)
    if isinstance(value, np.ndarray):
        return from_array(value, place)
    raise InputError(
        f"{place} is a {type(value).__name__}; expected a tensor, a NumPy array, a dict of "
        "them, or (inputs, target)"
    )


def _plain(value: torch.Tensor, place: str) -> torch.Tensor:
    """A tensor as networks take it: dense, of no class of its own, and open to gradients."""
    if value.layout is not torch.strided:
        raise InputError(
            f"{place} is a tensor of layout {str(value.layout).removeprefix('torch.')}; give "
            "x.to_dense()"
        )
    disabled = torch._C._disabled_torch_dispatch_impl  # other classes have no memory of their own
    if (
        type(value) is not torch.Tensor
        and getattr(type(value), "__torch_dispatch__", None) is disabled
    ):
        value = value.as_subclass(torch.Tensor)
    return value.clone() if value.is_inference() else value


def from_array(values: np.ndarray, place: str = "the array") -> torch.Tensor:
    """A tensor of the same numbers; of the same memory where torch can read it: not where it is
    read only, goes backwards, or is of the other byte order.
    """
    if values.dtype.kind not in "biufc":
        raise InputError(
            f"{place} is an array of {values.dtype}; expected numbers, such as float32"
        )
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise InputError(f"{place} has masked values; fill them, or leave out such samples")
    native = values.dtype.newbyteorder("=")
    if values.dtype != native or min(values.strides, default=0) < 0 or not values.flags.writeable:
        values = np.array(values, native)
    try:
        return torch.from_numpy(np.asarray(values))
    except TypeError:
        raise InputError(
            f"{place} is an array of {values.dtype}, which torch does not have; give "
            "x.astype('float32')"
        ) from None
