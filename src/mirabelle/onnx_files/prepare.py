"""The file as it is worked on, and what ONNX Runtime gives for each of its values."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import ModelProto

from mirabelle.base.errors import InputError, first_line
from mirabelle.onnx_files.outside import outer_names
from mirabelle.runtimes.artifact import unreadable
from mirabelle.runtimes.onnx_model import opset_of, read_model

OPSET = 17  # what files of an opset before per-channel scales are converted to
NAMED_CONSTANTS = 4  # the first version of files whose constants are not inputs, too


def prepared(path: str | Path) -> ModelProto:
    """The file as it is worked on: functions inlined, constants folded and batch norms and biases
    merged into convolutions by ONNX Runtime's own basic rules, every node with a name of its own,
    of an opset that has scales per channel. Raises `InputError` where it cannot be read or run.
    """
    path = Path(path)
    model = _opened(path)
    version = opset_of(model)
    if version < 13:
        try:
            model = onnx.version_converter.convert_version(model, OPSET)
        except Exception as error:
            raise InputError(
                f"{path} is of opset {version}, before scales per channel, and onnx cannot "
                f"convert it to {OPSET}: {error}"
            ) from error
    model = _simplified(model, path)
    known = {t.name for t in model.graph.initializer}
    if free := [
        i.name for i in model.graph.input if i.name in known
    ]:  # inputs of old files that are constants
        kept = [i for i in model.graph.input if i.name not in free]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        model.ir_version = max(model.ir_version, NAMED_CONSTANTS)
    name_nodes(model)
    return model


def as_it_is(path: str | Path) -> tuple[ModelProto, frozenset[int]]:
    """The file with nothing changed but functions, which are inlined, and the names of nodes that
    have none or another's; and the indices of these nodes. Raises `InputError` where it cannot be
    read.
    """
    model = _opened(Path(path))
    return model, name_nodes(model)


def _opened(path: Path) -> ModelProto:
    model = read_model(path)
    if not model.graph.output:
        raise unreadable(path, "onnx", ValueError("it holds no graph"))
    if not opset_of(model):
        raise unreadable(path, "onnx", ValueError("it says no opset"))
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _sort(model.graph)
    made = {o for n in model.graph.node for o in n.output} | _given(model.graph)
    if lost := [o.name for o in model.graph.output if o.name not in made]:
        raise unreadable(path, "onnx", ValueError(f"no node makes its output {lost[0]!r}"))
    return model


def _given(graph: onnx.GraphProto) -> set[str]:
    return {v.name for values in (graph.input, graph.initializer) for v in values}


def _sort(graph: onnx.GraphProto) -> None:
    """Puts nodes after those whose values they read, in place: runtimes take them in any order. A
    graph that goes in circles stays as it is, for a runtime to refuse.
    """
    makers = {o: i for i, n in enumerate(graph.node) for o in n.output if o}
    needs = [{makers[v] for v in outer_names(n) if v in makers} for n in graph.node]
    if all(max(before, default=-1) < i for i, before in enumerate(needs)):
        return
    try:
        order = list(TopologicalSorter(dict(enumerate(needs))).static_order())
    except CycleError:
        return
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([nodes[i] for i in order])


def name_nodes(model: ModelProto) -> frozenset[int]:
    """Gives every node a name of its own, in place; the indices of those that had none."""
    taken: set[str] = set()
    renamed = set()
    for i, node in enumerate(model.graph.node):
        base = node.name or f"{node.op_type}_{i}"
        while base in taken:
            base = f"{base}_{i}"
        if node.name != base and not node.name:
            renamed.add(i)
        node.name = base
        taken.add(base)
    return frozenset(renamed)


def _simplified(model: ModelProto, path: Path) -> ModelProto:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        source = Path(folder) / "source.onnx"
        onnx.save(
            model, source, save_as_external_data=model.ByteSize() > 2**30, location="source.data"
        )
        try:
            onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise InputError(f"ONNX Runtime does not open {path}: {first_line(error)}") from error
        return onnx.load(options.optimized_model_filepath)


def takes_any_batch(proto: ModelProto, inputs: Iterable[str]) -> bool:
    """Whether the file leaves the first dimension of each of these inputs open."""
    shapes = [i.type.tensor_type.shape.dim for i in proto.graph.input if i.name in inputs]
    return all(dims and not dims[0].HasField("dim_value") for dims in shapes)


def with_open_batch(proto: ModelProto, example: dict[str, np.ndarray]) -> tuple[ModelProto, int]:
    """The file as it is written, or a copy that takes as many samples as the example has, where it
    was written for another number; and that number, 0 where nothing had to be opened. Whether its
    nodes take them is for a run to say (`check_opened`).
    """
    constants = {t.name for t in proto.graph.initializer}
    fixed = {
        value.name: value.type.tensor_type.shape.dim[0].dim_value
        for value in proto.graph.input
        if value.name not in constants and len(value.type.tensor_type.shape.dim)
    }
    written = next((n for n in fixed.values() if n), 0)
    sizes = {len(example[name]) for name, n in fixed.items() if n and n == written}
    if not written or sizes == {written} or len(sizes) != 1:
        return proto, 0
    copy = ModelProto()
    copy.CopyFrom(proto)
    for value in copy.graph.input:
        if fixed.get(value.name) == written:
            value.type.tensor_type.shape.dim[0].dim_param = "samples"
    del copy.graph.value_info[:]  # these say the old sizes
    return copy, written


def check_opened(
    proto: ModelProto, written: int, values: dict[str, np.ndarray], size: int, path: Path
) -> None:
    """`InputError` where an output that had `written` samples has not one for each of `size`."""
    for output in proto.graph.output:
        dims = output.type.tensor_type.shape.dim
        value = values.get(output.name)
        if len(dims) and dims[0].dim_value == written and value is not None:
            if not value.ndim or len(value) != size:
                raise InputError(fixed_batch(path, written, size))


def fixed_batch(path: Path, written: int, size: int) -> str:
    """What to say of a file whose nodes have its number of samples in them."""
    return (
        f"{path} is written for batches of {written}, its nodes too, and does not take {size}; "
        f"give batches of {written} (on the command line --batch {written}), or write it again "
        "with an open batch"
    )


def run_all(proto: ModelProto, example: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Every value of the graph on the example, by ONNX Runtime."""
    import onnxruntime

    copy = ModelProto()
    copy.CopyFrom(proto)
    names = [o for n in copy.graph.node for o in n.output if o]
    del copy.graph.output[:]
    copy.graph.output.extend([onnx.ValueInfoProto(name=n) for n in names])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    )  # what is fused has no value of its own
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "all.onnx"
        onnx.save(copy, file, save_as_external_data=copy.ByteSize() > 2**30, location="all.data")
        try:
            session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
            found: Any = session.run(None, example)
            return {**example, **dict(zip(names, found))}
        except Exception as error:
            shapes = ", ".join(f"{n} {a.shape} {a.dtype}" for n, a in example.items())
            raise InputError(f"{path} does not run on {shapes}: {first_line(error)}") from error
