"""ncnn on the CPU. Files are made from ONNX by pnnx; quantized networks are written for ncnn's
integer layers here, as pnnx does not.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from mirabelle.base.errors import CaptureError, InputError
from mirabelle.base.files import atomic
from mirabelle.base.quiet import silenced
from mirabelle.runtimes import ncnnfile
from mirabelle.runtimes.artifact import (
    Runtime,
    Session,
    TensorSpec,
    check_present,
    require,
    unreadable,
)
from mirabelle.runtimes.onnx_model import read_model

SECONDS = 600  # what pnnx may take


def version() -> str:
    return require("ncnn", "ncnn").__version__


def files(path: Path) -> list[Path]:
    """The .param of the graph and the .bin of the weights."""
    found = [path, path.with_suffix(".bin")]
    check_present(found)
    return found


def open(path: Path, threads: int) -> Session:
    ncnn = require("ncnn", "ncnn")
    files(path)
    graph = ncnnfile.read_graph(path)
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    # Its default on Arm is float16, which would be another network than the one exported.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = (
        net.opt.use_bf16_storage
    ) = False
    with silenced() as said:
        if net.load_param(str(path)) != 0 or net.load_model(str(path.with_suffix(".bin"))) != 0:
            raise unreadable(path, "ncnn", ValueError(said()))
    inputs = [_spec(layer) for layer in graph if layer.kind == "Input"]
    outputs = ncnnfile.outputs(graph)
    lock = Lock()

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        with lock, net.create_extractor() as extractor:
            kept = [
                ncnn.Mat(a[0]).clone() for a in arrays
            ]  # without the batch; the extractor does not keep them alive
            for spec, mat in zip(inputs, kept):
                extractor.input(spec.name, mat)
            results = []
            for name in outputs:
                status, mat = extractor.extract(name)
                if status != 0:
                    raise InputError(f"ncnn cannot compute {name!r} of {path.name}")
                # ncnn hands out integers as floats.
                results.append(
                    np.array(mat)[None].astype(
                        np.int8 if name.endswith(ncnnfile.INTEGERS) else np.float32
                    )
                )
            return results

    return Session(inputs, [TensorSpec(name, None, "float32") for name in outputs], run)


def _spec(layer: ncnnfile.NcnnLayer) -> TensorSpec:
    """An input's shape, from the parameters of its layer: width, height, channels."""
    sizes = [int(layer.parameters[i]) for i in (2, 1, 0) if i in layer.parameters]
    return TensorSpec(layer.outputs[0], (1, *sizes), "float32")


def save(onnx_path: Path, folder: Path) -> Path:
    """Converts an ONNX file, float or in Q/DQ form, for a batch of one: `.param` and `.bin`,
    weights as they are.

    Q/DQ files need grids without zero points (`mb.quantize(..., target="symmetric")`). Integers run
    in convolutions and linear layers; what else reads a grid computes in float between them. ncnn
    has one weight scale for each group, so that grouped convolutions, unless depthwise, do too.
    """
    onnx, pnnx = require("onnx", "ncnn"), require("pnnx", "ncnn")
    onnx_path = Path(onnx_path)
    proto = read_model(onnx_path)
    try:
        onnx.checker.check_model(proto)
    except Exception as error:
        raise unreadable(onnx_path, "ncnn", error) from error
    grids = ncnnfile.grids(proto)
    shapes = _one_sample(proto, onnx_path)
    target = Path(folder) / f"{onnx_path.stem}.param"
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "model.onnx"
        onnx.save(proto, source)
        command = [
            pnnx.EXEC_PATH,
            source.name,
            f"inputshape={','.join(map(_text, shapes))}",
            "fp16=0",
        ]
        ran = subprocess.run(
            command,
            cwd=temporary,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
        written = source.with_suffix(".ncnn.param")
        if ran.returncode or not written.is_file():
            lines = [line for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
            raise CaptureError(
                "pnnx cannot convert this network: "
                f"{lines[-1] if lines else f'exit status {ran.returncode}'}"
            )
        graph, weights = ncnnfile.read_graph(written), written.with_suffix(".bin").read_bytes()
    names = [i.name for i in proto.graph.input]
    content = ncnnfile.finish(graph, weights, names, shapes, grids)
    _check_layers(content[0])
    for path, part in (
        (target.with_suffix(".bin"), content[1]),
        (target, content[0].encode()),
    ):  # the graph last
        with atomic(path) as temporary_path:
            temporary_path.write_bytes(part)
    return target


def _one_sample(proto: Any, path: Path) -> list[list[int]]:
    """Fixes the batch of every input to 1, as ncnn has none; the shapes."""
    shapes = []
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if (
            value.type.tensor_type.elem_type != 1
            or not dims
            or any(not d.dim_value for d in dims[1:])
        ):
            raise InputError(
                "ncnn needs float inputs whose sizes are known but for the batch; "
                f"{value.name!r} of {path.name} is not one"
            )
        if dims[0].dim_value not in (0, 1):
            raise InputError(
                f"ncnn runs one sample at a time, {path.name} takes {dims[0].dim_value}; export "
                "with an example of one"
            )
        dims[0].dim_value = 1
        shapes.append([d.dim_value for d in dims])
    for value in [*proto.graph.value_info, *proto.graph.output]:
        for dim in value.type.tensor_type.shape.dim[:1]:
            if not dim.dim_value:
                dim.dim_value = 1
    return shapes


def _text(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _check_layers(text: str) -> None:
    """`CaptureError` names the operators that pnnx handed on and ncnn does not have."""
    ncnn = require("ncnn", "ncnn")
    net = ncnn.Net()
    with silenced() as said:
        if net.load_param_mem(text) != 0:
            raise CaptureError(
                "ncnn does not have all operators of this network: "
                f"{'; '.join(said().strip().splitlines())}"
            )


RUNTIME = Runtime("ncnn", ".param", version, files, open, None, save, free_batch=False)
