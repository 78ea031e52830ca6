"""What channels cost in milliseconds: the network's own layers, timed at several widths on the runtime that it will run on.

The network is cut uniformly to a few widths, and each cut runs on the runtime with its profiler on (without one, a layer's share of the time is
its share of the work). A layer's time is fitted over the widths as

    t = a + b * (share of its inputs left * share of its outputs left) + c * (mean of the two shares),   a, b, c >= 0

work, memory traffic and overhead; what is no layer (pools, activations that are not fused) is fitted together as one. Kernels compute channels in blocks, and
take as long for one channel of a block as for all, or not much less: so shares are of widths rounded up to whole blocks, or between these and the widths themselves. How wide
blocks are is measured, too (`kernel_block`), and how much a part of one takes is what fits the network's own layers best.
The fit is kept in the cache folder under the machine, the runtime's version and the network's structure. What the fit predicts only decides how channels are spread over
layers: `until_measured` then measures the real networks and corrects the budget.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from mirabelle.data import Batch, cache_folder
from mirabelle.errors import choose
from mirabelle.files import content_hash, read_json, write_json
from mirabelle.graph.artifacts import one_sample, time_in_turn, write_artifact
from mirabelle.graph.groups import Coupling
from mirabelle.graph.surgery import remove
from mirabelle.measure.latency import alternate
from mirabelle.measure.layers import known_beginning
from mirabelle.measure.machine import machine
from mirabelle.progress import bar
from mirabelle.prune.allocate import aligned
from mirabelle.runtimes import RUNTIMES, Artifact

WIDTHS = (1.0, 0.75, 0.5, 0.3)
CONTRACTIONS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv"}
FUSED = {"Relu", "Clip", "Add", "Mul", "Sigmoid", "HardSigmoid", "HardSwish", "Gelu", "Erf", "LeakyRelu", "Tanh", "BatchNormalization", "Softmax"}
BLOCKS = (32, 16, 8, 4)  # widest first
PARTS = (1.0, 0.75, 0.5, 0.25, 0.0)  # of what is missing to a whole block, what a started one takes nevertheless
FORMAT = 3  # of what is kept in the cache; counted up where the same measurements would now give another result
TOLERANCE = 0.03
TRIES = 5
SECONDS = 3.0

Kept = Mapping[str, int]
Removed = Mapping[str, torch.Tensor]
Found = TypeVar("Found")


@dataclass(frozen=True)
class LatencyModel:
    """Milliseconds of one call, as a function of the channels kept. layers: (a, b, c) of each of `coupling.costs`; others: (a, c) of everything else;
    block: how many channels kernels compute together; part: one of `PARTS`."""

    layers: np.ndarray
    others: np.ndarray
    coupling: Coupling
    block: int
    part: float

    @property
    def align(self) -> int:
        """The multiples of channels that layers are best cut to: a half of a block where that takes clearly less than a whole one."""
        return self.block if self.part > 0.5 else self.block // 2

    def __call__(self, kept: Kept) -> float:
        features = _features(self.coupling, kept, self.block, self.part)
        width = float(features[:, 2].mean()) if len(features) else 1.0
        return float((features * self.layers).sum() + self.others[0] + self.others[1] * width)


def _shares(coupling: Coupling, kept: Kept, block: int, part: float) -> np.ndarray:
    """(layers, 2): the share of each layer's work that is left, and the mean share of its dimensions; as kernels compute it."""
    channels = {g.name: g.channels for g in coupling.groups}

    def computed(width: int) -> float:
        return part * -(-width // block) * block + (1 - part) * width

    rows = []
    for cost in coupling.costs:
        sides = []
        for size, groups in cost.sides:
            left = size - sum((channels[g] - kept.get(g, channels[g])) * count for g, count in groups.items())
            sides.append(computed(left) / computed(size))
        sides = [*sides, *[1.0] * (2 - len(sides))]
        rows.append((float(np.prod(sides)), float(np.mean(sides))))
    return np.array(rows).reshape(-1, 2)


def _features(coupling: Coupling, kept: Kept, block: int, part: float) -> np.ndarray:
    """(layers, 3): what a, b and c are multiplied by."""
    return np.insert(_shares(coupling, kept, block, part), 0, 1.0, axis=1)


def _measured_before(path: Path, read: Callable[[Any], Found]) -> Found | None:
    """What `read` makes of a file of the cache; None where there is none, or it is damaged: then it is measured again."""
    if not path.is_file():
        return None
    try:
        return read(read_json(path))
    except (ValueError, KeyError, TypeError):
        return None


def kernel_block(runtime: str = "onnxruntime", threads: int = 1) -> int:
    """How many channels the kernels of `runtime` compute together on this machine, of `BLOCKS`: found by timing a small network, or read from the cache."""
    adapter = choose(runtime, RUNTIMES, "runtime")
    known = {"format": FORMAT, "runtime": runtime, "version": adapter.version(), "threads": threads, "blocks": BLOCKS, "machine": machine()["cpu"]}
    path = cache_folder() / "latency" / f"block-{content_hash(known)}.json"
    if (found := _measured_before(path, lambda kept: BLOCKS[BLOCKS.index(kept["block"])])) is not None:
        return found
    inputs = Batch((torch.zeros(1, 32, 28, 28),), {}, None)
    widths = sorted({w for b in BLOCKS for w in _probed(b)})
    with tempfile.TemporaryDirectory() as folder, bar("timing kernels", len(widths)) as shown:
        files = {}
        for width in widths:
            network = nn.Sequential(nn.Conv2d(32, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 32, 3, padding=1))
            files[str(width)] = write_artifact(network, inputs, Path(folder) / str(width), runtime, threads)
            shown.advance()
        times = time_in_turn(files, inputs, SECONDS)
    block = widest_block({w: times[str(w)].p50_ms for w in widths})
    write_json(path, {"block": block})
    return block


def _probed(block: int) -> tuple[int, int]:
    """Two widths of which the first takes as long as the second where kernels have blocks of this width, and at most three quarters of it where they are narrower."""
    return block + 4, 2 * block


def widest_block(milliseconds: Mapping[int, float]) -> int:
    """The widest of `BLOCKS` of which a part takes as long as the whole. milliseconds: by width, of all that `_probed` gives."""
    for block in BLOCKS[:-1]:
        part, whole = _probed(block)
        if milliseconds[part] / milliseconds[whole] > (1 + 3 / 4) / 2:
            return block
    return BLOCKS[-1]


def latency_model(model: nn.Module, coupling: Coupling, runtime: str = "onnxruntime", threads: int = 1) -> LatencyModel:
    """Times the network's layers at `WIDTHS` on `runtime` with a batch of one, or reads what was measured before on this machine."""
    adapter, block = choose(runtime, RUNTIMES, "runtime"), kernel_block(runtime, threads)
    known = {
        "format": FORMAT, "costs": [(c.macs, [(n, sorted(g.items())) for n, g in c.sides]) for c in coupling.costs], "shapes": sorted(coupling.shapes.items()),
        "runtime": runtime, "version": adapter.version(), "threads": threads, "widths": WIDTHS, "block": block, "machine": machine()["cpu"],
    }  # fmt: skip
    path = cache_folder() / "latency" / f"{content_hash(known)}.json"
    before = _measured_before(
        path,
        lambda kept: LatencyModel(
            np.array(kept["layers"]).reshape(-1, 3), np.array(kept["others"]), coupling, block, PARTS[PARTS.index(kept["part"])]
        ),
    )
    if before is not None:
        return before
    widths, times, rest = [], [], []
    with bar("timing layers", len(WIDTHS)) as shown:
        for width in WIDTHS:
            kept = {g.name: aligned(round(g.channels * width), g, block // 2, 0.0) for g in coupling.groups}
            removed = {g.name: torch.arange(kept[g.name], g.channels) for g in coupling.groups}
            with tempfile.TemporaryDirectory() as folder:
                layers, other = _profile(write_artifact(remove(model, coupling, removed), coupling.inputs, Path(folder), runtime, threads), coupling)
            widths.append(kept)
            times.append(layers)
            rest.append(other)
            shown.advance()
    result = _model(coupling, block, PARTS if adapter.profile else PARTS[:1], widths, np.array(times), np.array(rest))
    write_json(path, {"layers": result.layers.tolist(), "others": result.others.tolist(), "part": result.part})
    return result


def _model(coupling: Coupling, block: int, parts: Sequence[float], widths: Sequence[Kept], times: np.ndarray, rest: np.ndarray) -> LatencyModel:
    """The model with that of `parts` which leaves the least of the layers' times unexplained, each in proportion to itself: the first of several as good.

    times: (widths, layers) and rest: (widths,), what was measured at each of `widths`.
    """
    found, ones = [], np.ones(len(widths))
    for part in parts:
        features = np.stack([_features(coupling, kept, block, part) for kept in widths])  # (widths, layers, 3)
        fitted = np.array([_fit(features[:, i], times[:, i]) for i in range(len(coupling.costs))]).reshape(-1, 3)
        others = _fit(np.stack([ones, features[:, :, 2].mean(1)], 1), rest)
        left = ((features * fitted).sum(2) - times) / np.maximum(times, 1e-9)
        found.append((float(np.square(left).sum()), LatencyModel(fitted, others, coupling, block, part)))
    return min(found, key=lambda pair: pair[0])[1]


def _fit(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Least squares with coefficients of at least 0: columns that come out negative are left out, the most negative first."""
    used = list(range(features.shape[1]))
    while used:
        found = np.linalg.lstsq(features[:, used], values, rcond=None)[0]
        if (found >= 0).all():
            result = np.zeros(features.shape[1])
            result[used] = found
            return result
        used.pop(int(found.argmin()))
    return np.zeros(features.shape[1])


def _profile(artifact: Artifact, coupling: Coupling) -> tuple[np.ndarray, float]:
    """(layers,) milliseconds of each of `coupling.costs`, and those of everything else. Where layers cannot be told apart in the file, by their work."""
    import onnx

    arrays, named = one_sample(coupling.inputs)
    work = np.array([cost.macs for cost in coupling.costs])
    if RUNTIMES[artifact.runtime].profile is None:  # the whole network's time, by the work of each layer
        given = artifact.arrays(*arrays, **named)
        total = alternate({"network": lambda: artifact.session.run(given)}, 50, seconds=SECONDS)["network"].p50_ms
        return total * work / max(1.0, work.sum()), 0.0
    seen = artifact.profile(*arrays, runs=30, **named)
    total = sum(layer.milliseconds for layer in seen)
    graph = onnx.load(artifact.files[0].parent.parent / "model.onnx", load_external_data=False).graph
    owner, count = _owners(graph)
    if count != len(work):
        return total * work / max(1.0, work.sum()), 0.0
    layers = np.zeros(count)
    for layer in seen:
        if name := known_beginning(layer.name, owner):
            layers[owner[name]] += layer.milliseconds
    return layers, total - float(layers.sum())


def _owners(graph: object) -> tuple[dict[str, int], int]:
    """The contraction, by its number in the file, that each name of a node or value belongs to: its own, and those of what runtimes fuse behind it."""
    nodes = list(graph.node)  # type: ignore[attr-defined]
    readers: dict[str, list] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    owner: dict[str, int] = {}
    contractions = [n for n in nodes if n.op_type in CONTRACTIONS]
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


def latency_share(model: nn.Module, small: nn.Module, inputs: Batch, runtime: str, threads: int = 1) -> float:
    """What `small` takes of the milliseconds of `model` for one sample; the two alternate in one run on one core."""
    with tempfile.TemporaryDirectory() as temporary:
        whole = write_artifact(model, inputs, Path(temporary) / "whole", runtime, threads)
        return _share(whole, write_artifact(small, inputs, Path(temporary) / "small", runtime, threads), inputs)


def _share(whole: Artifact, small: Artifact, inputs: Batch) -> float:
    times = time_in_turn({"whole": whole, "small": small}, inputs, SECONDS)
    return times["small"].p50_ms / times["whole"].p50_ms


def until_measured(
    model: nn.Module, coupling: Coupling, fraction: float, cut: Callable[[float], tuple[nn.Module, Removed]], runtime: str, threads: int = 1
) -> tuple[nn.Module, Removed]:
    """Cuts until the measured latency is `fraction` of the original's, within `TOLERANCE`: the cut that came nearest.

    cut: share of the predicted latency -> network, and what was removed. Original and cut alternate in one run on one core.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole = write_artifact(model, coupling.inputs, folder / "whole", runtime, threads)
        low, high, asked = 0.0, 2.0, fraction
        best: tuple[float, tuple[nn.Module, Removed]] | None = None
        for step in range(TRIES):
            made = cut(asked)
            artifact = write_artifact(made[0], coupling.inputs, folder / str(step), runtime, threads)
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
