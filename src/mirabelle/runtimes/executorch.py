"""ExecuTorch on the CPU, with XNNPACK's kernels. Its package needs torch, also to run a file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from mirabelle.errors import CaptureError, InputError
from mirabelle.files import atomic
from mirabelle.muffle import silenced
from mirabelle.runtimes.artifact import Runtime, Session, TensorSpec, check_present, require, unreadable

IDENTIFIER = b"ET12"
NAMES = "input_names"  # a method of the file that returns the names of its inputs, which the format has no place for


def version() -> str:
    from importlib import metadata

    require("executorch.runtime", "executorch")
    return metadata.version("executorch")


def files(path: Path) -> list[Path]:
    """The .pte alone."""
    check_present([path])
    return [path]


def open(path: Path, threads: int) -> Session:
    runtime = require("executorch.runtime", "executorch")
    bindings = require("executorch.extension.pybindings.portable_lib", "executorch")
    if path.read_bytes()[4:8] != IDENTIFIER:
        raise InputError(f"{path} is not an ExecuTorch program; it was damaged or written by something else")
    with silenced():
        try:
            program = runtime.Runtime.get().load_program(path, verification=runtime.Verification.InternalConsistency)
            method = program.load_method("forward")
            names = program.load_method(NAMES).execute([])[0].split("\n") if NAMES in program.method_names else []
        except Exception as error:
            raise unreadable(path, "executorch", error) from error
    meta = method.metadata
    inputs = [_spec(meta.input_tensor_meta(i), names[i] if i < len(names) else f"input{i}") for i in range(meta.num_inputs())]
    outputs = [_spec(meta.output_tensor_meta(i), f"output{i or ''}") for i in range(meta.num_outputs())]
    lock = Lock()  # a method serves one call at a time, and all methods share the process's threads

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        import torch

        with lock:
            if bindings._threadpool_get_thread_count() != threads:
                bindings._unsafe_reset_threadpool(threads)
            # The outputs lie in the method's own memory, which the next call overwrites.
            return [o.numpy().copy() for o in method.execute([torch.from_numpy(a) for a in arrays])]

    return Session(inputs, outputs, run)


def _spec(meta: Any, name: str) -> TensorSpec:
    import torch

    kinds = {
        1: torch.int8, 0: torch.uint8, 2: torch.int16, 3: torch.int32, 4: torch.int64, 5: torch.float16, 6: torch.float32, 7: torch.float64, 11: torch.bool,
    }  # fmt: skip
    kind = kinds.get(int(meta.dtype()))
    return TensorSpec(name, tuple(meta.sizes()), str(kind).removeprefix("torch.") if kind else f"type {meta.dtype()}")


def convert(program: Any, sites: Sequence[str], path: Path) -> Path:
    """Writes the .pte file of an exported program, float or in PT2E form, with the grids that it has.

    XNNPACK's integer kernels give integers only: a last linear layer whose result has no grid is computed, and its weights stored, in float.
    """
    with silenced(), _fewer_logs():
        exir = require("executorch.exir", "executorch")
        partition = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
        from mirabelle.data import Batch

        args, kwargs = program.example_inputs
        names = Batch(tuple(args), dict(kwargs), None).names
        try:
            edge = exir.to_edge_transform_and_lower(
                _ready(program), partitioner=[partition.XnnpackPartitioner()], constant_methods={NAMES: "\n".join(names)}
            )
            content = edge.to_executorch().buffer
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise CaptureError(f"executorch cannot convert this network: {type(error).__name__}: {lines[0] if lines else ''}") from error
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return path


@contextmanager
def _fewer_logs() -> Iterator[None]:
    """Its partitioner logs every node that it does not take."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def _ready(program: Any) -> Any:
    """The program with float weights where a layer's result has no grid."""
    import torch

    ops = torch.ops.quantized_decomposed
    stored = [n for n in program.graph.nodes if n.target is ops.dequantize_per_channel.default]
    loose = [n for n in stored if not any(_has_grid(layer, ops.quantize_per_tensor.default) for layer in n.users)]
    if not loose:
        return program
    module = program.module(check_guards=False)
    for node in [n for n in module.graph.nodes if n.name in {m.name for m in loose}]:
        tensors = [_tensor(module, str(a.target)) for a in node.args[:3]]
        name = f"{str(node.args[0].target).replace('.', '_')}_as_float"
        module.register_parameter(name, torch.nn.Parameter(node.target(*tensors, *node.args[3:]), requires_grad=False))
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.get_attr(name))
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    args, kwargs = program.example_inputs
    return torch.export.export(module, args, kwargs)


def _tensor(module: Any, name: str) -> Any:
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def _has_grid(layer: Any, quantize: Any) -> bool:
    """Whether a layer's result, or that of the rectifier that alone reads it, is quantised."""
    users = list(layer.users)
    if len(users) == 1 and users[0].target is not quantize:
        users = list(users[0].users)
    return len(users) == 1 and users[0].target is quantize


RUNTIME = Runtime("executorch", ".pte", version, files, open, None, convert=convert)
