"""LiteRT (TensorFlow Lite) on the CPU, with XNNPACK's kernels. Networks are converted by
litert-torch; int8 ones keep our own grids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from mirabelle.base.errors import CaptureError, InputError, warn
from mirabelle.base.files import atomic
from mirabelle.base.quiet import silenced
from mirabelle.runtimes import flatbuffer as tflite
from mirabelle.runtimes import tflite_sparse
from mirabelle.runtimes.artifact import Runtime, Session, TensorSpec, alone, require, unreadable

IDENTIFIER = b"TFL3"
# Operators whose kernels take any grid for their result.
ANY_GRID = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MEAN")


def version() -> str:
    from importlib import metadata

    require("ai_edge_litert.interpreter", "litert")
    return metadata.version("ai-edge-litert")


def open(path: Path, threads: int) -> Session:
    interpreter_module = require("ai_edge_litert.interpreter", "litert")
    if path.read_bytes()[4:8] != IDENTIFIER:
        raise InputError(
            f"{path} is not a TFLite file; it was damaged or written by something else"
        )
    with silenced():
        try:
            interpreter = interpreter_module.Interpreter(str(path), num_threads=threads)
            interpreter.allocate_tensors()
        except Exception as error:
            raise unreadable(path, "litert", error) from error
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    lock = Lock()  # an interpreter serves one call at a time

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        with lock:
            for detail, array in zip(inputs, arrays):
                interpreter.set_tensor(detail["index"], array)
            interpreter.invoke()
            return [interpreter.get_tensor(detail["index"]) for detail in outputs]

    return Session([_spec(d) for d in inputs], [_spec(d) for d in outputs], run)


def _spec(detail: dict[str, Any]) -> TensorSpec:
    return TensorSpec(
        detail["name"], tuple(int(s) for s in detail["shape"]), np.dtype(detail["dtype"]).name
    )


def convert(program: Any, sites: Sequence[str], path: Path) -> Path:
    """Writes the TFLite file of an exported program, float or in PT2E form.

    Scales, zero points and integers are those of the program. Inputs and outputs are float, NCHW
    where the network's are. A last linear layer whose result has no grid keeps int8 weights, which
    the interpreter turns into floats once, when it opens the file.
    """
    from mirabelle.base.data import Batch

    with silenced():
        litert_torch = require("litert_torch", "litert")
    args, kwargs = program.example_inputs
    batch = Batch(tuple(args), dict(kwargs), None)
    network, weights = _for_converter(program)
    found = _sites(network, sites)
    wide = any(t.element_size() == 8 for t in batch.tensors)
    settings = {"quant_config": _keep_grids()} if weights else {}
    with silenced():
        try:
            model = tflite.read(
                litert_torch.convert(
                    network, batch.args, batch.kwargs, enable_x64=wide, **settings
                ).model_content()
            )
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise CaptureError(
                f"litert_torch cannot convert this network: {type(error).__name__}: "
                f"{lines[0] if lines else ''}"
            ) from error
    graph = model.subgraphs[0]
    _order_ends(model, graph, batch)
    _name(model, graph, found)
    _float_ends(model, graph, batch.names)
    _small_weights(model, graph, weights)
    _without_zeros(model, graph)
    tflite.prune(model, graph)
    tflite.sign(model, graph)
    with atomic(path) as temporary:
        temporary.write_bytes(tflite.write(model))
    return path


def _keep_grids() -> Any:
    """The converter's setting for graphs that hold quantize and dequantize operators already; the
    quantizer in it is never run.
    """
    config = require("litert_torch.quantize.quant_config", "litert")
    quantizer = require("litert_torch.quantize.pt2e_quantizer", "litert")
    return config.QuantConfig(
        pt2e_quantizer=quantizer.PT2EQuantizer().set_global(
            quantizer.get_symmetric_quantization_config(is_per_channel=True)
        )
    )


def _for_converter(program: Any) -> tuple[Any, dict[bytes, tuple[np.ndarray, np.ndarray]]]:
    """The program's module as the converter reads it: stored integers as floats after a quantize
    operator.

    The converter names values after the modules that nodes come from; every node gets a name of its
    own there, `<module path>#<node>#`. Also the integers and scales of each stored weight by the
    bytes of its floats.
    """
    import torch

    ops = torch.ops.quantized_decomposed
    module = program.module(check_guards=False)
    graph, weights = module.graph, {}
    for node in [
        n
        for n in graph.nodes
        if n.target in (ops.dequantize_per_channel.default, ops.dequantize_per_tensor.default)
    ]:
        if node.args[0].op != "get_attr":
            continue
        tensors = [
            _tensor(module, str(a.target)) for a in node.args[:3] if isinstance(a, torch.fx.Node)
        ]
        floats = node.target(*tensors, *node.args[len(tensors) :])
        name = f"{str(node.args[0].target).replace('.', '_')}_as_float"
        module.register_buffer(name, floats)
        quantize = (
            ops.quantize_per_channel.default
            if len(tensors) > 1
            else ops.quantize_per_tensor.default
        )
        with graph.inserting_before(node):
            node.update_arg(
                0, graph.call_function(quantize, (graph.get_attr(name), *node.args[1:]))
            )
        scales = tensors[1] if len(tensors) > 1 else torch.tensor([node.args[1]])
        weights[floats.numpy().tobytes()] = (tensors[0].numpy(), scales.numpy())
    for node in [n for n in graph.nodes if n.target is torch.ops.aten.conv1d.padding]:
        _padding_as_number(graph, node)
    for node in graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())
        node.meta["nn_module_stack"] = {"": ("", f"{stack[-1][0]}#{node.name}#")}
    module.recompile()
    return module, weights


def _padding_as_number(graph: Any, node: Any) -> None:
    """`padding="same"` of one-dimensional convolutions, which the converter fails on,
    written out.
    """
    import torch

    given: list[Any] = [*node.args, *(None, [1], "valid", [1], 1)[len(node.args) - 2 :]]
    x, weight, bias, stride, padding, dilation, groups = given
    total = (weight.meta["val"].shape[2] - 1) * dilation[0] if padding == "same" else 0
    with graph.inserting_before(node):
        if total % 2:  # torch puts the odd one at the end
            x = graph.call_function(torch.ops.aten.constant_pad_nd.default, (x, [0, 1], 0.0))
    node.target = torch.ops.aten.conv1d.default
    node.args = (x, weight, bias, stride, [total // 2], dilation, groups)


def _tensor(module: Any, name: str) -> Any:
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


class _Site(NamedTuple):
    """A quantized value of the program: its name, the nodes that make it and quantize it, the input
    that it is (or -1), the site that the first of them reads, grid and shape.
    """

    name: str
    nodes: tuple[str, str]
    place: int
    reads: str
    scale: float
    zero_point: int
    shape: tuple[int, ...]


def _sites(module: Any, names: Sequence[str]) -> list[_Site]:
    import torch

    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    nodes = [n for n in module.graph.nodes if n.target is quantize and n.args[0].op != "get_attr"]
    inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
    found, values = [], {}
    for name, node in zip(names, nodes, strict=True):
        made = node.args[0]
        values |= dict.fromkeys(node.users, name)
        place = inputs.index(made) if made in inputs else -1
        reads = next((values[n] for n in made.all_input_nodes if n in values), "")
        found.append(
            _Site(
                name,
                (made.name, node.name),
                place,
                reads,
                float(np.float32(node.args[1])),
                node.args[2],
                tuple(int(s) for s in made.meta["val"].shape),
            )
        )
    return found


def _order_ends(model: Any, graph: Any, batch: Any) -> None:
    """Inputs and outputs in the network's own order."""
    signature = model.signatureDefs[0]
    given = {m.name.decode(): m.tensorIndex for m in signature.inputs}
    graph.inputs = [
        given[k] for k in (*(f"args_{i}" for i in range(len(batch.args))), *batch.kwargs)
    ]
    produced = {m.name.decode(): m.tensorIndex for m in signature.outputs}
    if all(name.rpartition("_")[2].isdigit() for name in produced):
        names = sorted(produced, key=lambda k: int(k.rpartition("_")[2]))
        graph.outputs = [produced[k] for k in names]
    # Outputs that have names, as those of a dict, stay in the converter's own order.


