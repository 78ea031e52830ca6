"""Operators that have no translation: ONNX Runtime computes them, one node at a time, behind one
torch operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mirabelle.base.errors import InputError

# A dimension that grows with the batch: (input, its dimension, factor), else a number.
Dimension = int | tuple[int, int, int]


@dataclass
class Outside:
    """One node that runs as it is. outputs: dtype and dimensions of each, as far as they were seen.
    session: opened when first used.
    """

    model: bytes
    inputs: list[str]
    outputs: list[tuple[torch.dtype, list[Dimension]]]
    session: Any = None


# By key. A key says what the node is, so that a file that is read twice has one entry, and another
# process that reads it has the same.
NODES: dict[str, Outside] = {}


def outer_names(node: NodeProto) -> list[str]:
    """What a node reads: its inputs, and the values from around it that the graphs inside
    it use.
    """
    names = [n for n in node.input if n]
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            inside = {i.name for i in graph.input} | {t.name for t in graph.initializer}
            for child in graph.node:
                names += [n for n in outer_names(child) if n not in inside]
                inside |= set(child.output)
            names += [o.name for o in graph.output if o.name not in inside]
    return list(dict.fromkeys(names))


def enter(
    node: NodeProto,
    file: ModelProto,
    arrays: dict[str, np.ndarray],
    constants: dict[str, TensorProto],
    results: Sequence[np.ndarray],
) -> tuple[str, list[str]]:
    """Prepares `node` of `file` to run by itself. arrays: examples of what it reads; results: of
    what it gives. Returns its key and the values that it reads.
    """
    names = [n for n in outer_names(node) if n not in constants]
    typed = [
        helper.make_tensor_value_info(
            n, helper.np_dtype_to_tensor_dtype(arrays[n].dtype), [None] * arrays[n].ndim
        )
        for n in names
    ]
    given = [
        helper.make_tensor_value_info(o, helper.np_dtype_to_tensor_dtype(r.dtype), None)
        for o, r in zip(filter(None, node.output), results)
    ]
    graph = helper.make_graph(
        [node], "node", typed, given, [constants[n] for n in outer_names(node) if n in constants]
    )
    model = helper.make_model(graph, opset_imports=file.opset_import, ir_version=file.ir_version)
    content = model.SerializeToString(deterministic=True)
    key = f"{node.op_type}:{sha256(content).hexdigest()[:16]}"
    shapes: list[tuple[torch.dtype, list[Dimension]]] = [
        (torch.from_numpy(np.empty(0, r.dtype)).dtype, [int(s) for s in r.shape]) for r in results
    ]
    NODES[key] = Outside(content, names, shapes)
    return key, names


def follow_batch(
    key: str,
    before: tuple[Iterable[np.ndarray], Iterable[np.ndarray]],
    after: tuple[Iterable[np.ndarray], Iterable[np.ndarray]],
) -> None:
    """Learns which dimensions of a node's outputs grow with the batch, from its inputs and outputs
    for one batch and for one twice as large.
    """
    (small, results), (large, larger) = (
        [list(map(np.shape, a)) for a in side] for side in (before, after)
    )
    grown = [
        (i, d, s[d])
        for i, (s, t) in enumerate(zip(small, large))
        for d in range(len(s))
        if t[d] == 2 * s[d]
    ]
    if not grown:
        return
    source, dimension, size = grown[0]
    for (_, dims), one, two in zip(NODES[key].outputs, results, larger):
        for d, (a, b) in enumerate(zip(one, two)):
            if b == 2 * a and a % size == 0:
                dims[d] = (source, dimension, a // size)


def run(key: str, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    node = NODES.get(key)
    if node is None:
        raise InputError(
            f"this network runs {key.partition(':')[0]} of an ONNX file, which was not read in "
            "this process; read the file first"
        )
    if node.session is None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        node.session = onnxruntime.InferenceSession(
            node.model, options, providers=["CPUExecutionProvider"]
        )
    return node.session.run(None, dict(zip(node.inputs, arrays, strict=True)))


# The schema is written out: older torch reads none from `list`.
@torch.library.custom_op(
    "mirabelle::onnx_node", mutates_args=(), schema="(Tensor[] inputs, str key) -> Tensor[]"
)
def onnx_node(inputs: list[torch.Tensor], key: str) -> list[torch.Tensor]:
    # Mixed precision hands over bfloat16, which neither NumPy nor the node has.
    full = (t.float() if t.dtype is torch.bfloat16 else t for t in inputs)
    return [
        torch.from_numpy(np.array(a)) for a in run(key, [t.detach().cpu().numpy() for t in full])
    ]


@onnx_node.register_fake
def _(inputs: list[torch.Tensor], key: str) -> list[torch.Tensor]:
    def size(d: Dimension) -> Any:
        return d if isinstance(d, int) else inputs[d[0]].shape[d[1]] * d[2]

    return [torch.empty([size(d) for d in dims], dtype=dtype) for dtype, dims in NODES[key].outputs]


def _backward(ctx: Any, gradients: list[torch.Tensor]) -> tuple[list[None], None]:
    return [None] * ctx.count, None  # gradients stop where ONNX Runtime computes


def _setup(ctx: Any, inputs: tuple[list[torch.Tensor], str], output: Any) -> None:
    ctx.count = len(inputs[0])  # torch calls these by name


onnx_node.register_autograd(_backward, setup_context=_setup)


def constant(tensor: TensorProto) -> np.ndarray:
    return np.array(numpy_helper.to_array(tensor))


def is_floating(tensor: TensorProto) -> bool:
    return helper.tensor_dtype_to_np_dtype(tensor.data_type).kind == "f"
