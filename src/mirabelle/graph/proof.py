"""What two networks must have in common to be taken for one: their outputs, of every type, on the
example and on inputs drawn at random.

An example may hide a difference (zeros, constants, one image); random inputs of its shapes and
types do not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError

FLIPPED = 1e-3  # the share of integers that rounding may change, where float64 cannot be asked
SEED = 0


def random_like(inputs: Batch) -> Batch:
    """A batch of the example's shapes and types that is drawn at random.

    Floats have the example's mean and deviation (0 and 1 where it has none), integers lie in its
    range. The generator is our own.
    """
    generator = torch.Generator().manual_seed(SEED)
    return inputs.map(lambda t: _drawn(t, generator))


def _drawn(example: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if example.dtype == torch.bool:
        return torch.rand(example.shape, generator=generator).gt(0.5).to(example.device)
    if example.is_complex():
        parts = torch.randn((*example.shape, 2), generator=generator, dtype=torch.float64)
        return torch.view_as_complex(parts).to(example)
    if example.is_floating_point():
        finite = example.detach()[example.isfinite()].double()
        spread = float(finite.std()) if finite.numel() > 1 else 0.0
        center = float(finite.mean()) if spread else 0.0
        drawn = torch.randn(example.shape, generator=generator, dtype=torch.float64)
        return (drawn * (spread or 1.0) + center).to(example)
    if not example.numel():
        return example
    low, high = int(example.min()), int(example.max())
    return torch.randint(low, high + 1, example.shape, generator=generator).to(example)


def tensors(output: Any) -> list[torch.Tensor]:
    """The tensors of a network's output, nested or not."""
    return [v for v in pytree.tree_leaves(output) if isinstance(v, torch.Tensor)]


def difference(expected: Any, found: Any, flipped: float = 0.0) -> str | None:
    """How two outputs of a network, nested or not, differ: in shapes, types, or values.

    Real and complex numbers may differ by rounding. What is NaN or infinite in one must be so in
    the other. Of integers and booleans a share of `flipped` may differ; all else must be equal.
    None where nothing differs.
    """
    leaves, others = tensors(expected), tensors(found)
    shapes, other_shapes = [tuple(v.shape) for v in leaves], [tuple(v.shape) for v in others]
    if shapes != other_shapes:
        return f"its outputs have the shapes {other_shapes}, expected {shapes}"
    for a, b in zip(leaves, others, strict=True):
        if a.dtype != b.dtype:
            return f"its output is of type {b.dtype}, expected {a.dtype}"
        numbers = a.is_floating_point() or a.is_complex()
        if problem := _in_numbers(a, b) if numbers else _in_integers(a, b, flipped):
            return problem
    mine, theirs = (
        [v for v in pytree.tree_leaves(o) if not isinstance(v, torch.Tensor)]
        for o in (expected, found)
    )
    if mine != theirs:
        return f"its output holds {theirs}, expected {mine}"
    return None


def _in_numbers(a: torch.Tensor, b: torch.Tensor) -> str | None:
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    precision = torch.finfo(a.dtype).eps
    a, b = a.detach().double(), b.detach().double()
    finite = a.isfinite() & b.isfinite()
    same = finite | (a == b) | (a.isnan() & b.isnan())
    if wrong := int((~same).sum()):
        return f"its output differs by {wrong} of {a.numel()} values that are NaN or infinite"
    zero = torch.zeros((), dtype=a.dtype, device=a.device)
    error = torch.where(finite, a - b, zero).norm()
    size = torch.where(finite, a, zero).norm()
    if error > (precision**0.5 if precision < 1e-9 else max(1e-3, precision**0.5)) * size:
        return f"its output differs by {float(error / size):.2g} of its size"
    return None


def _in_integers(a: torch.Tensor, b: torch.Tensor, flipped: float) -> str | None:
    wrong = int((a != b).sum())
    if wrong > flipped * a.numel():
        return f"its output differs by {wrong} of {a.numel()} values ({a.dtype})"
    return None


def check_comparable(output: Any) -> None:
    """`InputError` for outputs of which no number is finite: nothing can be shown with them."""
    numbers = [t for t in tensors(output) if t.is_floating_point() or t.is_complex()]
    for t in numbers:
        if t.numel() and not bool(t.isfinite().any()):
            raise InputError(
                f"the network's output on the example input, of shape {tuple(t.shape)}, holds no "
                "finite number; give an example on which it is finite"
            )
