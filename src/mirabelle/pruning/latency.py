"""What channels cost in milliseconds: the network's own layers, timed at several widths on the
runtime that it will run on.

The network is cut to a few widths, uniform and uneven ones, and each cut runs on the runtime with
its profiler on (without one, a layer's share of the time is its share of the work). A layer's time
is fitted over the cuts as

    t = a + b * (share of its inputs left * share of its outputs left) + c * (mean of the two
    shares),   a, b, c >= 0

work, memory traffic and overhead; what is no layer (pools, activations that are not fused) is
fitted together as one. Kernels compute channels in blocks, and
take as long for one channel of a block as for all, or not much less: so shares are of widths
rounded up to whole blocks, or between these and the widths themselves. How wide blocks are is
measured, too (`kernel_block`), and how much a part of one takes is what fits the network's own
layers best: one figure for what layers write, and one for what they sum over, which need not fill
vectors. The fit is kept in the cache folder under the machine, the runtime's version and the
network's structure. What the fit predicts only decides how channels are spread over
layers: `until_measured` then measures the real networks and corrects the budget.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mirabelle.base.data import Batch, cache_folder
from mirabelle.base.errors import choose
from mirabelle.base.files import content_hash, write_json
from mirabelle.base.progress import bar
from mirabelle.channels.groups import Cost, Coupling
from mirabelle.channels.surgery import remove
from mirabelle.graph.artifacts import one_sample, time_in_turn, write_artifact
from mirabelle.measurement.latency import alternate
from mirabelle.measurement.layers import ONNX_CONTRACTIONS, known_beginning
from mirabelle.measurement.machine import machine
from mirabelle.pruning.allocation import aligned
from mirabelle.pruning.kernel_blocks import FORMAT, SECONDS, Write, kernel_block, measured_before
from mirabelle.runtimes import RUNTIMES, Artifact
from mirabelle.runtimes.onnx_model import read_model

WIDTHS = (1.0, 0.75, 0.5, 0.3)
# cuts in which each group has a width of its own, drawn between the least and the whole of
# `WIDTHS`: they tell inputs from outputs
UNEVEN = 4
ROUNDS, RUNS = (
    5,
    10,
    # each cut is profiled so often, and so many calls each time: medians of means, which a call
    # that was interrupted does not move
)
PROFILED_CONTRACTIONS = {*ONNX_CONTRACTIONS, "FusedConv"}  # as ONNX Runtime rewrites them
FUSED = {
    "Relu",
    "Clip",
    "Add",
    "Mul",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Gelu",
    "Erf",
    "LeakyRelu",
    "Tanh",
    "BatchNormalization",
    "Softmax",
}
PARTS = (
    1.0,
    0.75,
    0.5,
    0.25,
    0.0,
)  # of what is missing to a whole block, what a started one takes nevertheless
TOLERANCE = 0.03
TRIES = 5

Kept = Mapping[str, int]
Removed = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds of one call, as a function of the channels kept. layers: (a, b, c) of each of
    `coupling.costs`; others: (a, c) of everything else;
    block: how many channels kernels compute together; parts: of `PARTS`, along what layers write
    and along what they sum over.
    """

    layers: np.ndarray
    others: np.ndarray
    coupling: Coupling
    block: int
    parts: tuple[float, float]

    @property
    def align(self) -> int:
        """The multiples of channels that layers are best cut to: a half of a block where writing it
        or summing over it takes clearly less than a whole one.
        """
        return self.block if min(self.parts) > 0.5 else self.block // 2

    def layer(self, number: int, kept: Mapping[str, Any]) -> Any:
        """The milliseconds of one of `coupling.costs`; an array where the width of one group is
        one.
        """
        work, width = _shares(
            self.coupling.costs[number], kept, self.coupling.channels, self.block, self.parts
        )
        a, b, c = self.layers[number]
        return a + b * work + (c + self.others[1] / len(self.layers)) * width

    def __call__(self, kept: Kept) -> float:
        return float(
            sum(self.layer(i, kept) for i in range(len(self.layers)))
            + self.others[0]
            + (0.0 if len(self.layers) else self.others[1])
        )


