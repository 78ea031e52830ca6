"""What is constant in a file: initializers, Constant nodes, and what only hands these on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from mirabelle.base.errors import InputError
from mirabelle.onnx_files.shapes import LARGEST

RANDOM = {"Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"}
# How a Constant node may hold its value besides as a tensor, and the type of that.
_PLAIN: dict[str, Any] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


class Constants:
    """The constants of a graph, by every name that they have.

    names: a name -> that of the initializer or Constant node, through Identity nodes. turned: the
    result of a Transpose of a constant matrix -> the name of the matrix. nodes: for constants of
    Constant nodes the index of the node. silent: indices of nodes that need no module. folded:
    names that are here only because they are computed from constants.
    """

    def __init__(self, graph: GraphProto):
        if graph.sparse_initializer:
            raise InputError(
                f"the ONNX file holds {len(graph.sparse_initializer)} sparse initializers, which "
                "are not read; write it with dense ones"
            )
        self.tensors: dict[str, TensorProto] = {t.name: t for t in graph.initializer}
        self.names: dict[str, str] = {name: name for name in self.tensors}
        self.turned: dict[str, str] = {}
        self.nodes: dict[str, int] = {}
        self.silent: set[int] = set()
        self.folded: set[str] = set()
        for i, node in enumerate(graph.node):
            kind = node.op_type if node.domain in ("", "ai.onnx") else ""
            if kind == "Constant" and (tensor := _tensor_of(node)) is not None:
                self.tensors[node.output[0]] = tensor
                self.names[node.output[0]] = node.output[0]
                self.nodes[node.output[0]] = i
                self.silent.add(i)
            elif kind == "Identity" and node.input[0] in self.names:
                self.names[node.output[0]] = self.names[node.input[0]]
                self.silent.add(i)
            elif kind == "Transpose" and node.input[0] in self.names and self._turns(node):
                self.turned[node.output[0]] = self.names[node.input[0]]

    def fold(self, graph: GraphProto, values: Mapping[str, np.ndarray]) -> None:
        """Takes small whole numbers that are computed from constants for constants: exporters write
        paddings so. values: what they are.
        """
        for i, node in enumerate(graph.node):
            given, made = [n for n in node.input if n], [n for n in node.output if n]
            plain = node.domain in ("", "ai.onnx") and not any(
                a.HasField("g") or a.graphs for a in node.attribute
            )
            if i in self.silent or not plain or not given or node.op_type in RANDOM:
                continue
            if all(n in self.names or n in self.turned for n in given) and all(
                n in values and values[n].dtype.kind in "iub" and values[n].size <= LARGEST
                for n in made
            ):
                for name in made:
                    self.tensors[name] = numpy_helper.from_array(np.asarray(values[name]), name)
                    self.names[name] = name
                    self.folded.add(name)
                self.silent.add(i)

    def _turns(self, node: NodeProto) -> bool:
        rank = len(self[node.input[0]].dims)
        return rank == 2 and all(list(a.ints) == [1, 0] for a in node.attribute if a.name == "perm")

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> TensorProto:
        return self.tensors[self.names[name]]

    def get(self, name: str) -> TensorProto | None:
        return self[name] if name in self.names else None

    def array(self, name: str) -> np.ndarray:
        return np.array(numpy_helper.to_array(self[name]))

    def embedded(self) -> dict[str, TensorProto]:
        """All of them as tensors, by every name."""
        found = dict(self.tensors)
        for name, root in self.names.items():
            if name not in found:
                found[name] = TensorProto()
                found[name].CopyFrom(self.tensors[root])
                found[name].name = name
        return found


def _tensor_of(node: NodeProto) -> TensorProto | None:
    """What a Constant node holds, under the name of its output; None for text and sparse ones."""
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            return tensor
        if attribute.name in _PLAIN:
            array = np.asarray(value, _PLAIN[attribute.name])
            return numpy_helper.from_array(array, node.output[0])
    return None


def is_vector(shape: Any) -> bool:
    """Whether a constant has one number for each channel, and others have nothing to say of it:
    exporters store equal ones once, which couples layers that have nothing to do with each other.
    """
    size = int(np.prod(shape, dtype=np.int64))
    return size > 1 and size == max(shape)
