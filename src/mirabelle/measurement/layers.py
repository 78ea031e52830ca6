"""Which layer of a network a runtime's node is: runtimes fuse nodes and name what they made after
one of them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mirabelle.runtimes.artifact import Artifact, LayerTime
from mirabelle.runtimes.onnx_model import read_model

ONNX_CONTRACTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What a runtime may fuse behind a layer of weights.
FOLLOWERS = (
    "Relu",
    "Clip",
    "Add",
    "BatchNormalization",
    "LeakyRelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Mul",
)


@lru_cache(maxsize=16)
def _onnx_names(path: Path, changed: float) -> dict[str, str]:
    """Every name of a node or of its output -> the name of the layer that it belongs to: the
    contraction that it follows, or the node itself.
    """
    graph = read_model(path, weights=False).graph
    makers = {o: n for n in graph.node for o in n.output}

    def own(node: Any) -> str:
        return node.name or node.output[0]

    def layer(node: Any) -> str:
        start = node
        while node.op_type in FOLLOWERS:
            before = [
                makers[i]
                for i in node.input
                if i in makers and makers[i].op_type in (*FOLLOWERS, *ONNX_CONTRACTIONS)
            ]
            if not before:
                break
            node = before[0]
        return own(node if node.op_type in ONNX_CONTRACTIONS else start)

    found: dict[str, str] = {}
    for node in graph.node:
        name = layer(node)
        for alias in (*node.output, node.name):
            if alias:
                found[alias] = name
    return found


def layer_names(artifact: Artifact) -> dict[str, str]:
    """For ONNX files, every name in the file -> its layer's; {} for files that runtimes report on
    by the names of layers.
    """
    return (
        _onnx_names(artifact.path, artifact.path.stat().st_mtime)
        if artifact.path.suffix == ".onnx"
        else {}
    )


def known_beginning(name: str, names: Container[str]) -> str:
    """The longest beginning of a runtime's name for a node that the file knows, as runtimes append
    to names; '' where there is none.
    """
    return next((name[:end] for end in range(len(name), 0, -1) if name[:end] in names), "")


def attribute(times: Iterable[LayerTime], names: dict[str, str]) -> list[tuple[str, LayerTime]]:
    """Each executed node with the layer that it is: `layer1.0.conv1` for
    `layer1.0.conv1/Conv_token_4`; a node that belongs to none keeps its own name.
    """
    found = []
    for time in times:
        name = names.get(known_beginning(time.name, names), time.name)
        base, slash, operator = name.partition("/")
        if slash and operator.partition("/")[0].partition("_")[0] in ONNX_CONTRACTIONS:
            name = base
        found.append((name, time))
    return found


@dataclass(frozen=True)
class LayerRow:
    """One layer in two files. before_ms, after_ms: of all nodes that belong to it; 0 where a file
    has none. int8: whether the second file's layer reads 8-bit integers; None where the runtime
    does not say. operators: what the runtime executes for it in the second file.
    """

    layer: str
    before_ms: float
    after_ms: float
    int8: bool | None
    operators: tuple[str, ...]

    @property
    def loss_ms(self) -> float:
        return self.after_ms - self.before_ms


# Nodes of a quantized file that no layer of the float file stands for, by what they do.
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "Convert", "Cast")
LAYOUTS = ("Transpose", "Reorder", "ReorderInput", "ReorderOutput", "ToNchw", "ToNhwc")
BETWEEN = "(between integers and floats)"
LAYOUT = "(memory layout)"


def _is_layer(time: LayerTime) -> bool:
    kind = time.operator.lower()
    return any(word in kind for word in ("conv", "gemm", "matmul", "fullyconnected"))


def compare_layers(
    before: Artifact, after: Artifact, *arrays: Any, runs: int = 20, **named: Any
) -> list[LayerRow]:
    """Milliseconds of each layer in a float file and in its quantized one, from the runtime's
    profiler; see `pair_layers`.

    Raises `InputError` where a runtime has no profiler.
    """
    one, other = (
        attribute(a.profile(*arrays, runs=runs, **named), layer_names(a)) for a in (before, after)
    )
    return pair_layers(one, other)


def pair_layers(
    before: Iterable[tuple[str, LayerTime]], after: Iterable[tuple[str, LayerTime]]
) -> list[LayerRow]:
    """Two files' nodes, each with its layer as `attribute` gives it, layer by layer: the layers of
    weights in the order of the second file, then what else each operator takes. Nodes that convert
    between integers and floats, or change the layout of memory, are rows of their own.
    """
    sides: list[dict[str, list[LayerTime]]] = []
    for times in (before, after):
        rows: dict[str, list[LayerTime]] = {}
        for name, time in times:
            rows.setdefault(name if _is_layer(time) else _kind(time), []).append(time)
        sides.append(rows)
    order = sorted(dict.fromkeys([*sides[1], *sides[0]]), key=lambda name: name.startswith("("))
    found = []
    for name in order:
        one, other = (side.get(name, []) for side in sides)
        flags = [t.int8 for t in other if t.int8 is not None]
        found.append(
            LayerRow(
                name,
                sum(t.milliseconds for t in one),
                sum(t.milliseconds for t in other),
                any(flags) if flags else None,
                tuple(dict.fromkeys(t.operator for t in other)),
            )
        )
    return found


def _kind(time: LayerTime) -> str:
    """The row of a node that is no layer of weights."""
    if time.operator in CONVERSIONS:
        return BETWEEN
    return LAYOUT if time.operator in LAYOUTS else f"({time.operator.removeprefix('QLinear')})"


def advice_of(row: LayerRow) -> str:
    """What to do about one layer of a quantized file; empty where nothing is to be done."""
    if row.layer.startswith("("):
        return ""
    if row.int8 is False and row.operators:
        return "runs in float: this runtime has no integer kernel for it, or it was kept"
    if row.int8 and row.before_ms > 0 and row.after_ms > 1.05 * row.before_ms:
        return f"slower as integers: quantize with keep=[{row.layer!r}]"
    return ""


def advice(rows: list[LayerRow], speedup: float | None = None) -> list[str]:
    """What to do about a quantized file, in sentences: layers that fell back to float, layers that
    lose, what conversions cost. Nothing where nothing is to be done.
    """
    layers = [r for r in rows if not r.layer.startswith("(")]
    total = sum(r.after_ms for r in rows) or 1.0
    said = []
    if fallen := [r.layer for r in layers if r.int8 is False and r.operators]:
        said.append(f"{len(fallen)} of {len(layers)} layers run in float: {_listed(fallen)}")
    losing = [r for r in layers if r.int8 and r.before_ms > 0 and r.after_ms > 1.05 * r.before_ms]
    if losing and sum(r.loss_ms for r in losing) > 0.02 * total:
        lost = sum(r.loss_ms for r in losing)
        are = "s are" if len(losing) > 1 else " is"
        said.append(
            f"{len(losing)} layer{are} slower as integers, by {lost:.3f} ms together: quantize "
            f"with keep=[...] for {_listed([r.layer for r in losing])}"
        )
    by_name = {r.layer: r for r in rows}
    if BETWEEN in by_name and by_name[BETWEEN].after_ms > 0.1 * total:
        floats = sorted(
            (
                r
                for r in rows
                if r.layer.startswith("(") and r.layer not in (BETWEEN, LAYOUT) and r.int8 is False
            ),
            key=lambda r: -r.after_ms,
        )
        around = (
            f" around {_listed([r.layer.strip('()') for r in floats])}, which has no integer kernel"
            if floats
            else ""
        )
        said.append(
            "converting between integers and floats takes "
            f"{100 * by_name[BETWEEN].after_ms / total:.0f} % of the time{around}"
        )
    if said and speedup is not None and speedup < 1:
        said.append(
            "it is slower than in float: quantize with placement='fastest', which leaves in "
            "float what loses there"
        )
    return said


def _listed(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
