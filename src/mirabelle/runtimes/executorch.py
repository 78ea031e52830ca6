"""ExecuTorch on the CPU, with XNNPACK's kernels. Its package needs torch, also to run a file."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from mirabelle.base.errors import CaptureError, InputError
from mirabelle.base.files import atomic
from mirabelle.base.quiet import silenced
from mirabelle.runtimes.artifact import Runtime, Session, TensorSpec, alone, require, unreadable

IDENTIFIER = b"ET12"
# a method of the file that returns the names of its inputs, which the format has no place for
NAMES = "input_names"


def version() -> str:
    from importlib import metadata

    require("executorch.runtime", "executorch")
    return metadata.version("executorch")


def open(path: Path, threads: int) -> Session:
    if path.read_bytes()[4:8] != IDENTIFIER:
        raise InputError(
            f"{path} is not an ExecuTorch program; it was damaged or written by something else"
        )
    method, names = _load(path, threads)
    meta = method.metadata
    inputs = [
        _spec(meta.input_tensor_meta(i), names[i] if i < len(names) else f"input{i}")
        for i in range(meta.num_inputs())
    ]
    outputs = [
        _spec(meta.output_tensor_meta(i), f"output{i or ''}") for i in range(meta.num_outputs())
    ]
    key = _Key()
    _methods[key] = method

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        import torch

        with _lock:
            if key not in _methods or _threads() != threads:
                _methods[key] = _load(path, threads)[0]
            # The outputs lie in the method's own memory, which the next call overwrites.
            return [
                o.numpy().copy()
                for o in _methods[key].execute([torch.from_numpy(a) for a in arrays])
            ]

    return Session(inputs, outputs, run)


class _Key:
    """Stands for an open file among `_methods`, and goes with it."""


# All methods of a process share one pool of threads and break when it is made anew for another
# number; they are dropped before, and loaded again.
_methods: WeakKeyDictionary[_Key, Any] = WeakKeyDictionary()
_lock = RLock()


def _threads() -> int:
    return require(
        "executorch.extension.pybindings.portable_lib", "executorch"
    )._threadpool_get_thread_count()


def _load(path: Path, threads: int) -> tuple[Any, list[str]]:
    """The network of a file, ready to run with so many threads, and the names of its inputs."""
    with _lock, silenced():
        runtime = require("executorch.runtime", "executorch")
        bindings = require("executorch.extension.pybindings.portable_lib", "executorch")
        if _threads() != threads:
            _methods.clear()
            gc.collect()
            bindings._unsafe_reset_threadpool(threads)
        try:
            program = runtime.Runtime.get().load_program(
                path, verification=runtime.Verification.InternalConsistency
            )
            names = (
                program.load_method(NAMES).execute([])[0].split("\n")
                if NAMES in program.method_names
                else []
            )
            return program.load_method("forward"), names
        except Exception as error:
            raise unreadable(path, "executorch", error) from error


def _spec(meta: Any, name: str) -> TensorSpec:
    import torch

    kinds = {
        1: torch.int8,
        0: torch.uint8,
        2: torch.int16,
        3: torch.int32,
        4: torch.int64,
        5: torch.float16,
        6: torch.float32,
        7: torch.float64,
        11: torch.bool,
    }
    kind = kinds.get(int(meta.dtype()))
    return TensorSpec(
        name,
        tuple(meta.sizes()),
        str(kind).removeprefix("torch.") if kind else f"type {meta.dtype()}",
    )


def convert(program: Any, sites: Sequence[str], path: Path) -> Path:
    """Writes the .pte file of an exported program, float or in PT2E form, with the grids that it
    has.

    XNNPACK's integer kernels give integers only: a last linear layer whose result has no grid is
    computed, and its weights stored, in float.
    """
    with silenced(), _fewer_logs():
        exir = require("executorch.exir", "executorch")
        partition = require(
            "executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch"
        )
        from mirabelle.base.data import Batch

        args, kwargs = program.example_inputs
        names = Batch(tuple(args), dict(kwargs), None).names
        try:
            edge = exir.to_edge_transform_and_lower(
                _ready(program),
                partitioner=[partition.XnnpackPartitioner()],
                constant_methods={NAMES: "\n".join(names)},
            )
            content = edge.to_executorch().buffer
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise CaptureError(
                f"executorch cannot convert this network: {type(error).__name__}: "
                f"{lines[0] if lines else ''}"
            ) from error
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
    """A PT2E program as XNNPACK's partitioner takes it: float weights where a layer's result has no
    grid, one grid for all parts of a concatenation, and a dequantize operator of its own for each
    reader (what one integer layer absorbs would be missing to the others).
    """
    import torch

    ops = torch.ops.quantized_decomposed
    quantize, dequantize = ops.quantize_per_tensor.default, ops.dequantize_per_tensor.default
    if not any(n.target is quantize for n in program.graph.nodes):
        return program
    module = program.module(check_guards=False)
    graph = module.graph
    for node in [n for n in graph.nodes if n.target is ops.dequantize_per_channel.default]:
        if not any(_has_grid(layer, quantize) for layer in node.users):
            tensors = [_tensor(module, str(a.target)) for a in node.args[:3]]
            name = f"{str(node.args[0].target).replace('.', '_')}_as_float"
            module.register_parameter(
                name, torch.nn.Parameter(node.target(*tensors, *node.args[3:]), requires_grad=False)
            )
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(name))
            graph.erase_node(node)
    for node in [
        n for n in graph.nodes if n.target is torch.ops.aten.cat.default and len(n.users) == 1
    ]:
        after = next(iter(node.users))
        for part in set(node.args[0]) if after.target is quantize else ():
            if part.target is not dequantize or part.args[1:] != after.args[1:]:
                with graph.inserting_before(node):
                    moved = graph.call_function(
                        dequantize,
                        (graph.call_function(quantize, (part, *after.args[1:])), *after.args[1:]),
                    )
                node.replace_input_with(part, moved)
    for node in [n for n in graph.nodes if n.target is dequantize]:
        for reader in list(node.users)[1:]:
            with graph.inserting_before(reader):
                reader.replace_input_with(node, graph.call_function(dequantize, node.args))
    graph.eliminate_dead_code()
    module.recompile()
    args, kwargs = program.example_inputs
    return torch.export.export(module, args, kwargs)


def _tensor(module: Any, name: str) -> Any:
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def _has_grid(layer: Any, quantize: Any) -> bool:
    """Whether a layer's result, or that of the rectifier that alone reads it, is quantized."""
    users = list(layer.users)
    if len(users) == 1 and users[0].target is not quantize:
        users = list(users[0].users)
    return len(users) == 1 and users[0].target is quantize


RUNTIME = Runtime(
    "executorch", ".pte", version, alone, open, None, convert=convert, free_batch=False
)
