"""The exported file with the values of its layers as further outputs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.exporter import to_onnx, to_program
from mirabelle.measurement.layers import attribute, layer_names
from mirabelle.quantization.simulation.description import quantization
from mirabelle.quantization.simulation.placement import Site
from mirabelle.runtimes import RUNTIMES, load, ncnnfile
from mirabelle.runtimes import flatbuffer as tflite
from mirabelle.runtimes.artifact import Artifact, require
from mirabelle.runtimes.onnx_model import read_model
from mirabelle.runtimes.openvino import package


def exposed(
    model: fx.GraphModule, artifact: Artifact, sites: list[str], folder: Path
) -> tuple[Artifact, list[str]]:
    """A copy of `artifact` in `folder` whose outputs are its own and then the values of `sites`, in
    that order: integers, or floats on their grids.

    Also the sites that these are: all of `sites`, but for those that a converter merged with
    others.

    Where files of the runtime cannot be edited, a second file is made from `model`, the network of
    `artifact`, with these outputs.
    Raises `InputError` where the file does not hold one of them: it was exported from another
    network.
    """
    path = folder / artifact.path.name
    if artifact.runtime in _WRITERS:
        sites = _WRITERS[artifact.runtime](artifact, sites, path)
    else:
        path = _again(model, artifact, sites, folder)
    return load(path, artifact.runtime, artifact.threads), sites


def is_edited(artifact: Artifact) -> bool:
    """Whether `exposed` gives a copy of the file itself, not a second one made from the network."""
    return artifact.runtime in _WRITERS


def _again(model: fx.GraphModule, artifact: Artifact, sites: list[str], folder: Path) -> Path:
    described, adapter = quantization(model), RUNTIMES[artifact.runtime]
    assert described is not None
    zeros = [
        torch.zeros([s or 1 for s in spec.shape or ()], dtype=getattr(torch, spec.dtype))
        for spec in artifact.inputs
    ]
    names = [name for name, _, _ in described.inputs]
    if len(names) != len(zeros):
        raise InputError(
            f"{artifact.path} takes {len(zeros)} inputs, the network {len(names)}; it was "
            "exported from another network"
        )
    batch = Batch(
        tuple(z for z, n in zip(zeros, names) if not n),
        {n: z for z, n in zip(zeros, names) if n},
        None,
    )
    if adapter.convert is not None:
        program, order = to_program(model, batch, sites)
        return adapter.convert(program, order, folder / artifact.path.name)
    assert adapter.save is not None
    source = folder / f"{artifact.path.stem}.onnx"
    to_onnx(model, batch, source)
    onnx = load(source, "onnxruntime")
    _write_onnx(onnx, sites, source)
    return adapter.save(source, folder / "again")


def run_in_float(artifact: Artifact, batch: Batch, sites: Mapping[str, Site]) -> dict[str, str]:
    """The sites of layers of weights that the runtime executes in float, by its own account, with
    the operator that it names.
    """
    if RUNTIMES[artifact.runtime].profile is None:  # its package does not tell
        return {}
    by_layer = {s.layer: n for n, s in sites.items() if s.source is None}
    times = attribute(artifact.profile(*batch.args, runs=1, **batch.kwargs), layer_names(artifact))
    return {
        by_layer[layer]: t.operator for layer, t in times if layer in by_layer and t.int8 is False
    }


def _missing(artifact: Artifact, site: str) -> InputError:
    return InputError(
        f"{artifact.path} holds no quantized value {site!r}; it was exported from another "
        "network, or from a float one"
    )


def _write_onnx(artifact: Artifact, sites: list[str], path: Path) -> list[str]:
    onnx = require("onnx", "onnxruntime")
    proto = read_model(artifact.path)
    types = {i.name: i.data_type for i in proto.graph.initializer}
    quantizers = {n.output[0]: n for n in proto.graph.node if n.op_type == "QuantizeLinear"}
    for site in sites:
        name = f"{site}_quantized"
        if name not in quantizers:
            raise _missing(artifact, site)
        kind = types.get(quantizers[name].input[2], onnx.TensorProto.UINT8)
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    onnx.save(proto, path)
    return sites


def _write_openvino(artifact: Artifact, sites: list[str], path: Path) -> list[str]:
    """OpenVINO merges each pair of quantize and dequantize into one operator, so that the integers
    have no name in its files.
    """
    openvino = package()
    model: Any = openvino.Core().read_model(artifact.path)
    ports = {
        name: port
        for node in model.get_ordered_ops()
        for port in node.outputs()
        for name in port.get_names()
    }
    for site in sites:
        if f"{site}_dequantized" not in ports:
            raise _missing(artifact, site)
        model.add_outputs([ports[f"{site}_dequantized"]])
    openvino.save_model(model, path, compress_to_fp16=False)
    return sites


def _write_litert(artifact: Artifact, sites: list[str], path: Path) -> list[str]:
    """Adds dequantized copies of the tensors that bear the sites' names, channels first."""
    model = tflite.read(artifact.path.read_bytes())
    graph = model.subgraphs[0]
    tensors = {name: i for i, t in enumerate(graph.tensors) for name in t.name.decode().split(";")}
    found = [s for s in sites if {f"{s}_quantized", f"{s}_quantized_nhwc"} & tensors.keys()]
    if sites and not found:
        raise _missing(artifact, sites[0])
    for site in found:
        last = f"{site}_quantized_nhwc"
        index = tensors[last] if last in tensors else tensors[f"{site}_quantized"]
        shape = graph.tensors[index].shape
        output = tflite.add_tensor(model, graph, f"{site}_dequantized", shape, "FLOAT32")
        tflite.add_operator(model, graph, "DEQUANTIZE", [index], [output])
        if last in tensors:
            order = tflite.add_tensor(
                model, graph, f"{site}_order", [4], "INT32", np.array(tflite.TO_NCHW, np.int32)
            )
            moved = tflite.add_tensor(
                model, graph, f"{site}_nchw", [shape[i] for i in tflite.TO_NCHW], "FLOAT32"
            )
            tflite.add_operator(model, graph, "TRANSPOSE", [output, order], [moved])
            output = moved
        graph.outputs.append(output)
    tflite.sign(model, graph)
    path.write_bytes(tflite.write(model))
    return found


def _write_ncnn(artifact: Artifact, sites: list[str], path: Path) -> list[str]:
    """Adds a copy of each blob that bears a site's name: what no layer reads is an output."""
    layers = ncnnfile.without_splits(ncnnfile.read_graph(artifact.path))
    blobs = {o for layer in layers for o in layer.outputs}
    for site in sites:
        if f"{site}_quantized" not in blobs:
            raise _missing(artifact, site)
        layers.append(
            ncnnfile.NcnnLayer(
                "Noop", f"copy_{site}", [f"{site}_quantized"], [f"{site}{ncnnfile.INTEGERS}"], {}
            )
        )
    path.write_text(ncnnfile.text(ncnnfile.with_splits(layers)), encoding="utf-8")
    shutil.copyfile(artifact.path.with_suffix(".bin"), path.with_suffix(".bin"))
    return sites


_WRITERS = {
    "onnxruntime": _write_onnx,
    "openvino": _write_openvino,
    "litert": _write_litert,
    "ncnn": _write_ncnn,
}
