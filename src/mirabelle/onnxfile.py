"""A network as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle.checks import clone
from mirabelle.data import Batch
from mirabelle.errors import CaptureError
from mirabelle.files import atomic
from mirabelle.muffle import muffled

OPSET = 20


def onnx_proto(network: nn.Module, inputs: Batch) -> Any:
    """The network as torch's exporter writes it, with a free batch where the network allows that. Raises `CaptureError` with torch's reason."""

    def two(t: torch.Tensor) -> torch.Tensor:
        return torch.cat([t, t]) if len(t) == 1 else t

    several = inputs.map(two)
    with muffled():
        network = clone(network).eval()
    problem: Exception | None = None
    for batch, free in ((several, True), (inputs, False)):
        shapes: Any = None
        if free:
            dims = {0: torch.export.Dim.DYNAMIC}
            shapes = tuple(dims for _ in batch.args) if not batch.kwargs else {k: dims for k in batch.kwargs}
        with muffled():
            try:
                program = torch.onnx.export(
                    network, batch.args, kwargs=batch.kwargs, dynamo=True, verbose=False, opset_version=OPSET,
                    input_names=inputs.names, output_names=["output"], dynamic_shapes=shapes,
                )  # fmt: skip
                assert program is not None
                return program.model_proto
            except Exception as error:
                problem = error
    cause: BaseException | None = problem
    while cause is not None and cause.__cause__ is not None:  # the outer ones say only in which step it was
        cause = cause.__cause__
    reason = (str(cause).strip().splitlines() or [""])[0]
    raise CaptureError(f"torch.onnx cannot export this network: {type(cause).__name__}: {reason}") from problem


def write_onnx(proto: Any, path: str | Path) -> None:
    """Means as the pools that runtimes have kernels for, without doc strings and metadata (source paths among them), checked, whole or not at all."""
    import onnx

    _pool_for_means(proto)
    _strip(proto)
    onnx.checker.check_model(proto)
    with atomic(path) as temporary:
        onnx.save(proto, str(temporary))


def _pool_for_means(proto: Any) -> None:
    """A mean over the two last dimensions of images is a global average pool, for which runtimes have integer kernels; torch writes ReduceMean."""
    import numpy as np
    from onnx import numpy_helper

    constants = {i.name: i for i in proto.graph.initializer}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in proto.graph.value_info}
    for node in proto.graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = np.sort(numpy_helper.to_array(constants[node.input[1]]))
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if keep == 1 and ranks.get(node.output[0]) == 4 and axes.tolist() in ([-2, -1], [2, 3]):
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]


def _strip(proto: Any) -> None:
    used = {name for n in proto.graph.node for name in n.input}
    for holder in (proto, proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        holder.doc_string = ""
        if hasattr(holder, "metadata_props"):
            del holder.metadata_props[:]
    for i in reversed(range(len(proto.graph.initializer))):
        if proto.graph.initializer[i].name not in used:
            del proto.graph.initializer[i]
    proto.producer_name, proto.producer_version = "mirabelle", ""
