"""What becomes of labels where elements meet: they are one channel, or fixed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mirabelle.channels.ids import FIXED, Labels, Value, collapse, compact, thin, varying


def value_of(
    labels: Labels, shape: Sequence[int], planes: Sequence[torch.Tensor], rest: int = FIXED
) -> Value:
    """A value with these planes; a plane in which the channel does not change is none."""
    kept = []
    for plane in planes:
        plane = collapse(plane)
        if varying(plane):
            kept.append(plane)
        elif plane.numel() and (label := int(plane.reshape(-1)[0])) != FIXED:
            labels.fix(thin(plane, ()), "a single channel")
            rest = rest or label
    return Value(tuple(shape), tuple(kept), rest)


def mix(labels: Labels, plane: torch.Tensor, dims: Sequence[int], reason: str) -> torch.Tensor:
    """What an operator that mixes the elements along `dims` makes of a plane: the channels that
    differ along them become one.
    """
    vary = set(varying(plane))
    hit = vary & {d % plane.ndim for d in dims}
    if not hit:
        return plane
    first, whole = thin(plane, vary - hit), thin(plane, vary)
    labels.meet(first.expand_as(whole), whole, reason)
    return first.expand(plane.shape)


def merge(labels: Labels, a: Value, b: Value, reason: str) -> Value:
    """Elements that meet are one channel. An operand that is repeated along a dimension (size 1)
    shares no channel of that dimension.
    """
    shape = torch.broadcast_shapes(a.shape, b.shape)
    wide_a, wide_b = _broadcast(a.shape, shape), _broadcast(b.shape, shape)
    left, right = [p.expand(shape) for p in a.planes], [p.expand(shape) for p in b.planes]
    left, right = (
        _settle(labels, left, right, wide_b, reason),
        _settle(labels, right, left, wide_a, reason),
    )
    merged = []
    for plane in left:
        dims = set(varying(plane))
        partners = [q for q in right if dims & set(varying(q))]
        right = [q for q in right if not any(q is other for other in partners)]
        plane = _with_partners(labels, plane, partners, reason)
        if not partners and not dims <= wide_b:
            _meet_rest(labels, plane, b.rest, reason)
        merged.append(plane)
    for plane in right:
        if not set(varying(plane)) <= wide_a:
            _meet_rest(labels, plane, a.rest, reason)
        merged.append(plane)
    return value_of(labels, shape, merged, a.rest or b.rest)


def _with_partners(
    labels: Labels, plane: torch.Tensor, partners: Sequence[torch.Tensor], reason: str
) -> torch.Tensor:
    """The plane that stands for `plane` and those of the other operand that run along a dimension
    of it; all of one shape.
    """
    shape, dims = plane.shape, set(varying(plane))
    for partner in partners:
        both = dims | set(varying(partner))
        x, y = thin(plane, both), thin(partner, both)
        whole = torch.broadcast_shapes(x.shape, y.shape)
        labels.meet(x.expand(whole), y.expand(whole), reason)
        if len(varying(partner)) < len(dims):
            plane = partner
        fixed = (x == FIXED) | (y == FIXED)
        plane = torch.where(fixed, FIXED, thin(plane, both)).expand(shape)
    return plane


def _settle(
    labels: Labels,
    planes: list[torch.Tensor],
    others: list[torch.Tensor],
    wide: set[int],
    reason: str,
) -> list[torch.Tensor]:
    """Channels that run along several dimensions (heads and their parts), met by an operand
    that spans only some of them, become one along those.
    """
    settled = []
    for plane in planes:
        dims = set(varying(plane))
        partners = [(q, set(varying(q))) for q in others if dims & set(varying(q))]
        narrow = [(q, along) for q, along in partners if along < dims]
        hit = (dims - wide - {d for _, along in partners for d in along}) | {
            d for _, along in narrow for d in along
        }
        if len(dims) > 1 and hit and hit != dims:
            labels.fix_all([q for q, _ in narrow], reason)
            plane = mix(labels, plane, sorted(hit), reason)
        elif len(dims) > 1 and narrow and hit == dims:
            plane = mix(labels, plane, sorted(dims - narrow[0][1]), reason)
        settled.append(plane)
    return settled


def _meet_rest(labels: Labels, plane: torch.Tensor, rest: int, reason: str) -> None:
    own = compact(plane)
    labels.meet(own, torch.full_like(own, rest), reason)


def _broadcast(own: tuple[int, ...], shape: Sequence[int]) -> set[int]:
    """The dimensions of `shape` along which an operand of shape `own` is repeated."""
    missing = len(shape) - len(own)
    return {d for d in range(len(shape)) if d < missing or (own[d - missing] == 1 and shape[d] > 1)}


def make_rectangular(labels: Labels, values: Iterable[Any]) -> None:
    """What is left of a tensor must be a tensor: where channels run along two dimensions at once
    they become one along all but the longest.
    """
    seen: set[tuple] = set()
    roots = labels.solve()
    for value in pytree.tree_leaves(list(values)):
        for plane in value.planes if isinstance(value, Value) else ():
            if len(varying(plane)) < 2:
                continue
            small = roots[thin(plane, varying(plane))]
            dims = varying(small)
            if len(dims) < 2 or (key := (small.shape, small.numpy().tobytes())) in seen:
                continue
            seen.add(key)
            kept = max(dims, key=lambda d: small.shape[d])
            first = thin(small, [kept])
            labels.meet(
                first.expand(small.shape),
                small,
                "shares its position with values that cannot be removed",
            )
            roots = labels.solve()
