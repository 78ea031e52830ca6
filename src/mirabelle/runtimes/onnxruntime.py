"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from mirabelle.base.errors import InputError
from mirabelle.base.files import atomic, copy_file
from mirabelle.runtimes.artifact import (
    LayerTime,
    Runtime,
    Session,
    TensorSpec,
    alone,
    require,
    unreadable,
)
from mirabelle.runtimes.onnx_model import data_files, read_model

TYPES = {"float": "float32", "double": "float64", "bool": "bool", "float16": "float16"} | {
    f"{u}int{bits}": f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)
}
# These read floats and multiply 8-bit integers; every other 8-bit operator also reads 8 bits.
INT8_INSIDE = {"DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
WARM_UP = 5


def version() -> str:
    return require("onnxruntime", "onnxruntime").__version__


def files(path: Path) -> list[Path]:
    """The ONNX file and the files of external data that it names. These must lie in its folder or
    below.
    """
    return [path, *data_files(read_model(path, weights=False), path)]


Providers = Sequence[tuple[str, Mapping[str, str]]]
ON_CPU: Providers = [("CPUExecutionProvider", {})]


def _session(path: Path, threads: int, providers: Providers, profile: str | None = None) -> Any:
    """`InputError` where the first provider does not start: ONNX Runtime itself would go on with
    the next one without a word.
    """
    ort = require("onnxruntime", "onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # it raises what it would log
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    try:
        session = ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # its exceptions have no base class of their own
        raise unreadable(path, "onnxruntime", error) from error
    if (wanted := providers[0][0]) not in session.get_providers():
        raise InputError(
            f"{path}: {wanted} did not start (ONNX Runtime runs "
            f"{', '.join(session.get_providers())}); look for a library that it lacks"
        )
    return session


def _spec(value: Any) -> TensorSpec:
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(d if isinstance(d, int) and d >= 0 else None for d in value.shape)
    return TensorSpec(value.name, shape, TYPES.get(kind) or kind)


def check(path: Path) -> None:
    """Refuses external data outside the file's folder, which ONNX Runtime itself would follow."""
    if path.suffix == RUNTIME.suffix:
        read_model(path, weights=False)


def open(path: Path, threads: int, providers: Providers = ON_CPU) -> Session:
    session = _session(path, threads, providers)
    inputs = [_spec(v) for v in session.get_inputs()]
    return Session(
        inputs,
        [_spec(v) for v in session.get_outputs()],
        lambda arrays: session.run(None, {s.name: a for s, a in zip(inputs, arrays)}),
    )


def _int8(event: dict) -> bool | None:
    """Whether the node's first input is of 8 bits. A DequantizeLinear reads them too, but computes
    in floating point.
    """
    operator, types = event["op_name"], event.get("input_type_shape")
    if operator in INT8_INSIDE:
        return True
    if operator == "DequantizeLinear":
        return False
    return None if not types else next(iter(types[0])) in ("int8", "uint8")


def profile(
    path: Path, threads: int, arrays: list[np.ndarray], runs: int, providers: Providers = ON_CPU
) -> list[LayerTime]:
    with tempfile.TemporaryDirectory() as folder:
        session = _session(path, threads, providers, str(Path(folder) / "profile"))
        feed = {v.name: a for v, a in zip(session.get_inputs(), arrays)}
        for _ in range(WARM_UP + runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes: dict[tuple, list[dict]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes.setdefault((event["args"]["node_index"], event["name"]), []).append(event)
    return [
        LayerTime(
            name.removesuffix("_kernel_time"),
            times[-1]["args"]["op_name"],
            median(t["dur"] for t in times[-runs:])
            / 1e3,  # microseconds; the first ones are the warm-up
            _int8(times[-1]["args"]),
        )
        for (_, name), times in nodes.items()
    ]


def save(onnx_path: Path, folder: Path) -> Path:
    """Copies the ONNX file and its external data into `folder`, the main file last, so that it
    never names data that is not there.
    """
    target = Path(folder) / Path(onnx_path).name
    if target.suffix != ".onnx":
        raise InputError(f"{onnx_path} does not end in .onnx")
    for source in reversed(files(Path(onnx_path))):
        copy = target.parent / source.relative_to(Path(onnx_path).parent)
        if copy.resolve() != source.resolve():
            copy_file(source, copy)
    return target


def _save_mobile(onnx_path: Path, folder: Path) -> Path:
    """Writes the graph, fused as for Arm, in the format that ONNX Runtime's small builds for phones
    read; they cannot parse ONNX.
    """
    ort = require("onnxruntime", "onnxruntime")
    found = files(Path(onnx_path))
    target = Path(folder) / f"{found[0].stem}.ort"
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry(
        "session.qdqisint8allowed", "1"
    )  # its default on x86 would store uint8
    with atomic(target) as temporary:
        options.optimized_model_filepath = str(temporary)
        try:  # without the layout of x86's vector units
            ort.InferenceSession(
                str(found[0]),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["NchwcTransformer"],
            )
        except Exception as error:
            raise unreadable(found[0], "onnxruntime", error) from error
    return target


RUNTIME = Runtime("onnxruntime", ".onnx", version, files, open, profile, save, check=check)
MOBILE = Runtime("onnxruntime-mobile", ".ort", version, alone, open, profile, _save_mobile)
