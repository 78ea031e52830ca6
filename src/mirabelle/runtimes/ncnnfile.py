"""ncnn's files as lists that can be edited: a text of layers, and their weights one behind the
other. How its integer layers are written.

ncnn's scales are the inverse of everybody's: q = round(x * scale). Its integers have no zero point
and lie in [-127, 127].
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mirabelle.base.errors import CaptureError, InputError

MAGIC = "7767517"
INT8_TAG = 0x000D4B38
INTEGERS = "_integers"  # at the end of the names of outputs that are int8
# Convolutions and linear layers: the parameters that hold the number of weights, of outputs (that
# of biases), and whether there are biases.
CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise")
COUNTS = dict.fromkeys(
    (
        *CONVOLUTIONS,
        "Convolution1D",
        "ConvolutionDepthWise1D",
        "Deconvolution",
        "DeconvolutionDepthWise",
        "Deconvolution1D",
    ),
    (6, 0, 5),
) | {"InnerProduct": (2, 0, 1)}
BIAS, OUTPUTS, GROUPS, INT8 = 5, 0, 7, 8


@dataclass
class NcnnLayer:
    """One line of the text. blobs: its weights, each with the tag that says how they are stored, or
    None for those that have no tag.
    """

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    parameters: dict[int, str]
    blobs: list[tuple[int | None, np.ndarray]] = field(default_factory=list)

    def number(self, key: int, default: int = 0) -> int:
        return int(float(self.parameters.get(key, default)))


class Grids(NamedTuple):
    """sites: name and scale of each quantized value, in order. weights: the integers and scales of
    stored weights by the bytes of their floats.
    """

    sites: list[tuple[str, float]]
    weights: dict[bytes, tuple[np.ndarray, np.ndarray]]


def read_graph(path: Path) -> list[NcnnLayer]:
    """The layers of a .param file. `InputError` where it is none."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    layers = []
    try:
        if lines[0].strip() != MAGIC:
            raise ValueError("its first line is not ncnn's number")
        for line in lines[2:]:
            kind, name, inputs, outputs, *rest = line.split()
            ends = int(inputs) + int(outputs)
            pairs = (p.split("=", 1) for p in rest[ends:])
            layers.append(
                NcnnLayer(
                    kind,
                    name,
                    rest[: int(inputs)],
                    rest[int(inputs) : ends],
                    {int(k): v for k, v in pairs if k.lstrip("-").isdigit()},
                )
            )
        if len(layers) != int(lines[1].split()[0]):
            raise ValueError(f"it has {len(layers)} layers of {lines[1].split()[0]}")
    except (ValueError, IndexError) as error:
        raise InputError(
            f"{path} is not a graph of ncnn ({error}); it was damaged or written by something else"
        ) from None
    return layers


def text(layers: Sequence[NcnnLayer]) -> str:
    blobs = {o for layer in layers for o in layer.outputs}
    lines = [MAGIC, f"{len(layers)} {len(blobs)}"]
    for layer in layers:
        words = [
            layer.kind,
            layer.name,
            str(len(layer.inputs)),
            str(len(layer.outputs)),
            *layer.inputs,
            *layer.outputs,
        ]
        lines.append(" ".join([*words, *(f"{k}={v}" for k, v in layer.parameters.items())]))
    return "\n".join(lines) + "\n"


def outputs(layers: Sequence[NcnnLayer]) -> list[str]:
    """The blobs that no layer reads: `output`, `output1`, ... in this order, then the others."""
    read = {i for layer in layers for i in layer.inputs}
    found = [o for layer in layers for o in layer.outputs if o not in read]
    own = sorted((o for o in found if re.fullmatch(r"output\d*", o)), key=lambda o: int(o[6:] or 0))
    return own + [o for o in found if o not in own]


def grids(proto: Any) -> Grids:
    """What an ONNX file in Q/DQ form says of its integers. `InputError` where they have zero
    points, which ncnn does not know.
    """
    from onnx import numpy_helper

    values = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    sites, weights = [], {}
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = values[node.input[2]] if len(node.input) > 2 else np.uint8(0)
            if int(zero) != (128 if zero.dtype == np.uint8 else 0):
                name = node.output[0].removesuffix("_quantized")
                raise InputError(
                    f"ncnn's integers have no zero point, and the grid of {name!r} has one "
                    f"({int(zero)} in {zero.dtype}); "
                    'quantize with target="symmetric" for ncnn'
                )
            sites.append((node.output[0], float(values[node.input[1]])))
        elif (
            node.op_type == "DequantizeLinear"
            and node.input[0] in values
            and values[node.input[0]].dtype == np.int8
        ):
            integers, scales = (
                values[node.input[0]],
                np.atleast_1d(values[node.input[1]]).astype(np.float32),
            )
            floats = integers.astype(np.float32) * scales.reshape(-1, *[1] * (integers.ndim - 1))
            weights[floats.tobytes()] = (integers, np.broadcast_to(scales, len(integers)).copy())
    return Grids(sites, weights)


