"""Why a layer differs from the reference: each cause is tried, and named only where it explains
what the runtime gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import fx

from mirabelle.base.data import Batch
from mirabelle.graph.nodes import optional_argument
from mirabelle.verification.integer_reference import IntegerReference

# Another rounding explains a layer when it leaves at most this share of the differences.
EXPLAINED = 0.1


@dataclass(frozen=True)
class Cause:
    """name: `rounding`, `saturation`, `fusion`, `float fallback`, `earlier layers` or `unknown`.
    evidence: what was found.
    """

    name: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.name}: {self.evidence}" if self.evidence else self.name


def saturation(clipped: int, total: int) -> Cause:
    """The cause of a layer of whose `total` sums so many lost something."""
    return Cause(
        "saturation",
        f"{clipped} of {total} sums hold pairs beyond 16 bits, which this processor's kernels clip",
    )


def diagnose(
    model: fx.GraphModule,
    pairs: str | None,
    batch: Batch,
    seen: Mapping[str, np.ndarray],
    in_float: Mapping[str, str],
    names: Mapping[str, str],
) -> dict[str, Cause]:
    """For each site that holds something else than what follows from the integers that the runtime
    had before it, why.

    pairs: as in `IntegerReference`. seen: the runtime's integers of every site on `batch`.
    in_float: sites whose layer the runtime says it ran in float, with the name that it gives it.
    names: what people know the sites by.
    """
    local, _ = IntegerReference(model, pairs=pairs).run(batch, seen)
    causes: dict[str, Cause] = {}
    for site in seen:
        if (
            cause := _cause(model, pairs, site, batch, seen, local[site], in_float, names)
        ) is not None:
            causes[site] = cause
    return causes


def diagnose_shipped(
    model: fx.GraphModule,
    pairs: str | None,
    batch: Batch,
    seen: Mapping[str, np.ndarray],
    alone: Callable[[str], np.ndarray],
    in_float: Mapping[str, str],
    names: Mapping[str, str],
) -> tuple[str, Cause] | None:
    """The first site whose value in the file as it is differs from that in the copy with all values
    as outputs, and why: a runtime that may not drop a value cannot fuse the layers around it. None
    where there is no such site.

    alone(site): the site's integers where it is the only value added to the outputs. Found by
    halving: what differs at one site differs after it.
    """
    order = list(seen)
    low, high, shipped = 0, len(order), None
    while low < high:
        middle = (low + high) // 2
        value = alone(order[middle])
        if np.array_equal(value, seen[order[middle]]):
            low = middle + 1
        else:
            high, shipped = middle, value
    if shipped is None:
        return None
    site = order[low]
    local, _ = IntegerReference(model, pairs=pairs).run(batch, seen)
    cause = _cause(model, pairs, site, batch, {**seen, site: shipped}, local[site], in_float, names)
    return site, cause or Cause(
        "unknown", "the value is another one when no other value is an output of the file"
    )


def _cause(
    model: fx.GraphModule,
    pairs: str | None,
    site: str,
    batch: Batch,
    seen: Mapping[str, np.ndarray],
    expected: np.ndarray,
    in_float: Mapping[str, str],
    names: Mapping[str, str],
) -> Cause | None:
    off = np.abs(expected.astype(np.int64) - seen[site])
    differing, largest = float((off != 0).mean()), int(off.max())

    def left(other: np.ndarray) -> float:
        """The share of the differences that stay."""
        return float((other != seen[site]).mean()) / differing

    if not differing:
        return None
    for source in _sources(model, site):
        # Also for differences of one step: a value that is rounded once instead of twice differs by
        # no more.
        if (
            rest := left(IntegerReference(model, pairs=pairs).run(batch, seen, {source})[0][site])
        ) <= EXPLAINED:
            return Cause(
                "fusion",
                f"{names[source]} is not rounded on the way: with that "
                f"{_percent(1 - differing * rest)} of the integers are equal, "
                f"with rounding {_percent(1 - differing)}",
            )
    if site in in_float:
        return Cause(
            "float fallback",
            f"the runtime computes {in_float[site]} in float; off by at most {largest}, "
            f"{_percent(differing)} of the integers",
        )
    if largest <= 1:
        return Cause("rounding", f"off by one in {_percent(differing)} of the integers")
    return Cause(
        "unknown",
        f"off by up to {largest} in {_percent(differing)} of the integers, with the runtime's "
        "own inputs",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if share < 0.99 else f"{100 * share:.5g} %"


def maker_of(model: fx.GraphModule, site: str) -> fx.Node:
    """The node that makes the site's value: before its rectifier, if it has one."""
    node = next(n for n in model.graph.nodes if n.name == site)
    while (
        node.op == "call_function"
        and len(node.all_input_nodes) == 1
        and node.all_input_nodes[0].op == "call_function"
    ):
        node = node.all_input_nodes[0]
    return node


def _sources(model: fx.GraphModule, site: str) -> list[str]:
    """The sites that the site's value is computed from directly, where a runtime may leave out the
    rounding between two layers: not the input's own.
    """
    found, stack = [], [next(n for n in model.graph.nodes if n.name == site)]
    while stack:
        for source in stack.pop().all_input_nodes:
            value = optional_argument(source, 0) if source.op == "call_module" else None
            if value is not None and value.op == "call_function":
                found.append(value.name)
            elif source.op == "call_function":
                stack.append(source)
    return found
