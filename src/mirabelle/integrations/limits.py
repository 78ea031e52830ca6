"""What has to hold of the figures that a trainer logs: `"val_accuracy >= 0.9"`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from mirabelle.base.errors import InputError, LimitError, did_you_mean
from mirabelle.base.options import shown

WAYS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}
_LIMIT = re.compile(r"\s*(\S+)\s*(>=|<=)\s*(\S+)\s*")


class Limit(NamedTuple):
    """A figure's name, `>=` or `<=`, and the bound."""

    name: str
    way: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name} {self.way} {self.bound:g}"

    def holds(self, value: float) -> bool:
        return WAYS[self.way](value, self.bound)


def limits_of(texts: Sequence[str]) -> list[Limit]:
    """The limits that texts stand for; `InputError` names the first that is none."""
    return [_read(text) for text in texts]


def _read(text: object) -> Limit:
    found = _LIMIT.fullmatch(text) if isinstance(text, str) else None
    try:
        if found is not None:
            return Limit(found[1], found[2], float(found[3]))
    except ValueError:
        pass
    raise InputError(
        f"a limit is {shown(text)}; expected a figure's name, >= or <=, and a number, such as "
        "'val_accuracy >= 0.9'"
    )


def check_limits(limits: Iterable[Limit], figures: Mapping[str, float]) -> None:
    """`LimitError` names every limit that the figures miss; `InputError` a figure that nobody
    logged. NaN holds no limit.
    """
    missed = []
    for limit in limits:
        if limit.name not in figures:
            raise InputError(
                f"the limit {str(limit)!r} is about a figure that was not logged"
                f"{did_you_mean(limit.name, figures)}"
            )
        if not limit.holds(value := float(figures[limit.name])):
            missed.append(f"{limit.name} is {value:.6g}, the limit is {limit.way} {limit.bound:g}")
    if missed:
        raise LimitError("training ended and missed its limits: " + "; ".join(missed))
