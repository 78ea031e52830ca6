"""Placement by measured time: layers that a runtime computes faster in float stay there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import fx, nn

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.base.progress import bar
from mirabelle.graph.artifacts import one_sample, time_in_turn, write_artifact
from mirabelle.graph.capture import sample_elements
from mirabelle.measurement.latency import speedup
from mirabelle.measurement.layers import BETWEEN, LayerRow, compare_layers
from mirabelle.onnx_files.source import source_of
from mirabelle.onnx_files.write import fold_pads, save_onnx
from mirabelle.quantization.forms.onnx_file import spliced
from mirabelle.quantization.forms.pt2e import to_pt2e
from mirabelle.quantization.forms.qdq import with_integers
from mirabelle.quantization.simulation.calibrated import Calibrated
from mirabelle.quantization.simulation.description import Timing, quantization
from mirabelle.quantization.simulation.operators import weight_name
from mirabelle.quantization.simulation.placement import contractions, integer_nodes, place
from mirabelle.quantization.targets import TARGETS
from mirabelle.runtimes import RUNTIMES, Artifact

SECONDS = 4.0
FINEST = 4  # placements tried between none and all of the chains in float


def file_of(network: nn.Module, example: Batch, folder: Path, runtime: str) -> Artifact:
    """The network, float or quantized, as a file of `runtime` with one thread, for one sample: to
    be timed.
    """
    described, source = quantization(network), source_of(network)
    if source is not None and isinstance(network, fx.GraphModule):
        proto = (
            spliced(network)[0]
            if described is not None
            else type(source.proto).FromString(source.proto.SerializeToString())
        )
        fold_pads(proto)
        save_onnx(proto, folder / "model.onnx")
        save = RUNTIMES[runtime].save
        if save is None:
            raise InputError(
                f"files for {runtime} are made from networks, not from ONNX files; time this "
                "one on another runtime"
            )
        return Artifact(save(folder / "model.onnx", folder / runtime), runtime, 1)
    if described is None or not isinstance(network, fx.GraphModule):
        return write_artifact(network, example, folder, runtime)
    stored, sites = (
        with_integers(network) if RUNTIMES[runtime].convert is None else to_pt2e(network)
    )
    return write_artifact(stored, example, folder, runtime, sites=sites)


def milliseconds(
    networks: Mapping[str, nn.Module], example: Batch, runtime: str
) -> dict[str, float]:
    """The median milliseconds of one call with one sample, on one thread, of each network's file;
    timed in turn.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {
            n: file_of(m, example, Path(folder) / str(i), runtime)
            for i, (n, m) in enumerate(networks.items())
        }
        return {n: t.p50_ms for n, t in time_in_turn(files, example, SECONDS).items()}


@dataclass(frozen=True)
class Chain:
    """Layers that hand integers to one another, without a float between them. weights: their
    parameters. elements: how many values of one sample are converted to integers before them or to
    floats behind them.
    """

    weights: tuple[str, ...]
    elements: int


