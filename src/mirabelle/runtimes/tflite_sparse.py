"""Weights of zeros in a TFLite file: stored without them behind DENSIFY, and whether XNNPACK will
skip them.

XNNPACK has sparse kernels for Arm. It rewrites a part of the network for them, from a 3x3
convolution with stride 2 on 3 channels to the global mean, where that part holds nothing but 1x1
convolutions, depthwise 3x3 and 5x5 ones and element-wise operators (the MobileNets), and over two
thirds of its weights are zero. Otherwise it fills the zeros in and computes densely, without a
word: `reasons_for_dense` has the words. Elsen et al. 2020 (Fast sparse ConvNets) describe the
kernels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mirabelle.runtimes import flatbuffer as tflite

# A value with its index takes less than the values that it stands for from here on, and XNNPACK
# looks for zeros above two thirds.
SHARE = 2 / 3
BLOCK = 4
ELEMENTWISE = (
    "ADD",
    "SUB",
    "MUL",
    "MAXIMUM",
    "MINIMUM",
    "ABS",
    "NEG",
    "SQUARE",
    "RELU",
    "RELU6",
    "RELU_N1_TO_1",
    "HARD_SWISH",
    "LOGISTIC",
    "LEAKY_RELU",
    "PRELU",
    "PAD",
    "PADV2",
    "DENSIFY",
    "DEPTH_TO_SPACE",
    "RESIZE_BILINEAR",
)
ENDS = ("MEAN", "AVERAGE_POOL_2D")


class Sparse(NamedTuple):
    """A layer whose weights are stored without their zeros. share: of zeros. block: output channels
    that share a pattern, 1 or 4.
    """

    name: str
    share: float
    block: int


def encode(model: Any, graph: Any) -> list[Sparse]:
    """Stores the weights of 1x1 convolutions and linear layers in which `SHARE` of the values are
    zero as compressed rows behind DENSIFY, in place.
    """
    found = []
    for op in list(graph.operators):
        weight = _weight(model, graph, op)
        if (
            weight is None
            or not (weight.ndim == 2 or weight.shape[1:3] == (1, 1))
            or (share := float((weight == 0).mean())) <= SHARE
        ):
            continue
        index = op.inputs[1]
        tensor = graph.tensors[index]
        sparsity, values, block = _compressed(weight)
        stored = tflite.add_tensor(
            model, graph, f"{tensor.name.decode()}_sparse", weight.shape, "FLOAT32", values
        )
        graph.tensors[stored].sparsity = sparsity
        dense = tflite.add_tensor(
            model, graph, f"{tensor.name.decode()}_dense", weight.shape, "FLOAT32"
        )
        tflite.add_operator(model, graph, "DENSIFY", [stored], [dense], graph.operators.index(op))
        op.inputs = [op.inputs[0], dense, *op.inputs[2:]]
        found.append(Sparse(graph.tensors[op.outputs[0]].name.decode(), share, block))
    return found


def _weight(model: Any, graph: Any, op: Any) -> np.ndarray | None:
    """The float weights of a convolution or linear layer."""
    if tflite.operator(model, op) not in ("CONV_2D", "FULLY_CONNECTED"):
        return None
    value = tflite.constant(model, graph, op.inputs[1])
    return value if value is not None and value.dtype == np.float32 else None


def _compressed(weight: np.ndarray) -> tuple[Any, np.ndarray, int]:
    """TFLite's description of rows without zeros, the values in its order, and the block: 4 output
    channels where these share their pattern.
    """
    fb = tflite.schema()
    rows = weight.reshape(len(weight), -1)
    block = 1
    if len(rows) % BLOCK == 0:
        together = (rows.reshape(-1, BLOCK, rows.shape[1]) != 0).any(1)
        if together.sum() * BLOCK <= 1.1 * (rows != 0).sum():
            block = BLOCK
    blocks = rows.reshape(-1, block, rows.shape[1])
    kept = (blocks != 0).any(1)
    values = np.concatenate([b[:, k].T.ravel() for b, k in zip(blocks, kept)]).astype(np.float32)
    segments = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.int32)
    indices = np.nonzero(kept)[1]
    small = rows.shape[1] <= 2**16
    kind, holder = (
        (fb.SparseIndexVector.Uint16Vector, fb.Uint16VectorT)
        if small
        else (fb.SparseIndexVector.Int32Vector, fb.Int32VectorT)
    )
    last = fb.DimensionMetadataT(
        format=fb.DimensionType.SPARSE_CSR,
        arraySegmentsType=fb.SparseIndexVector.Int32Vector,
        arraySegments=fb.Int32VectorT(segments),
        arrayIndicesType=kind,
        arrayIndices=holder(indices.astype(np.uint16 if small else np.int32)),
    )

    def dense(size: int) -> Any:
        return fb.DimensionMetadataT(format=fb.DimensionType.DENSE, denseSize=size)

    dimensions = [
        dense(len(blocks)),
        *(dense(1) for _ in weight.shape[1:-1]),
        last,
        *([dense(block)] if block > 1 else []),
    ]
    sparsity = fb.SparsityParametersT(
        traversalOrder=list(range(len(dimensions))),
        blockMap=[0] if block > 1 else [],
        dimMetadata=dimensions,
    )
    return sparsity, values, block


def reasons_for_dense(model: Any, graph: Any) -> list[str]:
    """What keeps XNNPACK from its sparse kernels on Arm; empty where nothing does. The file as
    `encode` leaves it.
    """
    start = next((op for op in graph.operators if _is_start(model, graph, op)), None)
    if start is None:
        return ["no 3x3 convolution with stride 2 and padding 1 on 3 channels to begin with"]
    inside, reasons = _cluster(model, graph, start)
    zeros = total = 0
    for op in inside:
        weight = _stored(model, graph, op)
        if weight is not None:
            zeros, total = zeros + weight[0], total + weight[1]
    if total == 0 or zeros <= SHARE * total:
        reasons.append(
            f"{zeros / max(1, total):.0%} of the weights are zero, the classifier's included; "
            "it wants over two thirds"
        )
    return reasons


def _cluster(model: Any, graph: Any, start: Any) -> tuple[list[Any], list[str]]:
    """The operators behind `start` up to the global mean, and the linear layer after that; and
    which of them have no sparse form.
    """
    readers: dict[int, list[Any]] = {}
    for op in graph.operators:
        for i in op.inputs:
            readers.setdefault(i, []).append(op)
    left, seen, inside, reasons = list(readers.get(start.outputs[0], [])), set(), [], []
    while left:
        op = left.pop()
        if id(op) in seen:
            continue
        seen.add(id(op))
        kind = tflite.operator(model, op)
        if kind == "FULLY_CONNECTED":
            inside.append(op)
            continue
        if kind in ENDS:
            left += [
                r
                for r in _through(model, op, readers)
                if tflite.operator(model, r) == "FULLY_CONNECTED"
            ]
            continue
        shape = graph.tensors[op.inputs[1]].shape if len(op.inputs) > 1 else []
        name = graph.tensors[op.outputs[0]].name.decode()
        if kind == "CONV_2D" and not (
            tuple(shape[1:3]) == (1, 1)
            and op.builtinOptions.strideW == op.builtinOptions.strideH == 1
        ):
            reasons.append(
                f"{name} is a {shape[1]}x{shape[2]} convolution with stride "
                f"{op.builtinOptions.strideH}; only 1x1 ones have a sparse kernel"
            )
        elif kind == "DEPTHWISE_CONV_2D" and tuple(shape[1:3]) not in ((3, 3), (5, 5)):
            reasons.append(
                f"{name} is a {shape[1]}x{shape[2]} depthwise convolution; only 3x3 and 5x5 "
                "ones fit between sparse layers"
            )
        elif kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", *ELEMENTWISE):
            reasons.append(f"{name} is a {kind}, which does not fit between sparse layers")
        inside.append(op)
        left += [r for o in op.outputs for r in readers.get(o, [])]
    return inside, reasons


def _through(model: Any, op: Any, readers: dict[int, list[Any]]) -> list[Any]:
    """What reads the mean, behind a reshape too."""
    found = [r for o in op.outputs for r in readers.get(o, [])]
    return found + [
        r
        for f in found
        if tflite.operator(model, f) == "RESHAPE"
        for o in f.outputs
        for r in readers.get(o, [])
    ]


def _is_start(model: Any, graph: Any, op: Any) -> bool:
    """3x3, stride 2, 3 channels, one row and column of zeros on every side, which a PAD in front of
    it may bring.
    """
    if tflite.operator(model, op) != "CONV_2D":
        return False
    shape, options = graph.tensors[op.inputs[1]].shape, op.builtinOptions
    if tuple(shape[1:]) != (3, 3, 3) or (options.strideW, options.strideH) != (2, 2):
        return False
    pad = tflite.producers(graph).get(op.inputs[0])
    if pad is None or tflite.operator(model, pad) not in ("PAD", "PADV2"):
        return False
    sizes = tflite.constant(model, graph, pad.inputs[1])
    return sizes is not None and sizes.tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]


def _stored(model: Any, graph: Any, op: Any) -> tuple[int, int] | None:
    """(zeros, weights) of a 1x1 convolution or linear layer, sparse or not."""
    if tflite.operator(model, op) not in ("CONV_2D", "FULLY_CONNECTED"):
        return None
    tensor = graph.tensors[op.inputs[1]]
    size = int(np.prod([int(s) for s in tensor.shape]))
    made = tflite.producers(graph).get(op.inputs[1])
    if made is not None and tflite.operator(model, made) == "DENSIFY":
        data = model.buffers[graph.tensors[made.inputs[0]].buffer].data
        return size - int(
            np.count_nonzero(np.frombuffer(np.ascontiguousarray(data).tobytes(), np.float32))
        ), size
    value = tflite.constant(model, graph, op.inputs[1])
    return None if value is None else (int((value == 0).sum()), size)
