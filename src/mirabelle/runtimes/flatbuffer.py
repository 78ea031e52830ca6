"""TFLite files as objects that can be edited: what LiteRT's converter leaves open is settled here,
and values get names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mirabelle.runtimes.artifact import require

# Operators whose images have their channels in the last dimension.
CHANNELS_LAST = (
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "TRANSPOSE_CONV",
    "MAX_POOL_2D",
    "AVERAGE_POOL_2D",
    "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR",
)
TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
VERSIONS = {"QUANTIZE": 1, "DEQUANTIZE": 5, "TRANSPOSE": 2, "DENSIFY": 1}


def schema() -> Any:
    return require("ai_edge_litert.schema_py_generated", "litert")


def read(content: bytes) -> Any:
    """The file as a `ModelT`."""
    return require("ai_edge_litert.tools.flatbuffer_utils", "litert").read_model_from_bytearray(
        content
    )


def write(model: Any) -> bytes:
    """The bytes of a `ModelT`, its buffers at multiples of 16 bytes, as the schema wants and its
    Python writer does not do.
    """

    class Aligned(schema().BufferT):
        def Pack(self, builder):  # noqa: N802  the library's name
            fb = schema()
            data = (
                None
                if self.data is None
                else np.ascontiguousarray(self.data).view(np.uint8).tobytes()
            )
            if data is not None:
                builder.StartVector(1, len(data), 16)
                builder.head -= len(data)
                builder.Bytes[builder.head : builder.head + len(data)] = data
                data = builder.EndVector()
            fb.BufferStart(builder)
            if data is not None:
                fb.BufferAddData(builder, data)
            return fb.BufferEnd(builder)

    model.buffers = [Aligned(b.data) for b in model.buffers]
    return bytes(
        require("ai_edge_litert.tools.flatbuffer_utils", "litert").convert_object_to_bytearray(
            model
        )
    )


def operator(model: Any, op: Any) -> str:
    """The name of an operator, such as `CONV_2D`."""
    code = model.operatorCodes[op.opcodeIndex]
    return _operator_names()[max(code.builtinCode, code.deprecatedBuiltinCode)]


def _operator_names() -> dict[int, str]:
    return {v: k for k, v in vars(schema().BuiltinOperator).items() if isinstance(v, int)}


def constant(model: Any, graph: Any, index: int) -> np.ndarray | None:
    """The value of a constant tensor; None for one that is computed."""
    tensor = graph.tensors[index]
    data = model.buffers[tensor.buffer].data
    if tensor.buffer == 0 or data is None:
        return None
    kinds = {
        getattr(schema().TensorType, k.upper()): k
        for k in ("float32", "float64", "int8", "int32", "int64", "uint8", "int16", "bool")
    }
    return np.frombuffer(np.ascontiguousarray(data).tobytes(), kinds[tensor.type]).reshape(
        [int(s) for s in tensor.shape]
    )


def add_tensor(
    model: Any,
    graph: Any,
    name: str,
    shape: Sequence[int],
    kind: str,
    value: np.ndarray | None = None,
    quantization: Any = None,
) -> int:
    """A new tensor, constant where it has a `value`; its index."""
    fb = schema()
    tensor = fb.TensorT(
        shape=[int(s) for s in shape],
        type=getattr(fb.TensorType, kind),
        buffer=0,
        name=name.encode(),
        hasRank=True,
    )
    tensor.quantization = quantization or fb.QuantizationParametersT()
    if value is not None:
        model.buffers.append(
            fb.BufferT(np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8))
        )
        tensor.buffer = len(model.buffers) - 1
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def add_operator(
    model: Any,
    graph: Any,
    kind: str,
    inputs: Sequence[int],
    outputs: Sequence[int],
    place: int | None = None,
) -> None:
    """A new operator as number `place` in the order of execution, or behind all others."""
    fb = schema()
    code = getattr(fb.BuiltinOperator, kind)
    known = [
        i
        for i, c in enumerate(model.operatorCodes)
        if max(c.builtinCode, c.deprecatedBuiltinCode) == code
    ]
    if known:
        model.operatorCodes[known[0]].version = max(
            model.operatorCodes[known[0]].version, VERSIONS[kind]
        )
    else:
        model.operatorCodes.append(
            fb.OperatorCodeT(
                deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=VERSIONS[kind]
            )
        )
        known = [len(model.operatorCodes) - 1]
    graph.operators.insert(
        len(graph.operators) if place is None else place,
        fb.OperatorT(opcodeIndex=known[0], inputs=list(inputs), outputs=list(outputs)),
    )


def producers(graph: Any) -> dict[int, Any]:
    """The operator that makes each computed tensor."""
    return {o: op for op in graph.operators for o in op.outputs}


def live(graph: Any, outputs: Iterable[int]) -> set[int]:
    """The tensors that are needed for `outputs`, themselves included."""
    made, found, left = producers(graph), set(), list(outputs)
    while left:
        index = left.pop()
        if index not in found:
            found.add(index)
            left += [i for i in made[index].inputs if i >= 0] if index in made else []
    return found


def prune(model: Any, graph: Any) -> None:
    """Drops what no output needs: operators, tensors, buffers."""
    needed = live(graph, graph.outputs)
    graph.operators = [op for op in graph.operators if needed & set(op.outputs)]
    used = sorted(
        {i for op in graph.operators for i in (*op.inputs, *op.outputs) if i >= 0}
        | set(graph.inputs)
        | set(graph.outputs)
    )
    place = {old: new for new, old in enumerate(used)} | {-1: -1}
    graph.tensors = [graph.tensors[i] for i in used]
    for op in graph.operators:
        op.inputs, op.outputs = [place[i] for i in op.inputs], [place[i] for i in op.outputs]
    graph.inputs, graph.outputs = (
        [place[i] for i in graph.inputs],
        [place[i] for i in graph.outputs],
    )
    kept = sorted(
        {0, *(t.buffer for t in graph.tensors), *(m.buffer for m in model.metadata or [])}
    )
    model.buffers = [model.buffers[i] for i in kept]
    place = {old: new for new, old in enumerate(kept)}
    for holder in (*graph.tensors, *(model.metadata or [])):
        holder.buffer = place[holder.buffer]
    codes = sorted({op.opcodeIndex for op in graph.operators})
    model.operatorCodes = [model.operatorCodes[i] for i in codes]
    for op in graph.operators:
        op.opcodeIndex = codes.index(op.opcodeIndex)


def sign(model: Any, graph: Any) -> None:
    """One signature whose names are those of the input and output tensors."""
    fb = schema()

    def maps(indices: Sequence[int]) -> list[Any]:
        return [fb.TensorMapT(name=graph.tensors[i].name, tensorIndex=i) for i in indices]

    model.signatureDefs = [
        fb.SignatureDefT(
            inputs=maps(graph.inputs),
            outputs=maps(graph.outputs),
            signatureKey=b"serving_default",
            subgraphIndex=0,
        )
    ]


def channels_last(model: Any, graph: Any, index: int) -> bool:
    """Whether an image's channels are in its last dimension, which its shape alone does not tell;
    files are read and written with them first.
    """
    made = producers(graph)
    while len(graph.tensors[index].shape) == 4 and (op := made.get(index)) is not None:
        kind = operator(model, op)
        if kind in CHANNELS_LAST:
            return True
        if kind == "TRANSPOSE":
            order = constant(model, graph, op.inputs[1])
            return order is not None and tuple(order.tolist()) == TO_NHWC
        images = [
            i
            for i in op.inputs
            if i >= 0 and constant(model, graph, i) is None and len(graph.tensors[i].shape) == 4
        ]
        if not images or kind == "RESHAPE":
            return False
        index = images[0]
    return False
