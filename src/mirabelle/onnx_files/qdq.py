"""Integers in an ONNX file: a network names what is rounded and what is stored as integers, and its
file gets QuantizeLinear and DequantizeLinear there.

Tracing a graph costs by the operator. With one marker for each value that is rounded, and stored
tensors as if they were floats, it takes two thirds of the time of a graph that has all of the
file's operators.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mirabelle.base.errors import CaptureError

META = "integers"  # where a graph module keeps its `Integers`
DOMAIN = "mirabelle"

_library = torch.library.Library(DOMAIN, "FRAGMENT")
_library.define("rounded(Tensor x, int index) -> Tensor")
_library.impl("rounded", lambda x, index: x.clone(), "CompositeExplicitAutograd")
# Marks a value; index: its place in `Integers.values`.
rounded: Any = torch.ops.mirabelle.rounded.default


@dataclass(frozen=True)
class Rounded:
    """A value that the file rounds to integers of `dtype`, `<name>_quantized`, which stand for the
    floats (integer - zero_point) * scale, `<name>_dequantized`.
    """

    name: str
    scale: float
    zero_point: int
    dtype: str


@dataclass(frozen=True)
class Stored:
    """A tensor of integers that stand for (integer - zero_point) * scale: with one of each, or one
    for each index of dimension 0.
    """

    integers: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray

    @property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Scales and zero points as a file holds them: numbers where there is one of each."""
        scales, zeros = self.scales.astype(np.float32), self.zero_points.astype(self.integers.dtype)
        return (
            (scales.reshape(()), zeros.reshape(()))
            if scales.size == 1
            else (scales, np.broadcast_to(zeros, scales.shape))
        )


@dataclass(frozen=True)
class Integers:
    """values: in the order of their markers. stored: by name; they take the place of the buffer of
    floats `<name>_quantized`.
    """

    values: list[Rounded] = field(default_factory=list)
    stored: dict[str, Stored] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict) -> Integers:
        return self  # nothing changes it once the network is made


def translations() -> dict[Any, Any]:
    """For `torch.onnx.export`: markers stay markers."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    schema = OpSchema(
        "Rounded",
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter("x", "T")],
        outputs=[OpSchema.FormalParameter("y", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[OpSchema.Attribute("index", OpSchema.AttrType.INT)],
    )
    marker = Op(Opset(DOMAIN, 1), "Rounded", schema)
    return {rounded: lambda x, index: marker(x, index=index)}


def write_integers(model: Any, integers: Integers) -> None:
    """Puts integers into a file that torch.onnx made of a marked network, before it is optimized.
    model: an `onnx_ir.Model`, changed.
    """
    graph = model.graph
    markers = [n for n in graph if n.domain == DOMAIN]
    buffers = [n for n in integers.stored if f"{n}_quantized" in graph.initializers]
    if len(markers) != len(integers.values) or len(buffers) != len(integers.stored):
        raise CaptureError(
            f"the exported file has {len(markers)} of {len(integers.values)} quantized values "
            f"and {len(buffers)} of {len(integers.stored)} stored tensors; "
            "report this network"
        )
    graph.insert_before(
        graph[0], [_store(graph, name, stored) for name, stored in integers.stored.items()]
    )
    for node in markers:
        _round(graph, node, integers.values[node.attributes["index"].as_int()])
    model.opset_imports.pop(DOMAIN, None)


def _constant(graph: Any, name: str, value: np.ndarray) -> Any:
    import onnx_ir as ir

    while name in graph.initializers:  # a parameter of the network's own
        name += "_"
    tensor = ir.tensor(np.asarray(value, order="C"), name=name)
    found = ir.Value(
        name=name, shape=ir.Shape(value.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(found)
    return found


def _store(graph: Any, name: str, stored: Stored) -> Any:
    import onnx_ir as ir

    floats, (scales, zeros) = graph.initializers.pop(f"{name}_quantized"), stored.grid
    inputs = [
        _constant(graph, f"{name}{suffix}", v)
        for suffix, v in (
            ("_quantized", stored.integers),
            ("_scale", scales),
            ("_zero_point", zeros),
        )
    ]
    node = ir.node(
        "DequantizeLinear",
        inputs,
        {"axis": 0} if scales.ndim else {},
        name=f"{name}/DequantizeLinear",
    )
    _take_place(floats, node.outputs[0], f"{name}_dequantized")
    return node


def _round(graph: Any, marker: Any, value: Rounded) -> None:
    import onnx_ir as ir

    source, result = marker.inputs[0], marker.outputs[0]
    grid = [
        _constant(graph, f"{value.name}_scale", np.array(value.scale, np.float32)),
        _constant(graph, f"{value.name}_zero_point", np.array(value.zero_point, value.dtype)),
    ]
    quantize = ir.node("QuantizeLinear", [source, *grid], name=f"{value.name}/QuantizeLinear")
    dequantize = ir.node(
        "DequantizeLinear", [quantize.outputs[0], *grid], name=f"{value.name}/DequantizeLinear"
    )
    quantize.outputs[0].name = f"{value.name}_quantized"
    quantize.outputs[0].shape, quantize.outputs[0].type = source.shape, ir.TensorType(grid[1].dtype)
    _take_place(
        result,
        dequantize.outputs[0],
        result.name if result.is_graph_output() else f"{value.name}_dequantized",
    )
    graph.insert_before(marker, [quantize, dequantize])
    graph.remove(marker, safe=True)


def _take_place(old: Any, new: Any, name: str) -> None:
    import onnx_ir as ir

    new.name, new.shape, new.type = name, old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