def _shares(
    cost: Cost,
    kept: Mapping[str, Any],
    channels: Mapping[str, int],
    block: int,
    parts: Sequence[float],
) -> tuple[Any, Any]:
    """The share of a layer's work that is left, and the mean share of its dimensions; as kernels
    compute it. One group of `kept` may have many widths: then arrays.
    """

    def computed(width: Any, part: float) -> Any:
        return part * -(-width // block) * block + (1 - part) * width

    sides = [
        computed(side.left(kept, channels), parts[side.summed])
        / computed(side.size, parts[side.summed])
        for side in cost.sides
    ]
    sides = [*sides, *[1.0] * (2 - len(sides))]
    return math.prod(sides), sum(sides) / len(sides)


def _features(coupling: Coupling, kept: Kept, block: int, parts: Sequence[float]) -> np.ndarray:
    """(layers, 3): what a, b and c are multiplied by."""
    return np.array(
        [(1.0, *_shares(cost, kept, coupling.channels, block, parts)) for cost in coupling.costs]
    ).reshape(-1, 3)


def latency_model(
    model: nn.Module,
    coupling: Coupling,
    runtime: str = "onnxruntime",
    threads: int = 1,
    form: str = "float",
    write: Write = write_artifact,
) -> LatencyModel:
    """Times the network's layers at `WIDTHS` and `UNEVEN` ones on `runtime` with a batch of one, or
    reads what was measured before on this machine.

    write: makes the files that are timed, as `write_artifact` does, of other networks with other
    inputs, too; form: what they hold, such as integers. What is measured of one form is not taken
    for another's.
    """
    adapter = choose(runtime, RUNTIMES, "runtime")
    block = kernel_block(runtime, threads, form, write)
    asked = _identity(coupling, form) | {
        "runtime": runtime,
        "version": adapter.version(),
        "threads": threads,
        "block": block,
    }
    path = cache_folder() / "latency" / f"{content_hash(asked)}.json"
    before = measured_before(
        path,
        lambda kept: LatencyModel(
            np.array(kept["layers"]).reshape(-1, 3),
            np.array(kept["others"]),
            coupling,
            block,
            _pair(kept["parts"]),
        ),
    )
    if before is not None:
        return before
    widths, times = _cuts(coupling, block // 2), []
    with bar("timing layers", len(widths)) as shown:
        for kept in widths:
            removed = {g.name: torch.arange(kept[g.name], g.channels) for g in coupling.groups}
            cut = remove(model, coupling, removed)
            with tempfile.TemporaryDirectory() as folder:
                file = write(cut, coupling.inputs, Path(folder), runtime, threads)
                times.append(_profile(file, coupling))
            shown.advance()
    parts = PARTS if adapter.profile else PARTS[:1]
    result = _model(coupling, block, parts, widths, np.array(times))
    write_json(
        path,
        {"layers": result.layers.tolist(), "others": result.others.tolist(), "parts": result.parts},
    )
    return result


def _identity(coupling: Coupling, form: str) -> dict[str, Any]:
    """What a network's times depend on, beside the runtime."""
    return {
        "format": FORMAT,
        "costs": [
            (c.macs, [(s.size, sorted(s.groups.items()), s.summed) for s in c.sides])
            for c in coupling.costs
        ],
        "shapes": sorted(coupling.shapes.items()),
        "form": form,
        "widths": (WIDTHS, UNEVEN),
        "machine": machine()["cpu"],
    }


def _pair(parts: Sequence[float]) -> tuple[float, float]:
    written, summed = (PARTS[PARTS.index(part)] for part in parts)
    return written, summed


def _cuts(coupling: Coupling, align: int) -> list[dict[str, int]]:
    """The channels that each group keeps in the cuts that are timed."""
    drawn = np.random.default_rng(0).uniform(
        min(WIDTHS), max(WIDTHS), (UNEVEN, len(coupling.groups))
    )
    shares = [*(np.full(len(coupling.groups), width) for width in WIDTHS), *drawn]
    return [
        {
            g.name: aligned(round(g.channels * float(s)), g, align, 0.0)
            for g, s in zip(coupling.groups, each, strict=True)
        }
        for each in shares
    ]


def _model(
    coupling: Coupling,
    block: int,
    choices: Sequence[float],
    widths: Sequence[Kept],
    times: np.ndarray,
) -> LatencyModel:
    """The model with those two of `choices` for its parts which leave the least of the layers'
    times unexplained: the first of several as good.

    times: (widths, layers + 1), what was measured at each of `widths`; the last is everything else.
    """
    found, layers = [], len(coupling.costs)
    for parts in product(choices, choices):
        features = np.stack(
            [_features(coupling, kept, block, parts) for kept in widths]
        )  # (widths, layers, 3)
        fitted = np.array([_fit(features[:, i], times[:, i]) for i in range(layers)]).reshape(-1, 3)
        others = _fit(
            np.stack([np.ones(len(widths)), features[:, :, 2].mean(1)], 1), times[:, layers]
        )
        left = (features * fitted).sum(2) - times[:, :layers]
        found.append(
            (float(np.square(left).sum()), LatencyModel(fitted, others, coupling, block, parts))
        )
    return min(found, key=lambda pair: pair[0])[1]


def _fit(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least squares with coefficients of at least 0: columns that come out negative are left out,
    the most negative first.
    """
    used = list(range(features.shape[1]))
    while used:
        found = np.linalg.lstsq(features[:, used], values, rcond=None)[0]
        if (found >= 0).all():
            result = np.zeros(features.shape[1])
            result[used] = found
            return result
        used.pop(int(found.argmin()))
    return np.zeros(features.shape[1])


def _profile(artifact: Artifact, coupling: Coupling) -> np.ndarray:
    """(layers + 1,) milliseconds of each of `coupling.costs`, and of everything else. Where layers
    cannot be told apart in the file, by their work.
    """
    arrays, named = one_sample(coupling.inputs)
    work = np.array([*(cost.macs for cost in coupling.costs), 0.0])
    if (
        RUNTIMES[artifact.runtime].profile is None
    ):  # the whole network's time, by the work of each layer
        given = artifact.arrays(*arrays, **named)
        total = alternate({"network": lambda: artifact.session.run(given)}, 50, seconds=SECONDS)[
            "network"
        ].p50_ms
        return total * work / max(1.0, work.sum())
    graph = read_model(artifact.files[0].parent.parent / "model.onnx", weights=False).graph
    owner, count = _owners(graph)
    told_apart = count == len(coupling.costs)
    found = np.zeros((ROUNDS, len(work)))
    for row in found:
        for layer in artifact.profile(*arrays, runs=RUNS, **named):
            name = known_beginning(layer.name, owner) if told_apart else None
            row[owner[name] if name else -1] += layer.milliseconds
    layers = np.median(found, axis=0)
    return layers if told_apart else layers.sum() * work / max(1.0, work.sum())


def _owners(graph: Any) -> tuple[dict[str, int], int]:
    """The contraction, by its number in the file, that each name of a node or value belongs to: its
    own, and those of what runtimes fuse after it.
    """
    nodes = list(graph.node)
    readers: dict[str, list] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    owner: dict[str, int] = {}
    contractions = [n for n in nodes if n.op_type in PROFILED_CONTRACTIONS]
    for number, node in enumerate(contractions):
        here = node
        while True:
            for name in (here.name, here.output[0]):
                owner.setdefault(name, number)
            after = readers.get(here.output[0], [])
            if len(after) != 1 or after[0].op_type not in FUSED:
                break
            here = after[0]
    return owner, len(contractions)


def latency_share(
    model: nn.Module, small: nn.Module, inputs: Batch, runtime: str, threads: int = 1
) -> float:
    """What `small` takes of the milliseconds of `model` for one sample; the two alternate in one
    run on one core.
    """
    with tempfile.TemporaryDirectory() as temporary:
        whole = write_artifact(model, inputs, Path(temporary) / "whole", runtime, threads)
        return _share(
            whole,
            write_artifact(small, inputs, Path(temporary) / "small", runtime, threads),
            inputs,
        )


def _share(whole: Artifact, small: Artifact, inputs: Batch) -> float:
    times = time_in_turn({"whole": whole, "small": small}, inputs, SECONDS)
    return times["small"].p50_ms / times["whole"].p50_ms


def until_measured(
    model: nn.Module,
    coupling: Coupling,
    fraction: float,
    cut: Callable[[float], tuple[nn.Module, Removed]],
    runtime: str,
    threads: int = 1,
) -> tuple[nn.Module, Removed]:
    """Cuts until the measured latency is `fraction` of the original's, within `TOLERANCE`: the cut
    that came nearest.

    cut: share of the predicted latency -> network, and what was removed. Original and cut alternate
    in one run on one core.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole = write_artifact(model, coupling.inputs, folder / "whole", runtime, threads)
        low, high, asked = 0.0, 2.0, fraction
        best: tuple[float, tuple[nn.Module, Removed]] | None = None
        for step in range(TRIES):
            made = cut(asked)
            artifact = write_artifact(
                made[0], coupling.inputs, folder / str(step), runtime, threads
            )
            share = _share(whole, artifact, coupling.inputs)
            if best is None or abs(share - fraction) < abs(best[0] - fraction):
                best = (share, made)
            if abs(share / fraction - 1) <= TOLERANCE:
                break
            low, high = (max(low, asked), high) if share < fraction else (low, min(high, asked))
            guess = asked * fraction / share
            asked = guess if low < guess < high else (low + high) / 2
        assert best is not None
        return best[1]
