"""The exported file itself, with the values of its layers as further outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirabelle.data import Batch
from mirabelle.errors import InputError
from mirabelle.measure.layers import attribute, layer_names
from mirabelle.quantize.place import Site
from mirabelle.runtimes import load
from mirabelle.runtimes.artifact import Artifact, require
from mirabelle.runtimes.openvino import package


def exposed(artifact: Artifact, sites: list[str], folder: Path) -> Artifact:
    """A copy of `artifact` in `folder` whose outputs are its own and then the values of `sites`, in that order: integers, or floats on their grids.
    Raises `InputError` where the file does not hold one of them: it was exported from another network.
    """
    path = folder / artifact.path.name
    _WRITERS[artifact.runtime](artifact, sites, path)
    return load(path, artifact.runtime, artifact.threads)


def run_in_float(artifact: Artifact, batch: Batch, sites: Mapping[str, Site]) -> dict[str, str]:
    """The sites of layers of weights that the runtime executes in float, by its own account, with the operator that it names."""
    by_layer = {s.layer: n for n, s in sites.items() if s.source is None}
    times = attribute(artifact.profile(*batch.args, runs=1, **batch.kwargs), layer_names(artifact))
    return {by_layer[layer]: t.operator for layer, t in times if layer in by_layer and t.int8 is False}


def _missing(artifact: Artifact, site: str) -> InputError:
    return InputError(f"{artifact.path} holds no quantised value {site!r}; it was exported from another network, or from a float one")


def _write_onnx(artifact: Artifact, sites: list[str], path: Path) -> None:
    onnx = require("onnx", "onnxruntime")
    proto = onnx.load(artifact.path)
    types = {i.name: i.data_type for i in proto.graph.initializer}
    quantizers = {n.output[0]: n for n in proto.graph.node if n.op_type == "QuantizeLinear"}
    for site in sites:
        name = f"{site}_quantized"
        if name not in quantizers:
            raise _missing(artifact, site)
        kind = types.get(quantizers[name].input[2], onnx.TensorProto.UINT8)
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    onnx.save(proto, path)


def _write_openvino(artifact: Artifact, sites: list[str], path: Path) -> None:
    """OpenVINO merges each pair of quantise and dequantise into one operator, so that the integers have no name in its files."""
    openvino = package()
    model: Any = openvino.Core().read_model(artifact.path)
    ports = {name: port for node in model.get_ordered_ops() for port in node.outputs() for name in port.get_names()}
    for site in sites:
        if f"{site}_dequantized" not in ports:
            raise _missing(artifact, site)
        model.add_outputs([ports[f"{site}_dequantized"]])
    openvino.save_model(model, path, compress_to_fp16=False)


_WRITERS = {"onnxruntime": _write_onnx, "openvino": _write_openvino}
