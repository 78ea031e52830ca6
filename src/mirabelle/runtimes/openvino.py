"""OpenVINO on the CPU."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from mirabelle.base.errors import InputError
from mirabelle.base.files import folder_at
from mirabelle.runtimes.artifact import (
    LayerTime,
    Runtime,
    Session,
    TensorSpec,
    check_present,
    require,
    unreadable,
)
from mirabelle.runtimes.onnx_model import read_model
from mirabelle.runtimes.signals import enough_signal_stack

# A shape left open costs much of the speed, so every shape that is asked for is compiled; this many
# stay.
COMPILED_SHAPES = 4
WARM_UP = 5
LEAST = 5e-4  # milliseconds of a node, where the profiler tells none


def package() -> Any:
    """OpenVINO without its telemetry, which reports from a process of its own that it was imported,
    and what is converted.
    """
    telemetry = "openvino_telemetry"
    if "openvino" in sys.modules or telemetry in sys.modules:
        return require("openvino", "openvino")
    # It cannot be imported then, and OpenVINO has a stand-in that does nothing.
    sys.modules[telemetry] = None  # type: ignore[assignment]
    try:
        return require("openvino", "openvino")
    finally:
        del sys.modules[telemetry]


def version() -> str:
    return package().__version__.split("-")[0]


def files(path: Path) -> list[Path]:
    """The .xml of the graph and the .bin of the weights."""
    found = [path, path.with_suffix(".bin")]
    check_present(found)
    return found


def options(threads: int) -> dict[str, Any]:
    """Float32 stays float32: where the CPU has bfloat16 units, OpenVINO's default would compute
    another network than the one exported.
    """
    return {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }


def _read(path: Path) -> tuple[Any, Any]:
    core = package().Core()
    files(path)
    with path.open("rb") as f:
        if not f.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"<?xml", b"<net")):
            raise InputError(
                f"{path} is not an OpenVINO graph; it was damaged or written by something else"
            )
    try:
        return core, core.read_model(path)
    except Exception as error:
        raise unreadable(path, "openvino", error) from error


def _spec(port: Any, index: int) -> TensorSpec:
    shape = port.get_partial_shape()
    dims = (
        None
        if shape.rank.is_dynamic
        else tuple(None if d.is_dynamic else d.get_length() for d in shape)
    )
    kind = port.get_element_type()
    try:
        dtype = np.dtype(kind.to_dtype()).name
    except RuntimeError:
        dtype = kind.get_type_name()
    return TensorSpec(min(port.get_names(), default=f"input_{index}"), dims, dtype)


def _compile(core: Any, model: Any, arrays: list[np.ndarray], settings: dict[str, Any]) -> Any:
    """An inference request for exactly these shapes; `model` stays as it is."""
    if any(port.get_partial_shape().is_dynamic for port in model.inputs):
        model = model.clone()
        model.reshape({i: list(a.shape) for i, a in enumerate(arrays)})
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    enough_signal_stack()
    return request


def _infer(request: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    results = request.infer(arrays, share_inputs=True)
    return [results[i] for i in range(len(results))]


def open(path: Path, threads: int) -> Session:
    core, model = _read(path)
    requests: OrderedDict[tuple, Any] = OrderedDict()
    lock = Lock()  # a request serves one call at a time

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        key = tuple(a.shape for a in arrays)
        with lock:
            if key not in requests:
                requests[key] = _compile(core, model, arrays, options(threads))
                while len(requests) > COMPILED_SHAPES:
                    requests.popitem(last=False)
            requests.move_to_end(key)
            return _infer(requests[key], arrays)

    return Session(
        [_spec(p, i) for i, p in enumerate(model.inputs)],
        [_spec(p, i) for i, p in enumerate(model.outputs)],
        run,
    )


def profile(path: Path, threads: int, arrays: list[np.ndarray], runs: int) -> list[LayerTime]:
    """The mean of the runs after the warm-up. OpenVINO tells the mean since it compiled, the first
    and slowest runs among them, in whole microseconds,
    and says that a node did not run where that is none: which nodes ran is told by whether they
    have a kernel, and none takes less than half of one.
    """
    request = _compile(*_read(path), arrays, {**options(threads), "PERF_COUNT": True})
    for _ in range(WARM_UP):
        _infer(request, arrays)
    before = {node.node_name: WARM_UP * node.real_time for node in request.get_profiling_info()}
    for _ in range(runs):
        _infer(request, arrays)
    return [
        # The kernel's name ends in the precision that it reads, as in brgconv_avx512_amx_I8.
        LayerTime(
            node.node_name,
            node.node_type,
            max(
                ((WARM_UP + runs) * node.real_time - before[node.node_name]).total_seconds()
                * 1e3
                / runs,
                LEAST,
            ),
            node.exec_type.lower().endswith(("_i8", "_u8")),
        )
        for node in request.get_profiling_info()
        if not node.exec_type.startswith(("undef", "unknown"))
    ]


def _stable(model: Any, names: set[str], makers: dict[str, str]) -> None:
    """Takes out of the graph what differs from run to run: names counted up over the whole process,
    and the path of the source.

    What makes an output is called after its node in the ONNX file, as everything else is. makers:
    that name, by the output's.
    """
    for i, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() != "Result" and makers.get(node.get_friendly_name()):
            node.set_friendly_name(makers[node.get_friendly_name()])
        if node.get_friendly_name() not in names and re.search(r"_\d+$", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}.{i}")
    model.set_rt_info("", ["conversion_parameters", "input_model"])


def save(onnx_path: Path, folder: Path) -> Path:
    """Converts an ONNX file to OpenVINO's own .xml and .bin, weights as they are (not halved). The
    same file gives the same bytes.
    """
    ov = package()
    onnx_path = Path(onnx_path)
    graph = read_model(onnx_path, weights=False).graph
    try:
        model = ov.convert_model(onnx_path)
    except Exception as error:
        raise unreadable(onnx_path, "openvino", error) from error
    values = [*graph.node, *graph.initializer, *graph.input]
    ends = {o.name for o in graph.output}
    _stable(
        model,
        {v.name for v in values} | {o for n in graph.node for o in n.output},
        {o: n.name for n in graph.node for o in n.output if o in ends},
    )
    target = folder_at(folder) / f"{onnx_path.stem}.xml"
    with tempfile.TemporaryDirectory(prefix=f".{target.stem}.", dir=target.parent) as temporary:
        ov.save_model(model, Path(temporary) / target.name, compress_to_fp16=False)
        for path in (
            target.with_suffix(".bin"),
            target,
        ):  # the graph last: it is never there without its weights
            written = Path(temporary) / path.name
            with written.open("rb") as f:
                os.fsync(f.fileno())
            os.replace(written, path)
    return target


RUNTIME = Runtime("openvino", ".xml", version, files, open, profile, save, off_by=2)
