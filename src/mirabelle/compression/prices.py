"""What each decision costs: milliseconds on the runtime, bytes of the file or multiply-accumulates,
as a sum over layers, each in float or as integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from mirabelle.base.data import Batch
from mirabelle.channels.groups import Coupling
from mirabelle.pruning.allocation import Macs
from mirabelle.pruning.latency import latency_model
from mirabelle.quantization.api import quantize
from mirabelle.quantization.search.timing import file_of
from mirabelle.runtimes import Artifact

FLOAT, INT8 = "float", "int8"
BYTES = {FLOAT: 4.0, INT8: 1.0}  # of a weight
PER_CHANNEL = {FLOAT: 4.0, INT8: 8.0}  # bytes: a bias; integers have a scale too
FEW = 32  # samples that a file is calibrated with which is only timed
CONVERSION = 1e-6  # milliseconds for each number that becomes an integer, or one a float


class LayerCosts(Protocol):
    """What layers cost, with `kept` channels in each group; an array where the width of one group
    is one. others: what is no layer's.
    """

    def layer(self, number: int, kept: Mapping[str, Any]) -> Any: ...

    def __call__(self, kept: dict[str, int]) -> float: ...


@dataclass(frozen=True)
class Weights:
    """Bytes of the weights and biases in one form."""

    coupling: Coupling
    form: str
    rest: float  # bytes of what is no layer's weight

    def layer(self, number: int, kept: Mapping[str, Any]) -> Any:
        cost, channels = self.coupling.costs[number], self.coupling.channels
        shape = self.coupling.shapes.get(cost.weight)
        if shape is None:
            return 0.0
        share = cost.left(kept, channels) / max(1.0, cost.macs)
        written = next((s for s in cost.sides if not s.summed), None)
        outputs = shape[0] if written is None else shape[0] * written.left(kept, channels)
        outputs = outputs if written is None else outputs / written.size
        return float(np.prod(shape)) * share * BYTES[self.form] + outputs * PER_CHANNEL[self.form]

    def __call__(self, kept: dict[str, int]) -> float:
        return self.rest + float(sum(self.layer(i, kept) for i in range(len(self.coupling.costs))))


@dataclass(frozen=True)
class Edge:
    """Two layers that hand over numbers, of one sample, by their places in `coupling.costs`."""

    before: int
    after: int
    numbers: int


@dataclass(frozen=True)
class Prices:
    """What a network costs in one quantity. forms: the layers' costs in each form that the runtime
    runs. edges: where numbers are converted if one layer is in float and the next is not.
    """

    quantity: str
    forms: Mapping[str, LayerCosts]
    coupling: Coupling
    edges: tuple[Edge, ...] = field(default=(), repr=False)

    def layer(self, number: int, kept: Mapping[str, Any], form: str) -> Any:
        return self.forms[form].layer(number, kept)

    def conversions(self, forms: Mapping[int, str]) -> float:
        """What conversions cost. forms: of the layers, by number; those that go are not named."""
        if self.quantity != "latency":
            return 0.0
        known = (e for e in self.edges if e.before in forms and e.after in forms)
        crossing = (e for e in known if forms[e.before] != forms[e.after])
        return CONVERSION * sum(e.numbers for e in crossing)

    def network(self, kept: Mapping[str, int], forms: Mapping[int, str]) -> float:
        """All of it."""
        found = 0.0
        for form, costs in self.forms.items():
            mine = [i for i, f in forms.items() if f == form]
            layers = sum(float(costs.layer(i, kept)) for i in mine)
            share = len(mine) / max(1, len(forms))
            found += layers + share * self._others[form]
        return found + self.conversions(forms)

    @cached_property
    def _others(self) -> dict[str, float]:
        """By form, what is no layer's, which no width changes: the knapsack asks for every cost."""
        layers = range(len(self.coupling.costs))
        return {
            form: costs({}) - sum(float(costs.layer(i, {})) for i in layers)
            for form, costs in self.forms.items()
        }


def prices(
    quantity: str,
    model: nn.Module,
    coupling: Coupling,
    runtime: str,
    integers: bool,
    calibration: list[Batch],
) -> Prices:
    """The prices of one quantity: `latency` (timed here, or read from the cache), `size` or `macs`.

    integers: whether the runtime runs int8. calibration: a few samples for the files that are
    timed as integers.
    """
    found: dict[str, LayerCosts] = {}
    for form in (FLOAT, INT8) if integers else (FLOAT,):
        if quantity == "latency":
            write = _writer(calibration) if form == INT8 else None
            options: dict[str, Any] = {} if write is None else {"form": INT8, "write": write}
            found[form] = latency_model(model, coupling, runtime, **options)
        elif quantity == "size":
            found[form] = Weights(coupling, form, _other_bytes(model, coupling))
        else:
            found[form] = Macs(coupling)
    return Prices(quantity, found, coupling, edges(coupling))


def _writer(calibration: list[Batch]) -> Callable[[nn.Module, Batch, Path, str, int], Artifact]:
    """Writes a cut of the network as integers: how fast they are does not hang on their grids."""

    def write(
        network: nn.Module, inputs: Batch, folder: Path, runtime: str, threads: int
    ) -> Artifact:
        # networks that are made to be timed have inputs of their own
        data = calibration if _alike(calibration[0], inputs) else [inputs]
        small = quantize(network, data, threshold="absmax", repair=None, samples=FEW)
        return file_of(small, inputs, folder, runtime)

    return write


def _alike(batch: Batch, other: Batch) -> bool:
    """Whether samples of both have the same shapes."""
    return [t.shape[1:] for t in batch.tensors] == [t.shape[1:] for t in other.tensors]


def _other_bytes(model: nn.Module, coupling: Coupling) -> float:
    layers = {c.weight for c in coupling.costs}
    norms = {n for n, m in model.named_modules() if "BatchNorm" in type(m).__name__}
    return sum(
        4.0 * p.numel()
        for n, p in model.named_parameters()
        if n not in layers and n.rpartition(".")[0] not in norms and p.ndim > 1
    )


def edges(coupling: Coupling) -> tuple[Edge, ...]:
    """Which layers hand over to which, through anything that is no layer."""
    assert coupling.graph_module is not None
    number = {c.node: i for i, c in enumerate(coupling.costs)}
    makers: dict[Any, set[int]] = {}
    found: dict[tuple[int, int], int] = {}
    for node in coupling.graph_module.graph.nodes:
        before = set().union(*(makers[n] for n in node.all_input_nodes), set())
        mine = number.get(node.name)
        makers[node] = before if mine is None else {mine}
        value = node.meta.get("val")
        if mine is None:
            continue
        given = node.all_input_nodes[0].meta.get("val") if node.all_input_nodes else value
        size = given.numel() // coupling.samples if hasattr(given, "numel") else 0
        for other in before:
            found[other, mine] = size
    return tuple(Edge(a, b, n) for (a, b), n in found.items())
