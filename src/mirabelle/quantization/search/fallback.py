"""Which layers quantization hurts, and leaving the fewest of them unquantized that keep the
accuracy within a limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import fx, nn

from mirabelle.base.checks import tensors_of
from mirabelle.base.data import Batch, samples
from mirabelle.base.errors import InputError
from mirabelle.base.progress import bar
from mirabelle.measurement.accuracy import as_tensor, predictor
from mirabelle.measurement.judge import Judge
from mirabelle.quantization.search.timing import milliseconds
from mirabelle.quantization.simulation.description import (
    Fallback,
    Sensitivity,
    describe,
    described_of,
)
from mirabelle.quantization.simulation.graph import weight_keys
from mirabelle.quantization.simulation.operators import layer_input, tail, weight_name
from mirabelle.quantization.simulation.placement import contractions
from mirabelle.quantization.simulation.quantizers import Quantizer

FEW = 64  # samples on which layers are compared


class Switchboard:
    """A quantized network whose layers can be quantized one at a time. reference: its float graph,
    with parameters of the same names.
    """

    def __init__(self, network: fx.GraphModule, reference: fx.GraphModule):
        described = described_of(network)
        self.network, self.reference = network, reference
        self.quantizers = {n: m for n, m in network.named_modules() if isinstance(m, Quantizer)}
        sites = {s.node: f"quantizers.{s.source or s.node}" for s in described.sites}
        weights = weight_keys(reference, described.keep)
        self.needs: dict[
            str, set[str]
        ] = {}  # by weight: the quantizers of what its layers read, of itself and of what they give
        for node in contractions(reference.graph, described.keep):
            weight = weight_name(node)
            ends = {sites[n.name] for n in (layer_input(node), tail(node)) if n.name in sites}
            self.needs.setdefault(weight, {f"quantizers.{weights[weight]}"}).update(ends)

    @contextmanager
    def only(self, weight: str | None) -> Iterator[fx.GraphModule]:
        """The network with only the layers of this weight quantized. Everything else is the float
        network's, biases too: what repairs made of those makes up for layers that are in float now.
        """
        working = self.needs[weight] if weight is not None else ()
        state = tensors_of(self.network)
        repaired = {n: t.clone() for n, t in state.items()}
        try:
            for name, quantizer in self.quantizers.items():
                quantizer.enabled = name in working
            for name, exact in tensors_of(self.reference).items():
                if name in state and name != weight:
                    state[name].copy_(exact)
            yield self.network
        finally:
            for name, tensor in repaired.items():
                state[name].copy_(tensor)
            for quantizer in self.quantizers.values():
                quantizer.enabled = True


def noise(network: nn.Module, data: Iterable[Batch], wanted: Iterable[torch.Tensor]) -> float:
    """The squared error of the network's outputs for the batches."""
    found = (as_tensor(predictor(network)(b)).double() for b in data)
    return sum(float((f - w).square().sum()) for f, w in zip(found, wanted))


def layer_errors(
    network: fx.GraphModule, reference: fx.GraphModule, data: Iterable[Batch]
) -> tuple[list[torch.Tensor], dict[str, float]]:
    """The float outputs for the first FEW samples of `data`, and by weight the squared error of the
    outputs when the layers of this weight alone are quantized.
    """
    board, few = Switchboard(network, reference), list(samples(data, FEW, "data"))
    with board.only(None):
        wanted = [as_tensor(predictor(network)(b)).double() for b in few]
    errors = {}
    with bar("sensitivity of layers", len(board.needs)) as shown:
        for weight in board.needs:
            with board.only(weight):
                errors[weight] = noise(network, few, wanted)
            shown.advance()
    return wanted, errors


