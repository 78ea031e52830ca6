"""Where exported networks run. A new runtime is a file with a `RUNTIME` and an entry here; none is
imported before it is used.
"""

from __future__ import annotations

from pathlib import Path

from mirabelle.runtimes import (
    executorch,
    litert,
    mnn,
    ncnn,
    onnxruntime,
    onnxruntime_gpu,
    openvino,
    sparse,
    tensorrt,
)
from mirabelle.runtimes.artifact import Artifact, LayerTime, Runtime, TensorSpec, check_runs_here

__all__ = [
    "RUNTIMES",
    "Artifact",
    "LayerTime",
    "Runtime",
    "TensorSpec",
    "check_runs_here",
    "load",
    "runtime_of",
]

_ALL = (
    onnxruntime.RUNTIME,
    onnxruntime.MOBILE,
    openvino.RUNTIME,
    litert.RUNTIME,
    executorch.RUNTIME,
    ncnn.RUNTIME,
    mnn.RUNTIME,
    sparse.RUNTIME,
    tensorrt.RUNTIME,
    onnxruntime_gpu.ON_CUDA,
    onnxruntime_gpu.ON_TENSORRT,
)
RUNTIMES: dict[str, Runtime] = {r.name: r for r in _ALL}


def runtime_of(path: str | Path) -> str | None:
    """The name of the first runtime whose files end as `path` does; None where none does."""
    return next((name for name, r in RUNTIMES.items() if str(path).endswith(r.suffix)), None)


def load(path: str | Path, runtime: str, threads: int = 1) -> Artifact:
    """The exported network at `path`, opened by `runtime` (a name of `RUNTIMES`).

    Raises `InputError` for an unknown runtime, and for a file that is missing, of another kind or
    damaged; `MissingRuntimeError` where the runtime is not installed or does not run on this
    machine.
    """
    artifact = Artifact(Path(path), runtime, threads)
    _ = artifact.session
    return artifact
