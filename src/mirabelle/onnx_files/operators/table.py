"""The table of operators, how one enters it, and what several share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Attributes = dict[str, Any]


class UnsupportedError(Exception):
    """An attribute or a combination of inputs that has no translation here."""


OPERATORS: dict[str, Callable[..., Any]] = {}


def operator(*names: str) -> Callable:
    def enter(function: Callable) -> Callable:
        for name in names:
            OPERATORS[name] = function
        return function

    return enter


def refuse(attributes: Attributes, **usual: Any) -> None:
    """Raises `UnsupportedError` where an attribute has another value than the usual one."""
    for name, value in usual.items():
        if attributes.get(name, value) != value:
            raise UnsupportedError(f"{name}={attributes[name]!r}")


def pads(
    attributes: Attributes, size: Any, kernel: Any, strides: Any, dilations: Any
) -> list[tuple[int, int]]:
    """(before, after) of each spatial dimension."""
    rule, n = attributes.get("auto_pad", "NOTSET"), len(kernel)
    if rule == "VALID":
        return [(0, 0)] * n
    if rule.startswith("SAME"):
        found = []
        for s, k, step, d in zip(size, kernel, strides, dilations, strict=True):
            total = max(0, (-(-s // step) - 1) * step + (k - 1) * d + 1 - s)
            found.append(
                (total // 2, total - total // 2)
                if rule == "SAME_UPPER"
                else (total - total // 2, total // 2)
            )
        return found
    given = attributes.get("pads", [0] * (2 * n))
    return list(zip(given[:n], given[n:], strict=True))


def spread(around: list[tuple[int, int]]) -> list[int]:
    """Pads in the order of `F.pad`: the last dimension first."""
    return [v for pair in reversed(around) for v in pair]
