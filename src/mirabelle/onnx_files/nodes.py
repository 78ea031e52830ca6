"""Nodes of a file as modules: those that torch computes, and those that ONNX Runtime does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper
from torch import nn

from mirabelle.onnx_files import outside
from mirabelle.onnx_files.operators import OPERATORS
from mirabelle.onnx_files.shapes import Host, as_tensor


class Node(nn.Module):
    """One node. slots: for each of its inputs None where it is left out, a Host where it is known,
    else the index of the argument that is it.
    """

    def __init__(self, kind: str, attributes: dict[str, Any], slots: list[int | Host | None]):
        super().__init__()
        self.kind, self.attributes, self.slots = kind, attributes, slots

    def forward(self, *arguments: Any) -> Any:
        inputs = [arguments[s] if isinstance(s, int) else s for s in self.slots]
        return OPERATORS[self.kind](self.attributes, *inputs)


class Foreign(nn.Module):
    """One node that ONNX Runtime computes."""

    def __init__(self, key: str):
        super().__init__()
        self.key = key

    def forward(self, *arguments: Any) -> Any:
        found = torch.ops.mirabelle.onnx_node([as_tensor(a) for a in arguments], self.key)
        return found[0] if len(found) == 1 else tuple(found)


def attributes_of(node: NodeProto, opset: int) -> dict[str, Any]:
    found: dict[str, Any] = {"opset": opset, "outputs": len(node.output)}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, TensorProto):
            value = torch.from_numpy(outside.constant(value))
        elif node.op_type == "Cast" and attribute.name == "to":
            value = torch.from_numpy(np.empty(0, helper.tensor_dtype_to_np_dtype(value))).dtype
        found[attribute.name] = list(value) if isinstance(value, (list, tuple)) else value
    return found


def agrees(found: np.ndarray, expected: np.ndarray) -> bool:
    if found.shape != expected.shape or (
        found.dtype != expected.dtype and found.dtype.kind != expected.dtype.kind
    ):
        return False
    if expected.dtype.kind != "f":
        return bool(np.array_equal(found, expected))
    scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    return bool(np.allclose(found, expected, rtol=1e-3, atol=1e-4 * scale + 1e-6, equal_nan=True))
