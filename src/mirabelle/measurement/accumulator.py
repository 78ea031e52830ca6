"""Metrics that are no mean over samples: objects with `update` and `compute`, as torchmetrics has
them.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from mirabelle.base.errors import InputError


class NoFigureError(InputError):
    """These samples have no figure: they lack something that the metric counts."""


@runtime_checkable
class Accumulator(Protocol):
    """`update(output, target)` takes a batch; `compute()` gives the figure of all batches so far:
    a number, or a dict whose first entry is the number. Higher is better unless it says
    `higher_is_better = False`.
    """

    def update(self, output: Any, target: Any, /) -> Any: ...

    def compute(self) -> Any: ...


def maker(metric: Any) -> Callable[[], Any] | None:
    """Makes fresh accumulators, where `metric` is one, a class of them or a function without
    parameters that returns one; None where it is something else. What is given stays as it is.
    """
    if isinstance(metric, type) or _takes_nothing(metric):
        template = metric()
        if not _is_accumulator(template):
            raise InputError(
                f"metric {metric_name(metric)} gives a {type(template).__name__}; expected an "
                "object with update(output, target) and compute()"
            )
    elif _is_accumulator(metric):
        template = copy.deepcopy(metric)
        if callable(reset := getattr(template, "reset", None)):
            reset()
    else:
        return None
    return lambda: copy.deepcopy(template)


def _is_accumulator(value: Any) -> bool:
    return isinstance(value, Accumulator) and not isinstance(value, type)


def _takes_nothing(function: Any) -> bool:
    if not inspect.isfunction(function):
        return False
    return not inspect.signature(function).parameters


def metric_name(metric: Any) -> str:
    """What a metric is called where its figure is shown."""
    if isinstance(metric, str):
        return metric
    named = getattr(metric, "__name__", None)
    return named if isinstance(named, str) else type(metric).__name__


def is_higher_better(metric: Any) -> bool:
    """Whether a larger figure is better: unless it says `higher_is_better = False`."""
    if (make := maker(metric)) is not None:
        metric = make()
    return getattr(metric, "higher_is_better", True) is not False


def figure(computed: Any, name: str) -> float:
    """The number that `compute` gave; the first one of a dict."""
    value: Any = computed
    if isinstance(computed, Mapping) and computed:
        key, value = next(iter(computed.items()))
        name = f"{name}'s {key!r}"
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        shape = tuple(value.shape) if hasattr(value, "shape") else ""
        raise InputError(
            f"{name} is a {type(value).__name__}{shape} after compute(); "
            "expected one number, or a dict whose first entry is one"
        ) from None


def sound_figure(computed: Any, name: str) -> float:
    """The number that `compute` gave; `NoFigureError` where it is none."""
    value = figure(computed, name)
    if not math.isfinite(value):
        raise NoFigureError(
            f"{name} is {value} on these data; look whether they have what it counts, such as "
            "samples of every class"
        )
    return value