def chains(graph: fx.Graph, sites: Sequence, keep: Sequence[str] = ()) -> list[Chain]:
    """The quantized layers in chains, in the order of execution."""
    integer = integer_nodes(graph, sites, keep)
    parent = {n: n for n in integer}

    def root(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    elements = sample_elements(graph)
    crossing: dict[fx.Node, int] = dict.fromkeys(integer, 0)
    for node in graph.nodes:
        if node in integer:
            for before in node.all_input_nodes:
                if before in integer:
                    parent[root(node)] = root(before)
                elif before.op != "get_attr":
                    crossing[node] += elements(before)
            if any(reader not in integer for reader in node.users):
                crossing[node] += elements(node)
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if node in integer:
            members.setdefault(root(node), []).append(node)
    layers = set(contractions(graph, keep))
    found = []
    for nodes in members.values():
        weights = tuple(dict.fromkeys(weight_name(n) for n in nodes if n in layers))
        if weights:
            found.append(Chain(weights, sum(crossing[n] for n in nodes)))
    return found


def fastest(model: nn.Module, calibrated: Calibrated, example: Batch, runtime: str) -> Timing:
    """The placement that is fastest on `runtime`, with one sample on one thread: which layers stay
    in float.

    Both files, in float and with all layers quantized, are profiled. A chain's loss is what its
    layers and the conversions around it take above its layers in float. The
    chains that lose most stay in float: as many as turn out fastest in whole files, timed in turn
    with the float file. Single layers that lose are tried as well.
    Raises `InputError` where nothing is faster than float.
    """
    network, described = calibrated.network, calibrated.described
    sites = place(network.graph, described.keep, TARGETS[described.target])
    found = chains(network.graph, sites, described.keep)
    names = {w: w.rpartition(".")[0] or w for c in found for w in c.weights}
    with tempfile.TemporaryDirectory() as folder, bar("placing by time", FINEST + 2) as shown:
        trials = _Trials(model, calibrated, example, runtime, Path(folder))
        for keep in _worth_timing(found, names, trials.layers()):
            if keep not in trials.found and set(keep) != set(names):
                trials.time(keep)
                shown.advance()
    tried = trials.found
    best = min(tried, key=lambda k: (tried[k]["ratio"], len(k)))
    if tried[best]["ratio"] > 1.0:
        raise InputError(
            f"of {len(tried)} placements none is faster than float on {runtime}: the best takes "
            f"{tried[best]['ratio']:.2f} of its time; "
            "leave this network in float on this machine, or quantize it for its size with "
            "placement='all'"
        )
    milliseconds = {
        "float": tried[best]["float"],
        "all_quantized": tried[()]["placed"],
        "placed": tried[best]["placed"],
    }
    return Timing(runtime, milliseconds, tuple(best), len(tried))


class _Trials:
    """Files of placements, each timed in turn with the float one. found: by the weights that stay
    in float, the milliseconds of both and the share of float's time.
    """

    def __init__(
        self, model: nn.Module, calibrated: Calibrated, example: Batch, runtime: str, folder: Path
    ):
        self.calibrated, self.example, self.runtime = calibrated, example, runtime
        self.folder = folder
        self.base = file_of(model, example, folder / "float", runtime)
        self.whole = file_of(calibrated.quantized(), example, folder / "all", runtime)
        self.found: dict[tuple[str, ...], dict[str, float]] = {}

    def layers(self) -> dict[str, LayerRow]:
        """By layer, what it takes in float and with everything quantized."""
        arrays, named = one_sample(self.example)
        return {r.layer: r for r in compare_layers(self.base, self.whole, *arrays, **named)}

    def time(self, keep: tuple[str, ...]) -> None:
        file = self.whole
        if keep:
            network = self.calibrated.quantized(keep)
            folder = self.folder / str(len(self.found))
            file = file_of(network, self.example, folder, self.runtime)
        times = time_in_turn({"float": self.base, "placed": file}, self.example, SECONDS)
        self.found[keep] = {
            "float": times["float"].p50_ms,
            "placed": times["placed"].p50_ms,
            "ratio": 1 / speedup(times["float"], times["placed"]).value,
        }


def _worth_timing(
    found: Sequence[Chain], names: Mapping[str, str], rows: Mapping[str, LayerRow]
) -> list[tuple[str, ...]]:
    """The placements to be timed, by the weights that stay in float: none, the single layers that
    lose, and so many of the chains that lose most. names: the layer of each weight, in the order
    of execution.
    """
    between = (
        rows[BETWEEN].after_ms / max(1, sum(c.elements for c in found)) if BETWEEN in rows else 0.0
    )
    loss = {w: rows[n].loss_ms if n in rows else 0.0 for w, n in names.items()}
    before = {w: rows[n].before_ms if n in rows else 0.0 for w, n in names.items()}
    scores = {c: sum(loss[w] for w in c.weights) + between * c.elements for c in found}
    order = sorted(found, key=scores.__getitem__, reverse=True)
    losers = sum(scores[c] > 0 for c in found)
    single = tuple(w for w in names if loss[w] > 0.05 * max(before[w], 1e-6))
    result = [(), single]
    for count in dict.fromkeys((losers, losers // 2, (losers + len(order)) // 2, len(order) - 1)):
        chosen = {w for c in order[:count] for w in c.weights}
        result.append(tuple(w for w in names if w in chosen))
    return result