def sensitivities(
    network: fx.GraphModule, reference: fx.GraphModule, data: Iterable[Batch]
) -> dict[str, float | None]:
    """By weight, the most sensitive first: the float output over what changes in it, in dB, when
    the layers of this weight alone are quantized.

    On the first FEW samples of `data`; no labels are needed. None where nothing changes.
    """
    wanted, errors = layer_errors(network, reference, data)
    signal = sum(float(w.square().sum()) for w in wanted)
    found = {
        weight: 10 * math.log10(signal / error) if error > 0 and signal > 0 else None
        for weight, error in errors.items()
    }
    return dict(sorted(found.items(), key=lambda f: math.inf if f[1] is None else f[1]))


def fewest(order: Sequence[str], holds: Callable[[Sequence[str]], bool]) -> list[str]:
    """The shortest beginning of `order` that holds; the whole where none does. Doubles until one
    holds, then halves: what holds is taken to go on holding.
    """
    low, high = 0, 1  # low does not hold
    while high < len(order) and not holds(order[:high]):
        low, high = high, 2 * high
    high = min(high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(order[:middle]) else (middle, high)
    return list(order[:high])


def within(
    model: nn.Module,
    network: fx.GraphModule,
    reference: fx.GraphModule,
    fallen_back: Callable[[Sequence[str]], fx.GraphModule],
    judge: Judge,
    limit: float,
    precision: str | int,
    data: Sequence[Batch],
    runtime: str,
) -> fx.GraphModule:
    """The network with the fewest layers fallen back, in the order of their sensitivity, whose
    metric falls by at most `limit`.

    model: the float network. network: quantized, repaired. reference: its float graph. fallen_back:
    weights -> the network with their layers in `precision`, repaired.
    data: for the sensitivities. Raises `InputError` where nothing would be left.
    """
    order = sensitivities(network, reference, data)
    names = {w: w.rpartition(".")[0] or w for w in order}
    tried = _Tried(judge, fallen_back, limit, precision, list(names.values()))
    tried.add(network, 0)
    fallen = [] if tried.holds([]) else fewest(list(order), tried.holds)
    if not tried.holds(fallen):
        raise InputError(
            f"accuracy_drop is {limit:g}, and with all layers in {precision} bits the "
            f"{judge.metric} falls by {tried.drop(fallen)[0]:.4g}; raise it"
        )
    result, (drop, low, high) = tried.found[len(fallen)]
    times = None
    if fallen and precision == "float" and described_of(network).bits == 8:
        times = milliseconds(
            {"float": model, "all_quantized": network, "fallback": result}, data[0], runtime
        )
    record = Fallback(
        limit,
        judge.metric,
        judge.scores.n,
        drop,
        (low, high),
        tried.drop([])[0],
        str(precision),
        tuple(names[w] for w in fallen),
        tuple(Sensitivity(names[w], s) for w, s in order.items()),
        runtime,
        times,
    )
    describe(result, replace(described_of(result), fallback=record))
    return result


class _Tried:
    """The networks that were judged, by how many layers fell back, and how much each lost.

    names: of all layers, the most sensitive first.
    """

    def __init__(
        self,
        judge: Judge,
        fallen_back: Callable[[Sequence[str]], fx.GraphModule],
        limit: float,
        precision: str | int,
        names: Sequence[str],
    ):
        self.judge, self.fallen_back, self.limit = judge, fallen_back, limit
        self.precision, self.names = precision, names
        self.found: dict[int, tuple[fx.GraphModule, tuple[float, float, float]]] = {}

    def add(self, network: fx.GraphModule, count: int) -> None:
        scores = self.judge.of(predictor(network))
        self.found[count] = (network, self.judge.drop(scores))

    def drop(self, fallen: Sequence[str]) -> tuple[float, float, float]:
        return self.found[len(fallen)][1]

    def holds(self, fallen: Sequence[str]) -> bool:
        if len(fallen) not in self.found:
            if len(fallen) == len(self.names) and self.precision == "float":
                raise InputError(
                    f"accuracy_drop is {self.limit:g}, and even with all layers but "
                    f"{self.names[-1]} in float the {self.judge.metric} falls by more; "
                    "raise it, or take learned rounding or training to it"
                )
            self.add(self.fallen_back(fallen), len(fallen))
        return self.drop(fallen)[0] <= self.limit
