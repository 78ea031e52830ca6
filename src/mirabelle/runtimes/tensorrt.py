"""TensorRT for NVIDIA GPUs, by the TensorRT-RTX package: engines are built ahead of time and
without a GPU, and run where there is one.

The package is proprietary, and installed for those who ask for it (`pip install
mirabelle[tensorrt]`). Files come from Q/DQ form after the rules of `tensorrt_rules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirabelle.base.errors import InputError
from mirabelle.base.files import atomic
from mirabelle.runtimes.artifact import Runtime, Session, TensorSpec, alone, require
from mirabelle.runtimes.tensorrt_rules import lint

# What one engine is built for where no GPU says otherwise: Ampere (A100; RTX 30) and Ada (RTX 40).
CAPABILITIES = (80, 86, 89)
LARGEST_BATCH = 64
SHOWN = 5


def _package() -> Any:
    return require("tensorrt_rtx_bindings", "tensorrt")


def version() -> str:
    return _package().__version__


def capabilities() -> list[int]:
    """The compute capabilities that the installed package builds for, as in 86 for 8.6."""
    return sorted(int(v) for v in _package().ComputeCapability.__members__.values() if int(v) > 1)


def check(onnx_path: Path) -> None:
    """`InputError` with the rules of explicit quantization that a file breaks."""
    broken = lint(onnx_path)
    if broken:
        shown = "; ".join(str(v) for v in broken[:SHOWN]) + (
            f"; and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        )
        raise InputError(
            f"{onnx_path.name} breaks TensorRT's rules for quantized files: {shown}. Quantize "
            "with target='tensorrt'"
        )


def build(onnx_path: str | Path, wanted: Sequence[int] | None = None) -> bytes:
    """An engine for these compute capabilities (default: this machine's GPU, or `CAPABILITIES`
    without one), open batches from 1 to 64.

    Raises `InputError` with the parser's own words where it refuses the file, for a file that
    breaks the rules, and for capabilities that the package does not build.
    """
    onnx_path = Path(onnx_path)
    check(onnx_path)
    trt = _package()
    wanted = list(wanted) if wanted is not None else ([] if _has_gpu() else list(CAPABILITIES))
    if unknown := sorted(set(wanted) - set(capabilities())):
        raise InputError(
            f"TensorRT-RTX {version()} builds for compute capabilities "
            f"{', '.join(map(str, capabilities()))}, not {unknown[0]}"
        )
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise InputError(
            f"TensorRT's parser refuses {onnx_path.name}: "
            f"{'; '.join(parser.get_error(i).desc() for i in range(parser.num_errors))}"
        )
    config = builder.create_builder_config()
    if wanted:
        config.num_compute_capabilities = len(wanted)
        for i, capability in enumerate(wanted):
            config.set_compute_capability(trt.ComputeCapability(capability), i)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    if any(-1 in tuple(t.shape) for t in inputs):
        profile = builder.create_optimization_profile()
        for t in inputs:
            shapes = [
                [size if d == -1 and i == 0 else max(d, 1) for i, d in enumerate(t.shape)]
                for size in (1, 1, LARGEST_BATCH)
            ]
            if -1 in tuple(t.shape)[1:]:
                raise InputError(
                    f"input {t.name!r} of {onnx_path.name} has open dimensions besides its "
                    "batch; export it with fixed ones"
                )
            profile.set_shape(t.name, *shapes)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise InputError(
            f"TensorRT builds no engine of {onnx_path.name}: {'; '.join(logger.messages[-3:])}"
        )
    return bytes(engine)


def _logger(trt: Any) -> Any:
    class Kept(trt.ILogger):
        """Keeps what goes wrong and prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.messages.append(message)

    return Kept()


def save(onnx_path: Path, folder: Path) -> Path:
    """Writes the engine, and beside it the Q/DQ file that it was made from, for users whose
    TensorRT builds its own.
    """
    onnx_path = Path(onnx_path)
    if not onnx_path.is_file():
        raise InputError(f"{onnx_path} is not there")
    engine = build(onnx_path)
    target = Path(folder) / f"{onnx_path.stem}.engine"
    if onnx_path.resolve() != target.with_suffix(".onnx").resolve():
        with atomic(target.with_suffix(".onnx")) as temporary:
            Path(temporary).write_bytes(onnx_path.read_bytes())
    with atomic(target) as temporary:
        Path(temporary).write_bytes(engine)
    return target


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def open(path: Path, threads: int) -> Session:
    """On the first GPU, through torch's buffers. Raises `InputError` for an engine of another GPU
    or version.
    """
    import torch

    trt = _package()
    logger = _logger(trt)
    engine = trt.Runtime(logger).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise InputError(
            f"{path} cannot be opened by TensorRT-RTX {version()}: "
            f"{'; '.join(logger.messages[-2:]) or 'it was damaged'}"
        )
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    is_input = {n: engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
    types = {
        trt.float32: "float32",
        trt.float16: "float16",
        trt.int8: "int8",
        trt.int32: "int32",
        trt.int64: "int64",
        trt.bool: "bool",
        trt.uint8: "uint8",
    }
    kinds = {n: types[engine.get_tensor_dtype(n)] for n in names}

    def spec(name: str) -> TensorSpec:
        return TensorSpec(
            name, tuple(None if d == -1 else d for d in engine.get_tensor_shape(name)), kinds[name]
        )

    inputs, outputs = ([n for n in names if is_input[n] == side] for side in (True, False))

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        stream = torch.cuda.current_stream()
        held = {n: torch.from_numpy(a).cuda() for n, a in zip(inputs, arrays)}
        for name in inputs:
            context.set_input_shape(name, tuple(held[name].shape))
        held |= {
            n: torch.empty(
                tuple(context.get_tensor_shape(n)), dtype=getattr(torch, kinds[n]), device="cuda"
            )
            for n in outputs
        }
        for name, tensor in held.items():
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(stream.cuda_stream):
            raise InputError(f"TensorRT did not run {path.name}: {'; '.join(logger.messages[-2:])}")
        stream.synchronize()
        return [held[n].cpu().numpy() for n in outputs]

    return Session([spec(n) for n in inputs], [spec(n) for n in outputs], run)


def _absent() -> str | None:
    return None if _has_gpu() else "TensorRT's engines run on NVIDIA GPUs, and torch finds none"


RUNTIME = Runtime("tensorrt", ".engine", version, alone, open, None, save, absent=_absent)