def finish(
    layers: list[NcnnLayer], weights: bytes, names: list[str], shapes: list[list[int]], found: Grids
) -> tuple[str, bytes]:
    """The text and the weights of what pnnx wrote, inputs under the network's own names, with
    integer layers where there are grids.
    """
    layers = without_splits(layers)
    ends = {f"in{i}": name for i, name in enumerate(names)} | {
        f"out{i}": f"output{i or ''}" for i in range(len(layers))
    }
    for layer in layers:
        layer.inputs, layer.outputs = (
            [ends.get(i, i) for i in layer.inputs],
            [ends.get(o, o) for o in layer.outputs],
        )
        if layer.kind == "Input":
            sizes = reversed(shapes[names.index(layer.outputs[0])][1:])
            layer.parameters = {i: str(s) for i, s in enumerate(sizes)}
    if found.sites:
        _read_blobs(layers, weights)
        layers = _integers(layers, found, set(ends.values()))
        weights = b"".join(_bytes(tag, values) for layer in layers for tag, values in layer.blobs)
    return text(with_splits(layers)), weights


def without_splits(layers: list[NcnnLayer]) -> list[NcnnLayer]:
    origin: dict[str, str] = {}
    for layer in layers:
        layer.inputs = [origin.get(i, i) for i in layer.inputs]
        if layer.kind == "Split":
            origin |= dict.fromkeys(layer.outputs, layer.inputs[0])
    return [layer for layer in layers if layer.kind != "Split"]


def with_splits(layers: Sequence[NcnnLayer]) -> list[NcnnLayer]:
    """A copy after each blob for every layer that reads it, where there are several: ncnn has one
    reader for a blob.
    """
    readers: dict[str, list[tuple[int, int]]] = {}
    for i, layer in enumerate(layers):
        for j, name in enumerate(layer.inputs):
            readers.setdefault(name, []).append((i, j))
    inputs = [list(layer.inputs) for layer in layers]
    result = []
    for i, layer in enumerate(layers):
        result.append(
            NcnnLayer(
                layer.kind, layer.name, inputs[i], layer.outputs, layer.parameters, layer.blobs
            )
        )
        for name in layer.outputs:
            if len(places := readers.get(name, [])) > 1:
                copies = [f"{name}_{k}" for k in range(len(places))]
                result.append(NcnnLayer("Split", f"split_{name}", [name], copies, {}))
                for copy, (reader, place) in zip(copies, places):
                    inputs[reader][place] = copy
    return result


def _read_blobs(layers: Sequence[NcnnLayer], content: bytes) -> None:
    """Hands the weights to their layers, in the order in which ncnn reads them."""
    place = 0

    def plain(count: int, tagged: bool = False) -> tuple[int | None, np.ndarray]:
        nonlocal place
        place += 4 * tagged
        values = np.frombuffer(content, np.float32, count, place)
        place += 4 * count
        return (0 if tagged else None), values

    for layer in layers:
        if layer.kind in COUNTS:
            size, count, bias = COUNTS[layer.kind]
            layer.blobs = [
                plain(layer.number(size), True),
                *(plain(layer.number(count)) for _ in range(layer.number(bias))),
            ]
        elif layer.kind == "BatchNorm":
            layer.blobs = [plain(layer.number(0)) for _ in range(4)]
        elif layer.kind in ("PReLU", "Scale"):
            layer.blobs = [
                plain(layer.number(0))
                for _ in range(1 + (layer.kind == "Scale" and layer.number(1)))
            ]
        elif layer.kind == "LayerNorm":
            layer.blobs = [plain(layer.number(0)) for _ in range(2 * layer.number(2, 1))]
        elif layer.kind == "GroupNorm":
            layer.blobs = [plain(layer.number(1)) for _ in range(2 * layer.number(3, 1))]
        elif layer.kind == "InstanceNorm":
            layer.blobs = [plain(layer.number(0)) for _ in range(2 * layer.number(2, 1))]
        elif layer.kind == "MemoryData":
            layer.blobs = [plain(int(np.prod([max(1, layer.number(k)) for k in (0, 1, 2, 11)])))]
    if place != len(content):
        kinds = sorted({layer.kind for layer in layers})
        raise CaptureError(
            "a quantized network for ncnn cannot have one of these layers yet: "
            f"{', '.join(kinds)}; export the float network"
        )


