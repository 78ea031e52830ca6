"""How much an ONNX file computes, and how many parameters it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mirabelle.base.errors import InputError
from mirabelle.runtimes.onnx_model import read_model


class OnnxMacs(NamedTuple):
    """`uncounted` names the operators that compute and could not be counted, as `type (node name)`;
    empty where `macs` is complete.
    """

    macs: int
    uncounted: list[str]


def _conv(x: list[int], w: list[int], y: list[int]) -> int:
    return math.prod(y) * math.prod(w[1:])  # w: (out, in / groups, *kernel)


def _conv_transpose(x: list[int], w: list[int], y: list[int]) -> int:
    return math.prod(x) * math.prod(
        w[1:]
    )  # w: (in, out / groups, *kernel); every input element meets each of them


def _matmul(a: list[int], b: list[int], y: list[int]) -> int:
    return math.prod(y) * a[-1]


def _gemm(a: list[int], b: list[int], y: list[int]) -> int:
    return math.prod(a) * y[-1]


# Operator -> (MACs from the shapes of two inputs and the output, which inputs these are).
COUNTED: dict[str, tuple[Callable[[list[int], list[int], list[int]], int], tuple[int, int]]] = {
    "Conv": (_conv, (0, 1)),
    "FusedConv": (_conv, (0, 1)),
    "ConvInteger": (_conv, (0, 1)),
    "QLinearConv": (_conv, (0, 3)),
    "ConvTranspose": (_conv_transpose, (0, 1)),
    "Gemm": (_gemm, (0, 1)),
    "FusedGemm": (_gemm, (0, 1)),
    "QGemm": (_gemm, (0, 3)),
    "MatMul": (_matmul, (0, 1)),
    "FusedMatMul": (_matmul, (0, 1)),
    "MatMulInteger": (_matmul, (0, 1)),
    "MatMulIntegerToFloat": (_matmul, (0, 1)),
    "DynamicQuantizeMatMul": (_matmul, (0, 1)),
    "QLinearMatMul": (_matmul, (0, 3)),
}
COMPUTE = {
    "Einsum",
    "Attention",
    "DeformConv",
    "LSTM",
    "GRU",
    "RNN",
    "Loop",
    "Scan",
    "If",
    "DFT",
    "STFT",
}
# Contributed operators that move, scale or pass on values.
LIGHT = {
    "QLinearAdd",
    "QLinearMul",
    "QLinearSigmoid",
    "QLinearLeakyRelu",
    "QLinearConcat",
    "QLinearSoftmax",
}
LIGHT |= {"QLinearGlobalAveragePool", "QLinearAveragePool"}
LIGHT |= {
    "QuantizeLinear",
    "DequantizeLinear",
    "Gelu",
    "FastGelu",
    "BiasGelu",
    "QuickGelu",
    "LayerNormalization",
    "SkipLayerNormalization",
}


def _load(path: str | Path) -> Any:
    import onnx.inliner

    model = read_model(path, weights=False)
    try:
        if not model.graph.output:
            raise InputError("it holds no graph")
        model = onnx.inliner.inline_local_functions(model) if model.functions else model
        return _with_constants(model)
    except Exception as error:
        raise InputError(
            f"{path} is not a whole ONNX file ({error}); it was damaged or written by something "
            "else"
        ) from error


def _with_constants(model: Any) -> Any:
    """Constants that are nodes of the graph, as some exporters write weights, among its others."""
    graph = model.graph
    found = {}
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].t.dims:
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            found[node.output[0]] = node
    for node in found.values():
        graph.node.remove(node)
    return model


def _sized(model: Any, sizes: Mapping[str, Sequence[int]]) -> int:
    """Makes the inputs as large as is said, and forgets what else is open; returns the batch."""
    graph = model.graph
    for value in [*graph.value_info, *graph.output]:
        for d in value.type.tensor_type.shape.dim:
            if not d.dim_value:
                d.ClearField("value")
    batch = 1
    for value in reversed(graph.input):
        if (size := sizes.get(value.name)) is not None:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for length in size:
                shape.dim.add().dim_value = int(length)
            batch = int(size[0]) if len(size) else batch
    return max(1, batch)


def _batch_one(model: Any) -> int:
    """Makes the open first dimension of the inputs 1 wherever its name stands, forgets other open
    ones; returns the batch of the file.
    """
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    inputs = [v for v in graph.input if v.name not in constants and v.type.tensor_type.shape.dim]
    names = {v.type.tensor_type.shape.dim[0].dim_param for v in inputs} - {""}
    fixed = [v.type.tensor_type.shape.dim[0].dim_value for v in inputs]
    for value in [*graph.input, *graph.value_info, *graph.output]:
        for d in value.type.tensor_type.shape.dim:
            if d.HasField("dim_param"):
                d.dim_value = 1 if d.dim_param in names else 0
            if d.dim_value == 0:
                d.ClearField("value")
    for v in inputs:
        d = v.type.tensor_type.shape.dim[0]
        if not d.dim_value:
            d.dim_value = 1
    return max(1, fixed[0]) if fixed else 1


def count_onnx_macs(path: str | Path, sizes: Mapping[str, Sequence[int]] | None = None) -> OnnxMacs:
    """Multiply-accumulates of one sample of an ONNX file, as `count_macs` defines them; an open
    batch is taken as 1, a fixed one divides. sizes: the shapes of its inputs by name, for a file
    that leaves more open; the first dimension divides.

    See `onnx_macs_by_value`.
    """
    found, uncounted, batch = onnx_macs_by_value(path, sizes)
    return OnnxMacs(-(-sum(found.values()) // batch), uncounted)


def onnx_macs_by_value(
    path: str | Path, sizes: Mapping[str, Sequence[int]] | None = None
) -> tuple[dict[str, int], list[str], int]:
    """The multiply-accumulates of a whole batch by the name of what they compute, the operators
    that could not be counted, and the batch.

    Counts convolutions and matrix products in floating point, in Q/DQ form (weights behind a
    DequantizeLinear) and as integer operators (QLinearConv and the like). Raises `InputError` for a
    file that is missing or damaged.
    """
    from onnx import shape_inference

    model = _load(path)
    batch = _batch_one(model) if sizes is None else _sized(model, sizes)
    try:
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
    except shape_inference.InferenceError:  # what the file says of its own shapes may do
        graph = model.graph
    shapes: dict[str, list[int]] = {t.name: list(t.dims) for t in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            dims = [
                d.dim_value if d.HasField("dim_value") else -1
                for d in value.type.tensor_type.shape.dim
            ]
            if value.name not in shapes and min(dims, default=0) >= 0:
                shapes[value.name] = dims
    counted: dict[str, int] = {}
    uncounted = []
    for node in graph.node:
        function, which = COUNTED.get(node.op_type, (None, ()))
        if function is not None:
            wanted = [*(node.input[i] for i in which), node.output[0]]
            found: list[Any] = [shapes.get(n) for n in wanted]
            if None not in found:
                counted[node.output[0]] = function(*found)
                continue
        foreign = node.domain not in ("", "ai.onnx", "ai.onnx.ml") and node.op_type not in LIGHT
        if function is not None or foreign or node.op_type in COMPUTE:
            uncounted.append(f"{node.op_type} ({node.name or node.output[0]})")
    return counted, uncounted, batch


def _scales(nodes: Iterable[Any]) -> set[str]:
    """The names of the scales and zero points of a graph's quantization."""
    places = {
        "QuantizeLinear": (1, 2),
        "DequantizeLinear": (1, 2),
        "QLinearConv": (1, 2, 4, 5, 6, 7),
        "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    }
    places["QGemm"] = (1, 2, 4, 5, 7, 8)
    return {n.input[i] for n in nodes for i in places.get(n.op_type, ()) if i < len(n.input)}


def count_onnx_parameters(path: str | Path) -> int:
    """Elements of the weights of an ONNX file, of any width. Left out: scales and zero points,
    single numbers, and int64 (shapes and indices).

    An exporter folds BatchNorm into convolutions, so the file of a network may hold fewer than the
    network.
    """
    import onnx

    graph = _load(path).graph
    left_out = _scales(graph.node)
    plain = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING)
    return sum(
        math.prod(t.dims)
        for t in graph.initializer
        if t.dims and t.name not in left_out and t.data_type not in plain
    )
