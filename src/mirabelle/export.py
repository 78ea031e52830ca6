"""`mb.export`: a network as a file that a runtime loads."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle.checks import check_network, check_runs, clone
from mirabelle.data import Batch, example_inputs
from mirabelle.errors import CaptureError, InputError, choose
from mirabelle.files import atomic
from mirabelle.quantize import quantization
from mirabelle.quantize.qdq import to_qdq
from mirabelle.runtimes import RUNTIMES, load
from mirabelle.runtimes.artifact import Artifact

OPSET = 20


def export(
    model: nn.Module | str | Path, folder: str | Path, *, runtime: str = "onnxruntime", inputs: Any = None, threads: int = 1, name: str = "model"
) -> Artifact:
    """Writes `model` as `folder/name.*` for `runtime` and returns it, ready to call.

    model: a network, float or quantised, or the path of an ONNX file. inputs: example inputs; needed for networks.
    The batch size stays free where the network allows it. threads: those that the artifact will run with.
    Raises `InputError` for an unknown runtime, missing inputs or inputs that the network does not take;
    `MissingRuntimeError` names what to install.
    """
    adapter = choose(runtime, RUNTIMES, "runtime")
    adapter.version()
    folder = Path(folder)
    if isinstance(model, (str, Path)):
        return load(adapter.save(Path(model), folder), runtime, threads)
    if inputs is None:
        raise InputError("export needs inputs=, an example of what the network takes")
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / f"{name}.onnx"
        to_onnx(model, example_inputs(inputs), source)
        return load(adapter.save(source, folder), runtime, threads)


def to_onnx(model: nn.Module, inputs: Batch, path: str | Path) -> list[str]:
    """Writes an ONNX file: float, or in Q/DQ form for a quantised network; the same network gives the same bytes.

    The integers of every site are the value `<site>_quantized` of the file, and as floats `<site>_dequantized` (outputs keep
    their own names). Doc strings and metadata (source paths among them)
    are left out. Returns the names of the sites in order.
    """
    import onnx

    check_runs(check_network(model), inputs, "the example input")
    network, sites = to_qdq(model) if quantization(model) is not None else (model, [])  # type: ignore[arg-type]
    proto = _export(network, inputs)
    _rename_sites(proto, sites)
    _pool_for_means(proto)
    _strip(proto)
    onnx.checker.check_model(proto)
    with atomic(path) as temporary:
        onnx.save(proto, str(temporary))
    return sites


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter logs and warns about itself; none of it is about the user's network."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _export(network: nn.Module, inputs: Batch) -> Any:
    def two(t: torch.Tensor) -> torch.Tensor:
        return torch.cat([t, t]) if len(t) == 1 else t

    several = inputs.map(two)
    with _quiet():
        network = clone(network).eval()
    names = [f"input{i}" if len(inputs.args) > 1 else "input" for i in range(len(inputs.args))] + list(inputs.kwargs)
    problem: Exception | None = None
    for batch, free in ((several, True), (inputs, False)):
        shapes: Any = None
        if free:
            dims = {0: torch.export.Dim.DYNAMIC}
            shapes = tuple(dims for _ in batch.args) if not batch.kwargs else {k: dims for k in batch.kwargs}
        with _quiet():
            try:
                program = torch.onnx.export(
                    network, batch.args, kwargs=batch.kwargs, dynamo=True, verbose=False, opset_version=OPSET,
                    input_names=names, output_names=["output"], dynamic_shapes=shapes,
                )  # fmt: skip
                assert program is not None
                return program.model_proto
            except Exception as error:
                problem = error
    raise CaptureError(f"torch.onnx cannot export this network: {str(problem).strip().splitlines()[0] if problem else ''}") from problem


def _rename_sites(proto: Any, sites: list[str]) -> None:
    """torch names quantised values by their order; they get the names of their sites."""
    quantized = sorted((n for n in proto.graph.node if n.op_type == "QuantizeLinear"), key=lambda n: _number(n.output[0]))
    if len(quantized) != len(sites):
        raise CaptureError(f"the exported file has {len(quantized)} quantised values for {len(sites)} sites; report this network")
    names = {n.output[0]: f"{site}_quantized" for n, site in zip(quantized, sites, strict=True)}
    outputs = {o.name for o in proto.graph.output}  # these keep their names
    readers = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in names and n.output[0] not in outputs]
    names |= {n.output[0]: names[n.input[0]].removesuffix("_quantized") + "_dequantized" for n in readers}
    for node in proto.graph.node:
        for field in (node.input, node.output):
            for i, value in enumerate(field):
                field[i] = names.get(value, value)
    for info in proto.graph.value_info:
        info.name = names.get(info.name, info.name)


def _number(name: str) -> int:
    tail = name.rpartition("_")[2]
    return int(tail) if tail.isdigit() else 0


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
