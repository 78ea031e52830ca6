"""Outputs and targets of any form: tensors, dicts, lists with an entry for each sample, several
heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch

from mirabelle.base.errors import InputError
from mirabelle.base.tensors import from_array

NUMBERS = (bool, int, float, np.generic)


def leaves(value: Any) -> Iterator[torch.Tensor]:
    """The tensors and arrays in it, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, np.ndarray):
        yield torch.as_tensor(value)
    elif inner := _inner(value):
        for part in inner:
            yield from leaves(part)


def _inner(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, f.name) for f in fields(value)]
    return []


def mapped(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """The same structure with `function` applied to its tensors; all else is as it was."""
    return _rebuilt(
        value, lambda v: function(v) if isinstance(v, torch.Tensor) else mapped(v, function)
    )


def _rebuilt(value: Any, function: Callable[[Any], Any]) -> Any:
    """`value` with `function` applied to what it holds, or to itself where it holds nothing."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        found = {f.name: function(getattr(value, f.name)) for f in fields(value) if f.init}
        if not isinstance(value, Mapping):
            return replace(value, **found)
        return type(value)(**found)  # outputs of Hugging Face's networks are both
    if isinstance(value, Mapping):
        inner = {k: function(v) for k, v in value.items()}
        return inner if type(value) is dict else _alike(value, inner)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(function, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(function, value))
    return value


def _alike(value: Mapping, inner: dict) -> Any:
    """A mapping of the same kind, where that can be made of a dict; else a dict."""
    try:
        return type(value)(inner)  # type: ignore[call-arg]
    except Exception:
        return inner


def with_tensors(value: Any) -> Any:
    """The same structure with arrays of numbers, and lists of them, as tensors."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return from_array(value)
    if isinstance(value, list) and value and all(isinstance(v, NUMBERS) for v in value):
        return torch.as_tensor(np.asarray(value))
    return _rebuilt(value, with_tensors) if _inner(value) else value


def on_cpu(value: Any) -> Any:
    """The same structure with its tensors on the CPU, without a graph, and arrays as tensors."""
    return mapped(with_tensors(value), lambda t: t.detach().cpu())


def part(value: Any, start: int, stop: int, size: int, what: str = "the target") -> Any:
    """What belongs to the samples from `start` to `stop` of `size`. Rows of tensors and arrays,
    entries of a list; parts of a dict, and of a tuple of heads, one by one.

    Raises `InputError` for what has no entry for each sample.
    """
    if value is None or isinstance(value, (str, bytes, bool, int, float)):
        return value
    if isinstance(value, (torch.Tensor, np.ndarray)):
        if value.ndim and len(value) != size:
            raise InputError(
                f"{what} is a tensor {tuple(value.shape)} for {size} samples, so it cannot be "
                "divided into samples; give a row, or an entry of a list, for each sample"
            )
        return value[start:stop] if value.ndim else value
    if isinstance(value, list) and len(value) == size:
        return value[start:stop]
    if isinstance(value, tuple) and len(value) == size and not _is_heads(value, size):
        return value[start:stop]
    if isinstance(value, (Mapping, tuple, list)) or is_dataclass(value):
        return _rebuilt(value, lambda v: part(v, start, stop, size, what))
    try:
        return value[start:stop]  # what else is a sequence
    except (TypeError, KeyError):
        raise InputError(
            f"{what} is a {type(value).__name__}, which cannot be divided into samples; give a "
            "tensor, a dict of tensors, or a list with an entry for each sample"
        ) from None


def _is_heads(value: tuple, size: int) -> bool:
    """Whether each entry holds all samples: then it is a head, and no sample."""
    return all(
        isinstance(v, (torch.Tensor, np.ndarray)) and v.ndim > 0 and len(v) == size for v in value
    )


def select(value: Any, rows: list[int], size: int, what: str = "the target") -> Any:
    """What belongs to these samples; see `part`."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim and len(value) == size:
        return value[rows]
    if isinstance(value, (list, tuple)) and len(value) == size:
        if not (isinstance(value, tuple) and _is_heads(value, size)):
            return type(value)(value[r] for r in rows)
    if _inner(value):
        return _rebuilt(value, lambda v: select(v, rows, size, what))
    return part(value, 0, size, size, what)
