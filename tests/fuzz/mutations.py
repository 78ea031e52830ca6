"""Strategies that damage files: bits, lengths, and fields that change places or values."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

# What a field may be replaced by: of another type, out of range, huge, not a number.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**6, 10**11, 10**40, -(2**63), 1e300, -0.0, 1e-320]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["float32", "arm", "../x", "load", "tests.tiny:model", "[/red]"]),
    st.sampled_from([[], {}, [[]], [1, 2, 3, 4], {"": 0}]),
)
Mutation = Callable[[bytes], bytes]


def _flipped(content: bytes, places: list[tuple[float, int]]) -> bytes:
    found = bytearray(content)
    for share, bit in places:
        if found:
            found[int(share * (len(found) - 1))] ^= 1 << bit
    return bytes(found)


def _moved(content: bytes, start: float, end: float, to: float) -> bytes:
    """A piece cut out and put in elsewhere."""
    a, b = sorted(int(s * len(content)) for s in (start, end))
    piece, rest = content[a : min(b, a + 64)], content[:a] + content[min(b, a + 64) :]
    place = int(to * len(rest))
    return rest[:place] + piece + rest[place:]


SHARES = st.floats(0, 1)
BYTES: st.SearchStrategy[Mutation] = st.one_of(
    st.lists(st.tuples(SHARES, st.integers(0, 7)), min_size=1, max_size=4).map(
        lambda places: lambda content: _flipped(content, places)
    ),
    SHARES.map(lambda share: lambda content: content[: int(share * len(content))]),
    st.tuples(SHARES, SHARES, SHARES).map(lambda p: lambda content: _moved(content, *p)),
    st.tuples(SHARES, st.binary(min_size=1, max_size=16)).map(
        lambda p: (
            lambda content: (
                content[: int(p[0] * len(content))] + p[1] + content[int(p[0] * len(content)) :]
            )
        )
    ),
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The paths of everything inside a JSON-like value."""
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [p for k, v in inside for p in [(*path, k), *places(v, (*path, k))]]


def _holder(value: Any, path: tuple) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


@st.composite
def fields(draw: Any, value: Any) -> Any:
    """A JSON-like value with one or two fields replaced, removed, or exchanged with another."""
    found = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        if not (known := places(found)):
            return found
        path = draw(st.sampled_from(known))
        holder = _holder(found, path)
        kind = draw(st.sampled_from(["replace", "remove", "exchange"]))
        if kind == "replace":
            holder[path[-1]] = copy.deepcopy(draw(VALUES))
        elif kind == "remove":
            del holder[path[-1]]
        else:
            other = draw(st.sampled_from(known))
            there = _holder(found, other)
            a, b = copy.deepcopy(holder[path[-1]]), copy.deepcopy(there[other[-1]])
            holder[path[-1]] = b
            if path != other[: len(path)]:  # else it went with what it was in
                there[other[-1]] = a
    return found


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()
