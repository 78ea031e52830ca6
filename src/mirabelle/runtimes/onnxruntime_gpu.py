"""ONNX Runtime on NVIDIA GPUs: the same ONNX file, and beside it the options of its providers, for
those who have its GPU build (`pip install onnxruntime-gpu`).

`<name>.providers.json` holds what `onnxruntime.InferenceSession` takes as `providers`, in order of
preference: [[provider, options], ...]. It may be edited; a file is opened with what it says. Paths
in it are relative to the file.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from mirabelle.base.errors import InputError
from mirabelle.base.files import read_json, write_json
from mirabelle.runtimes import onnxruntime as cpu
from mirabelle.runtimes.artifact import LayerTime, Runtime, Session, require
from mirabelle.runtimes.onnx_model import read_model
from mirabelle.runtimes.tensorrt import LARGEST_BATCH, check

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"


def _available() -> list[str]:
    return require("onnxruntime", "onnxruntime").get_available_providers()


def _absent(provider: str) -> str | None:
    if provider in _available():
        return None
    return (
        f"this build of ONNX Runtime has no {provider}; pip install onnxruntime-gpu in its "
        "place, on a machine with an NVIDIA GPU"
    )


def options(path: Path, provider: str) -> list[list[Any]]:
    """The providers for an ONNX file, in order of preference: this one, and those that run what it
    leaves over.

    CUDA in full float32, where the provider's own default is TF32, with a mantissa of 10 bits; it
    has no kernels for convolutions in Q/DQ form, which it runs in float between the same grids.
    TensorRT in int8 where the file has Q/DQ, by these scales, with no calibration table; engines
    and their timings are kept beside the file, for batches from 1 to 64 where the batch is open.
    Other open dimensions get no profile: TensorRT builds anew for sizes that it has not seen.
    """
    found: list[list[Any]] = [
        [CUDA, {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}],
        [CPU, {}],
    ]
    if provider == CUDA:
        return found
    model = read_model(path, weights=False)
    quantized = any(n.op_type == "QuantizeLinear" for n in model.graph.node)
    chosen = {
        "trt_int8_enable": str(int(quantized)),
        "trt_engine_cache_enable": "1",
        "trt_timing_cache_enable": "1",
        "trt_engine_cache_path": f"{path.stem}.engines",
        "trt_timing_cache_path": f"{path.stem}.engines",
    }
    constants = {i.name for i in model.graph.initializer}
    shapes = {
        i.name: [
            d.dim_value if d.HasField("dim_value") else None for d in i.type.tensor_type.shape.dim
        ]
        for i in model.graph.input
        if i.name not in constants
    }
    if shapes and all(s and s[0] is None and None not in s[1:] for s in shapes.values()):
        for key, size in (("min", 1), ("opt", 1), ("max", LARGEST_BATCH)):
            chosen[f"trt_profile_{key}_shapes"] = ",".join(
                f"{n}:{'x'.join(str(size if d is None else d) for d in s)}"
                for n, s in shapes.items()
            )
    return [[TENSORRT, chosen], *found]


def providers_file(path: Path) -> Path:
    return path.with_suffix(".providers.json")


def files(path: Path) -> list[Path]:
    found = cpu.files(path)
    own = providers_file(path)
    return [*found, own] if own.is_file() else found


def save(onnx_path: Path, folder: Path, provider: str) -> Path:
    """Copies the ONNX file and writes the providers' options beside it. For TensorRT, `InputError`
    with the rules of explicit quantization that the file breaks.
    """
    if provider == TENSORRT:
        check(Path(onnx_path))
    target = cpu.save(onnx_path, folder)
    write_json(providers_file(target), options(target, provider))
    return target


def _providers(path: Path, provider: str) -> list[tuple[str, dict[str, str]]]:
    own = providers_file(path)
    try:
        listed = read_json(own) if own.is_file() else options(path, provider)
        found = [
            (str(name), {str(k): str(v) for k, v in chosen.items()}) for name, chosen in listed
        ]
        if not found:
            raise ValueError("it is empty")
    except (
        json.JSONDecodeError,
        UnicodeDecodeError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise InputError(
            f"{own} is damaged ({error}); expected [[provider, {{option: value}}], ...]; export "
            "the network again"
        ) from error
    for _, chosen in found:
        chosen |= {k: str(path.parent / v) for k, v in chosen.items() if k.endswith("_path")}
    return found


def open(path: Path, threads: int, provider: str) -> Session:
    return cpu.open(path, threads, _providers(path, provider))


def profile(path: Path, threads: int, arrays: list, runs: int, provider: str) -> list[LayerTime]:
    return cpu.profile(path, threads, arrays, runs, _providers(path, provider))


def _runtime(name: str, provider: str) -> Runtime:
    own = {"provider": provider}
    return Runtime(
        name,
        ".onnx",
        cpu.version,
        files,
        partial(open, **own),
        partial(profile, **own),
        partial(save, **own),
        check=cpu.check,
        absent=partial(_absent, provider),
    )


ON_CUDA = _runtime("onnxruntime-cuda", CUDA)
ON_TENSORRT = _runtime("onnxruntime-tensorrt", TENSORRT)