def _bytes(tag: int | None, values: np.ndarray) -> bytes:
    content = values.tobytes()
    if tag is None:
        return content
    return tag.to_bytes(4, "little") + content + b"\0" * (-len(content) % 4)


def _integers(layers: list[NcnnLayer], found: Grids, ends: set[str]) -> list[NcnnLayer]:
    """Layers of ncnn in place of ONNX's Quantize and Dequantize, integer convolutions and linear
    layers, and what they make unnecessary left out.
    """
    constants = {
        o
        for layer in layers
        if layer.kind == "pnnx.Expression" and not layer.inputs
        for o in layer.outputs
    }
    layers = [layer for layer in layers if not (layer.outputs and set(layer.outputs) <= constants)]
    quantizers = [layer for layer in layers if layer.kind == "QuantizeLinear"]
    if len(quantizers) != len(found.sites):
        raise CaptureError(
            f"pnnx kept {len(quantizers)} of {len(found.sites)} quantized values; report this "
            "network"
        )
    scales: dict[str, float] = {}
    renamed: dict[str, str] = {}
    for layer, (name, scale) in zip(quantizers, found.sites):
        renamed[layer.outputs[0]] = name
        scales[name] = scale
    integer_of: dict[str, str] = {}  # the integers behind each dequantized value
    for layer in layers:
        layer.inputs = [renamed.get(i, i) for i in layer.inputs if i not in constants]
        layer.outputs = [renamed.get(o, o) for o in layer.outputs]
        if layer.kind == "QuantizeLinear":
            layer.kind, layer.parameters = "Quantize", {0: "1"}
            layer.blobs = [(None, np.array([1 / scales[layer.outputs[0]]], np.float32))]
        elif layer.kind == "DequantizeLinear":
            integer_of[layer.outputs[0]] = layer.inputs[0]
    for layer in layers:
        _contract(layer, integer_of, scales, found)
    layers = _fuse_requantize(layers, scales)
    needed = ends | {i for layer in layers for i in layer.inputs}
    result = []
    for layer in layers:
        if layer.kind != "DequantizeLinear":
            result.append(layer)
        elif layer.outputs[0] in needed:
            result += _to_floats(layer, scales[layer.inputs[0]])
    return result


def _to_floats(layer: NcnnLayer, scale: float) -> list[NcnnLayer]:
    """int8 -> float -> times the scale. ncnn's own Dequantize takes the 32-bit sums of a layer: on
    int8 it reads beyond their end.
    """
    plain = f"{layer.outputs[0]}_unscaled"
    return [
        NcnnLayer("Cast", f"{layer.name}_cast", layer.inputs, [plain], {0: "3", 1: "1"}),
        NcnnLayer(
            "BinaryOp",
            layer.name,
            [plain],
            layer.outputs,
            {0: "2", 1: "1", 2: f"{np.float32(scale):.9e}"},
        ),
    ]


def _contract(
    layer: NcnnLayer, integer_of: Mapping[str, str], scales: Mapping[str, float], found: Grids
) -> None:
    """Int8 weights and the scales of weights and input, where a layer reads a grid and ncnn has the
    layer for it.
    """
    if layer.kind not in (*CONVOLUTIONS, "InnerProduct") or layer.inputs[0] not in integer_of:
        return
    known = found.weights.get(layer.blobs[0][1].tobytes())
    grouped = layer.kind == "ConvolutionDepthWise" and layer.number(GROUPS, 1) != layer.number(
        OUTPUTS
    )
    if known is None or grouped:
        return
    layer.inputs = [integer_of[layer.inputs[0]]]
    layer.parameters[INT8] = "1"
    input_scale = 1 / scales[layer.inputs[0]]
    layer.blobs[0] = (INT8_TAG, known[0].ravel())
    layer.blobs += [
        (None, (1 / known[1]).astype(np.float32)),
        (None, np.array([input_scale], np.float32)),
    ]


def _fuse_requantize(layers: list[NcnnLayer], scales: Mapping[str, float]) -> list[NcnnLayer]:
    """A convolution that only a Quantize reads gives integers by itself."""
    readers: dict[str, list[NcnnLayer]] = {}
    for layer in layers:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer)
    gone = []
    for layer in layers:
        reader = readers.get(layer.outputs[0], []) if layer.outputs else []
        if (
            layer.kind in CONVOLUTIONS
            and INT8 in layer.parameters
            and len(reader) == 1
            and reader[0].kind == "Quantize"
        ):
            layer.parameters[INT8] = "101"
            layer.outputs = reader[0].outputs
            layer.blobs.append((None, np.array([1 / scales[layer.outputs[0]]], np.float32)))
            gone.append(reader[0])
    return [layer for layer in layers if not any(layer is g for g in gone)]
