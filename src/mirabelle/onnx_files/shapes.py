"""Shapes and other small numbers of an ONNX graph: known while it is captured, so that they are
computed in Python and leave no trace in the capture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Integer constants with more elements are tensors: nobody's shape.
LARGEST = 64


@dataclass(frozen=True)
class Host:
    """Numbers, symbolic sizes among them: a vector, or a scalar where `scalar`. dtype: the tensor's
    that they stand for.
    """

    values: tuple[Any, ...]
    scalar: bool = False
    dtype: torch.dtype = torch.int64

    def tensor(self) -> torch.Tensor:
        numbers = [
            int(v) if isinstance(v, torch.SymInt) else v for v in self.values
        ]  # a size that becomes data is that of the example
        return torch.tensor(numbers[0] if self.scalar else numbers, dtype=self.dtype)

    def map(self, function: Callable[[Any], Any], dtype: torch.dtype | None = None) -> Host:
        return Host(tuple(function(v) for v in self.values), self.scalar, dtype or self.dtype)


def as_tensor(value: Any) -> torch.Tensor:
    return value.tensor() if isinstance(value, Host) else value


def as_list(value: Any) -> list[Any]:
    """The numbers of an argument that has to be known: axes, shapes, pads. Raises `ValueError` for
    a tensor that is computed from data.
    """
    if isinstance(value, Host):
        return list(value.values)
    raise ValueError(
        "a shape or an axis is computed from data, which a captured graph cannot follow"
    )


def as_number(value: Any) -> Any:
    return as_list(value)[0]


def both(
    a: Any, b: Any, function: Callable[[Any, Any], Any], dtype: torch.dtype | None = None
) -> Host:
    """An elementwise function of two Hosts, scalars and vectors of one element broadcast."""
    length = max(len(a.values), len(b.values))
    left, right = (v.values * length if len(v.values) == 1 else v.values for v in (a, b))
    return Host(
        tuple(function(x, y) for x, y in zip(left, right, strict=True)),
        a.scalar and b.scalar,
        dtype or a.dtype,
    )


def gather(data: Host, indices: Sequence[int], scalar: bool) -> Host:
    return Host(tuple(data.values[int(i)] for i in indices), scalar, data.dtype)
