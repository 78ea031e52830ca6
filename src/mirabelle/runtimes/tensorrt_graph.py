"""An ONNX graph with integers, as the rules for TensorRT ask about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mirabelle.runtimes.onnx_model import read_model

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOVES = ("MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice")


class Violation(NamedTuple):
    """A broken rule. node: where. parser: what TensorRT's own parser does about it."""

    rule: str
    node: str
    message: str
    parser: str

    def __str__(self) -> str:
        return f"{self.node}: {self.message} ({self.rule}; the parser {self.parser} it)"


@dataclass(frozen=True)
class Graph:
    """An ONNX graph with the ways through it."""

    nodes: list[Any]
    constants: dict[str, np.ndarray]
    makers: dict[str, Any]
    readers: dict[str, list[Any]]
    outputs: set[str]

    @classmethod
    def read(cls, path: str | Path) -> Graph:
        from onnx import numpy_helper

        graph = read_model(path).graph
        constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        for node in graph.node:
            if (
                node.op_type == "Constant"
                and (value := next((a.t for a in node.attribute if a.name == "value"), None))
                is not None
            ):
                constants[node.output[0]] = numpy_helper.to_array(value)
        readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        return cls(
            list(graph.node),
            constants,
            {o: n for n in graph.node for o in n.output},
            readers,
            {o.name for o in graph.output},
        )

    def of(self, *kinds: str) -> list[Any]:
        return [n for n in self.nodes if n.op_type in kinds]

    def maker(self, name: str, kind: str | None = None) -> Any:
        node = self.makers.get(name)
        return node if node is not None and kind in (None, node.op_type) else None

    def dequantized(self, name: str) -> Any:
        """The DequantizeLinear that a value comes from, straight or by data movement; None where it
        is a float.
        """
        node = self.makers.get(name)
        while node is not None and node.op_type in MOVES:
            node = self.makers.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def is_weight(self, dequantize: Any) -> bool:
        """Whether a DequantizeLinear holds a constant: stored integers, or floats that a
        QuantizeLinear rounds.
        """
        before = self.maker(dequantize.input[0], "QuantizeLinear")
        return (before.input[0] if before is not None else dequantize.input[0]) in self.constants


def name_of(node: Any) -> str:
    return node.name or (node.output[0] if node.output else node.op_type)


def axis_of(node: Any) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 1)


def attribute(node: Any, name: str, default: int = 0) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def weights_of(graph: Graph) -> Iterator[tuple[Any, Any, int]]:
    """(layer, the DequantizeLinear of its weight, the dimension of its output channels)."""
    for node in graph.of(*WEIGHTED):
        for name in node.input[:2]:
            found = graph.maker(name, "DequantizeLinear")
            if found is not None and graph.is_weight(found):
                rank = (
                    graph.constants[found.input[0]].ndim if found.input[0] in graph.constants else 2
                )
                axis = {
                    "Conv": 0,
                    "ConvTranspose": 1,
                    "Gemm": 0 if attribute(node, "transB") else 1,
                    "MatMul": rank - 1,
                }[node.op_type]
                yield node, found, axis