def _name(model: Any, graph: Any, sites: Sequence[_Site]) -> None:
    """Tensors get the paths of their modules, and those of sites the names `<site>_quantized`, with
    `_nhwc` after it where channels are last.

    A site's tensor is int8, comes from the site's node and has its grid and shape. Sites with the
    same integers share a tensor. A site that the converter merged with another has none.
    """
    computed = [o for op in graph.operators for o in op.outputs]
    origins = {i: re.findall(r"#(\w+)#", graph.tensors[i].name.decode()) for i in computed}
    places: dict[str, int] = {}
    for own_grid in (True, False):
        for site in [s for s in sites if s.name not in places]:
            candidates = (
                [graph.inputs[site.place]]
                if site.place >= 0
                else [i for i in reversed(computed) if set(site.nodes) & set(origins[i])]
            )
            candidates += (
                [places[site.reads]] if site.reads in places else []
            )  # a view may have left no operator behind
            for index in [i for i in candidates if _holds(model, graph, i, site)]:
                if _grid(graph, index) == (site.scale, site.zero_point):
                    places[site.name] = index
                    break
                if (
                    not own_grid
                    and index not in places.values()
                    and (own := _with_grid(model, graph, index, site)) is not None
                ):
                    places[site.name] = own
                    break
    names: dict[int, list[str]] = {}
    for site, index in places.items():
        names.setdefault(index, []).append(
            f"{site}_quantized{'_nhwc' * tflite.channels_last(model, graph, index)}"
        )
    for i, tensor in enumerate(graph.tensors):
        paths = [p for p in re.findall(r"(?:^|;)([^;#]*)#", tensor.name.decode()) if p]
        tensor.name = (
            ";".join(names[i]) if i in names else f"{paths[-1] if paths else 'value'}:{i}"
        ).encode()


