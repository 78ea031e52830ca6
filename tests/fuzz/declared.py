"""Values for options, drawn from their declarations: inside of the bounds, on them, outside, and of
other types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from hypothesis import strategies as st

from mirabelle.base.options import REQUIRED, OneOf, Option, Options

ODD = (
    *(math.nan, math.inf, -math.inf, -1, 0, -0.5, 1e308, 2**70, True, False, "", "x", "a:b"),
    *(b"x", [], [None], {}, {"x": 1}, (), object(), len, "taylor", "os:getcwd", "\0", "../x"),
)
# What takes minutes, phones, GPUs or files; and what no run can end with when it is huge.
SLOW = {"search", "learned-rounding", "fastest", "knapsack", "fisher"}
LONG = {"epochs", "steps", "rounds", "cuts", "runs"}
LEFT_OUT = {
    *("checkpoint", "cache", "device", "progress", "latency", "runtime", "break_even", "part"),
    *("baseline", "binary", "serial", "core", "precision", "accuracy_drop", "placement"),
}


def options_drawn(known: Options, most: int = 3) -> st.SearchStrategy[dict[str, Any]]:
    """A few options with values of any kind, and those that are required."""
    needed = {o.name: inside(o) for o in known.values() if o.default is REQUIRED}
    free = [o for o in known.values() if o.name not in {*LEFT_OUT, *needed}]
    given = st.lists(st.sampled_from(free), max_size=most, unique_by=lambda o: o.name).flatmap(
        lambda chosen: st.fixed_dictionaries({**needed, **{o.name: value(o) for o in chosen}})
    )
    return given


def value(option: Option) -> st.SearchStrategy[Any]:
    """Any value, as often one that is declared as one that is not."""
    odd = [v for v in ODD if not (option.name in LONG and isinstance(v, int) and v > 9)]
    return st.one_of(inside(option), inside(option), edges(option), st.sampled_from(odd))


def inside(option: Option) -> st.SearchStrategy[Any]:
    return (
        st.one_of(*_members(option.hint, option.marks))
        if _members(option.hint, option.marks)
        else st.just(None if option.default is REQUIRED else option.default)
    )


def edges(option: Option) -> st.SearchStrategy[Any]:
    """The bounds themselves, and what is just beyond them."""
    low, high = _bounds(option.marks)
    found = [v for b in (low, high) if b is not None for v in (b, b - 1, b + 1, float(b), b - 1e-9)]
    return st.sampled_from([v for v in found if option.name not in LONG or v < 9] or [None])


def _bounds(marks: Iterable[Any]) -> tuple[float | None, float | None]:
    low = next(
        (m.gt if isinstance(m, Gt) else m.ge for m in marks if isinstance(m, (Gt, Ge))), None
    )
    high = next(
        (m.lt if isinstance(m, Lt) else m.le for m in marks if isinstance(m, (Lt, Le))), None
    )
    return low, high  # type: ignore[return-value]


def _members(hint: Any, marks: Iterable[Any]) -> list[st.SearchStrategy[Any]]:
    marks = list(marks)
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *own = get_args(hint)
        return _members(inner, [*own, *marks])
    if origin in (Union, UnionType):
        return [s for member in get_args(hint) for s in _members(member, marks)]
    if origin is Literal:
        return [st.sampled_from(get_args(hint))]
    if hint is NoneType:
        return [st.none()]
    if hint is bool:
        return [st.booleans()]
    low, high = _bounds(marks)
    if hint is int:
        start = int(low) if low is not None else 0
        return [st.integers(start, min(int(high) if high is not None else start + 4, start + 16))]
    if hint is float:
        start, end = low if low is not None else 0.0, high if high is not None else 2.0
        return [st.floats(start, end, exclude_min=low is not None, exclude_max=high is not None)]
    if hint is str:
        names = [n for m in marks if isinstance(m, OneOf) for n in m.names if n not in SLOW]
        return [st.sampled_from(names)] if names else []
    if origin in (list, Sequence, Iterable):
        inner = _members(get_args(hint)[0], marks)
        return [st.lists(st.one_of(*inner), max_size=2)] if inner else [st.just([])]
    if hint in (Path, Callable, Mapping, dict) or origin in (Callable, Mapping):
        return []
    return []