def _grid(graph: Any, index: int) -> tuple[float, int] | None:
    grid = graph.tensors[index].quantization
    return (
        None
        if grid is None or grid.scale is None or len(grid.scale) == 0
        else (grid.scale[0], grid.zeroPoint[0])
    )


def _holds(model: Any, graph: Any, index: int, site: _Site) -> bool:
    """Whether a tensor is int8 and of the site's shape; dimensions of size 1 come and go."""
    tensor = graph.tensors[index]
    order = (
        tflite.TO_NCHW if tflite.channels_last(model, graph, index) else range(len(tensor.shape))
    )
    same = [s for i in order if (s := int(tensor.shape[i])) != 1] == [
        s for s in site.shape if s != 1
    ]
    return same and tensor.type == tflite.schema().TensorType.INT8


def _with_grid(model: Any, graph: Any, index: int, site: _Site) -> int | None:
    """The converter gives a layer that only a concatenation reads the concatenation's grid: the
    layer's own grid, and a QUANTIZE after it.
    """
    fb = tflite.schema()
    place, op = next((i, op) for i, op in enumerate(graph.operators) if index in op.outputs)
    if tflite.operator(model, op) not in ANY_GRID:
        return None
    old = graph.tensors[index]
    grid = fb.QuantizationParametersT(scale=[site.scale], zeroPoint=[site.zero_point])
    new = tflite.add_tensor(model, graph, old.name.decode(), old.shape, "INT8", quantization=grid)
    op.outputs = [new if i == index else i for i in op.outputs]
    tflite.add_operator(model, graph, "QUANTIZE", [new], [index], place + 1)
    return new


def _float_ends(model: Any, graph: Any, names: Sequence[str]) -> None:
    """Float inputs and outputs under the names that other runtimes have."""
    int8 = tflite.schema().TensorType.INT8
    for i, index in enumerate(graph.inputs):
        tensor = graph.tensors[index]
        if tensor.type == int8:
            graph.inputs[i] = tflite.add_tensor(model, graph, names[i], tensor.shape, "FLOAT32")
            tflite.add_operator(model, graph, "QUANTIZE", [graph.inputs[i]], [index], 0)
        graph.tensors[graph.inputs[i]].name = names[i].encode()
    for i, index in enumerate(graph.outputs):
        tensor = graph.tensors[index]
        if tensor.type == int8:
            graph.outputs[i] = tflite.add_tensor(model, graph, "", tensor.shape, "FLOAT32")
            tflite.add_operator(model, graph, "DEQUANTIZE", [index], [graph.outputs[i]])
        graph.tensors[graph.outputs[i]].name = f"output{i or ''}".encode()


def _small_weights(
    model: Any, graph: Any, weights: dict[bytes, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Puts int8 back where the converter left the floats of a quantized weight."""
    fb = tflite.schema()
    for op in [op for op in graph.operators if tflite.operator(model, op) == "FULLY_CONNECTED"]:
        index = op.inputs[1]
        value = tflite.constant(model, graph, index)
        if (
            value is None
            or value.dtype != np.float32
            or (known := weights.get(value.tobytes())) is None
        ):
            continue
        grid = fb.QuantizationParametersT(
            scale=known[1].tolist(), zeroPoint=[0] * len(known[1]), quantizedDimension=0
        )
        name = graph.tensors[index].name.decode()
        stored = tflite.add_tensor(
            model, graph, f"{name}_int8", value.shape, "INT8", known[0], grid
        )
        graph.tensors[index].buffer = 0
        tflite.add_operator(model, graph, "DEQUANTIZE", [stored], [index], 0)


def _without_zeros(model: Any, graph: Any) -> None:
    """Stores weights of zeros without them; warns where that saves bytes only, as XNNPACK would
    compute with the zeros.
    """
    if tflite_sparse.encode(model, graph) and (
        reasons := tflite_sparse.reasons_for_dense(model, graph)
    ):
        warn(f"XNNPACK will run this sparse network densely, also on Arm: {'; '.join(reasons)}")


RUNTIME = Runtime(
    "litert", ".tflite", version, alone, open, None, convert=convert, free_batch=False
)
