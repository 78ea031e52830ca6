"""ONNX in: a file as a network of torch operators, on which pruning and quantisation work as on any
other.

Nodes become modules that are called after the nodes of the file; constants become parameters and
buffers of `constants`. Each node's translation is run on an
example and compared with what ONNX Runtime gives: one that has no translation, or whose translation
disagrees, is left to ONNX Runtime (`outside.py`).
"""

from __future__ import annotations

import operator as python
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from torch import fx, nn

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.base.graph_names import identifier
from mirabelle.onnx_files import outside
from mirabelle.onnx_files.operators import OPERATORS, UnsupportedError
from mirabelle.onnx_files.prepare import prepared, run_all
from mirabelle.onnx_files.shapes import LARGEST, Host, as_tensor

# Inputs that an operator needs as numbers, though they are floats.
NUMBERS = {"Clip": (1, 2), "Resize": (1, 2, 3), "Upsample": (1,), "Pad": (2,), "Range": (0, 1, 2)}
LEARNED = (
    "Linear",
    "Conv",
    "ConvTranspose",
    "PRelu",
    "LayerNormalization",
    "InstanceNormalization",
)


@dataclass(frozen=True)
class Source:
    """Where a network came from, and what is what. proto: the file, prepared (`prepared`). inputs:
    their names, in the order of the network's.

    modules: path of a module -> index of its node. constants: parameter or buffer -> the file's
    initialiser, and whether its two dimensions are swapped.
    outside: why nodes run as they are, by their names.
    """

    proto: ModelProto
    inputs: list[str]
    modules: dict[str, int] = field(default_factory=dict)
    constants: dict[str, tuple[str, bool]] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict) -> Source:
        return self  # nothing changes it


SOURCE = "onnx"  # the key in a network's `meta`


def source_of(model: object) -> Source | None:
    """The file that a network was read from; None for any other network."""
    found = model.meta.get(SOURCE) if isinstance(model, fx.GraphModule) else None
    return found if isinstance(found, Source) else None


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


def network(path: str | Path, example: Batch) -> fx.GraphModule:
    """The network of an ONNX file, with a `Source` as `meta["onnx"]`; BatchNorm and the like in
    eval mode. example: what the file takes, by position or by name.

    Raises `InputError` where the file does not run on the example.
    """
    proto = prepared(path)
    source = Source(proto, [i.name for i in proto.graph.input])
    return _Reader(source, _example(example, source, Path(path)), Path(path)).read()


def _example(batch: Batch, source: Source, path: Path) -> dict[str, np.ndarray]:
    """The example by the names of the file's inputs."""
    free = [n for n in source.inputs if n not in batch.kwargs]
    if len(batch.args) != len(free) or len(batch.kwargs) + len(free) != len(source.inputs):
        given = f"{len(batch.args)} by position" + (
            f" and {', '.join(batch.kwargs)}" if batch.kwargs else ""
        )
        raise InputError(f"{path} takes {', '.join(source.inputs)}; got {given}")
    return {
        **dict(zip(free, (t.numpy() for t in batch.args))),
        **{n: t.numpy() for n, t in batch.kwargs.items()},
    }


def _attributes(node: NodeProto, opset: int) -> dict[str, Any]:
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


class _Reader:
    """Builds the graph node by node. values: what ONNX Runtime gives for everything on the example,
    by name; doubled: the same for twice the batch, or {}.
    """

    def __init__(self, source: Source, example: dict[str, np.ndarray], path: Path):
        self.source, self.path = source, path
        self.proto = source.proto
        self.constants = {t.name: t for t in self.proto.graph.initializer}
        self.opset = next(o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx"))
        self.values = run_all(self.proto, example, path)
        for (
            output
        ) in self.proto.graph.output:  # runtimes do without its type and rank, checkers do not
            if not output.type.tensor_type.HasField("shape") and output.name in self.values:
                value = self.values[output.name]
                output.CopyFrom(
                    helper.make_tensor_value_info(
                        output.name,
                        helper.np_dtype_to_tensor_dtype(value.dtype),
                        [None] * value.ndim,
                    )
                )
        size = len(example[source.inputs[0]]) if example[source.inputs[0]].ndim else 0
        twice = {
            n: np.concatenate([a, a]) if a.ndim and len(a) == size else a
            for n, a in example.items()
        }
        try:
            self.doubled = run_all(self.proto, twice, path)
        except InputError:
            self.doubled = {}
        self.root, self.graph = nn.Module(), fx.Graph()
        self.root.add_module("constants", nn.Module())
        self.made: dict[str, Any] = {}
        self.hosts: set[str] = set()  # values that are numbers, not tensors

    def read(self) -> fx.GraphModule:
        for name in self.source.inputs:
            self.made[name] = self.graph.placeholder(identifier(name))
        for i, node in enumerate(self.proto.graph.node):
            self._node(i, node)
        outputs = [
            self.made[o.name] if o.name in self.made else self._constant(o.name, False)
            for o in self.proto.graph.output
        ]
        self.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        result = fx.GraphModule(self.root, self.graph)
        result.meta[SOURCE] = self.source
        return result.eval()

    def _node(self, index: int, node: NodeProto) -> None:
        module, names, turned = self._translated(node)
        if module is None:
            key, names = outside.enter(
                node,
                self.proto,
                self.values,
                self.constants,
                [self.values[o] for o in node.output if o],
            )
            if self.doubled:
                sides = [
                    ([v[n] for n in names], [v[o] for o in node.output if o])
                    for v in (self.values, self.doubled)
                ]
                outside.follow_batch(key, *sides)
            module = Foreign(key)
        path = self._enter_module(node.name, module)
        self.source.modules[path] = index
        call = self.graph.call_module(path, tuple(self._value(n, n in turned) for n in names))
        given = [o for o in node.output if o]
        if len(given) == 1 and not (isinstance(module, Node) and len(node.output) > 1):
            self.made[given[0]] = call
        else:
            places = (
                range(len(given))
                if isinstance(module, Foreign)
                else [i for i, o in enumerate(node.output) if o]
            )
            for place, name in zip(places, given):
                self.made[name] = self.graph.call_function(python.getitem, (call, place))

    def _translated(self, node: NodeProto) -> tuple[nn.Module | None, list[str], set[str]]:
        """The module of a node, the values that it is called with, and those of them whose
        dimensions are swapped; None where it runs as it is, and says why.
        """
        kind = "" if node.domain not in ("", "ai.onnx") else node.op_type
        if kind not in OPERATORS or any(a.HasField("g") or a.graphs for a in node.attribute):
            return self._left(node, "no translation")
        attributes, inputs, turned = _attributes(node, self.opset), list(node.input), set()
        if self._is_linear(node, attributes):
            kind = "Linear"
            turned = (
                {inputs[1]}
                if node.op_type == "MatMul" or not attributes.get("transB", 0)
                else set()
            )
        slots: list[int | Host | None] = []
        names: list[str] = []
        for i, name in enumerate(inputs):
            known = self._host(name, i in NUMBERS.get(kind, ())) if name else None
            slots.append(known if known is not None or not name else len(names))
            if name and known is None:
                names.append(name)
        module = Node(kind, attributes, slots)
        try:
            with torch.no_grad():
                found = module(*(self._seen(n, n in turned) for n in names))
        except UnsupportedError as error:
            return self._left(node, str(error))
        except Exception as error:  # torch refuses a combination that the file allows
            return self._left(node, f"{type(error).__name__}: {str(error).splitlines()[0]}")
        found = found if isinstance(found, tuple) else (found,)
        for name, value in zip(node.output, found):
            if name and not _agrees(as_tensor(value).numpy(), self.values[name]):
                return self._left(node, "the translation gives something else than ONNX Runtime")
            if isinstance(value, Host):
                self.hosts.add(name)
        return module, names, turned

    def _left(self, node: NodeProto, reason: str) -> tuple[None, list[str], set[str]]:
        self.source.outside[node.name] = f"{node.op_type}: {reason}"
        return None, [], set()

    def _is_linear(self, node: NodeProto, attributes: dict[str, Any]) -> bool:
        """A product with a constant matrix, and perhaps a constant vector added."""
        if (
            node.op_type not in ("Gemm", "MatMul")
            or node.input[1] not in self.constants
            or len(self.constants[node.input[1]].dims) != 2
        ):
            return False
        if node.op_type == "MatMul":
            return self.values[node.input[0]].ndim >= 2 if node.input[0] in self.values else False
        bias = self.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        width = self.constants[node.input[1]].dims[0 if attributes.get("transB", 0) else 1]
        fits = (
            bias is not None and list(bias.dims) == [width]
            if len(node.input) > 2 and node.input[2]
            else True
        )
        return fits and (
            attributes.get("alpha", 1.0),
            attributes.get("beta", 1.0),
            attributes.get("transA", 0),
        ) == (1.0, 1.0, 0)

    def _host(self, name: str, numbers: bool) -> Host | None:
        """A constant as numbers: what operators need so, and whatever may be a shape."""
        tensor = self.constants.get(name)
        if tensor is None or len(tensor.dims) > 1:
            return None
        array = outside.constant(tensor)
        if array.size > LARGEST or not (numbers or array.dtype.kind in "iub"):
            return None
        return Host(
            tuple(array.flatten().tolist()),
            array.ndim == 0,
            torch.from_numpy(array.reshape(-1)).dtype,
        )

    def _seen(self, name: str, turned: bool) -> Any:
        """What a value is on the example: what ONNX Runtime gave, or the constant."""
        array = (
            outside.constant(self.constants[name]) if name in self.constants else self.values[name]
        )
        tensor = torch.from_numpy(np.array(array))
        if name in self.hosts:
            return Host(tuple(tensor.flatten().tolist()), tensor.ndim == 0, tensor.dtype)
        return tensor.t() if turned else tensor

    def _value(self, name: str, turned: bool) -> Any:
        return self._constant(name, turned) if name in self.constants else self.made[name]

    def _constant(self, name: str, turned: bool) -> fx.Node:
        """A constant as a parameter or buffer: one for each of its two forms."""
        leaf = identifier(name) + ("_turned" if turned else "")
        holder = self.root.get_submodule("constants")
        while f"constants.{leaf}" in self.source.constants and self.source.constants[
            f"constants.{leaf}"
        ] != (name, turned):
            leaf += "_"
        if f"constants.{leaf}" not in self.source.constants:
            tensor = torch.from_numpy(outside.constant(self.constants[name]))
            tensor = tensor.t().contiguous() if turned else tensor
            readers = [n for n in self.proto.graph.node if name in n.input]
            if tensor.is_floating_point() and (
                turned
                or any(
                    n.op_type in LEARNED or (n.op_type == "Gemm" and n.input[0] != name)
                    for n in readers
                )
            ):
                holder.register_parameter(leaf, nn.Parameter(tensor))
            else:
                holder.register_buffer(leaf, tensor)
            self.source.constants[f"constants.{leaf}"] = (name, turned)
        return self.graph.get_attr(f"constants.{leaf}")

    def _enter_module(self, name: str, module: nn.Module) -> str:
        """Puts a node's module where its name says: `/layer1/conv/Conv` becomes
        `layer1.conv.Conv`.
        """
        parts = [identifier(p, digits=True) for p in re.split(r"[./]", name) if p] or ["node"]
        if parts[0] == "constants":
            parts[0] = "constants_"
        owner: nn.Module = self.root
        for part in parts[:-1]:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
            if isinstance(owner, (Node, Foreign)):  # a node and a folder of one name
                return self._enter_module(name.replace("/", "_").replace(".", "_"), module)
        leaf = parts[-1]
        while leaf in owner._modules:
            leaf += "_"
        owner.add_module(leaf, module)
        return ".".join([*parts[:-1], leaf])


def _agrees(found: np.ndarray, expected: np.ndarray) -> bool:
    if found.shape != expected.shape or (
        found.dtype != expected.dtype and found.dtype.kind != expected.dtype.kind
    ):
        return False
    if expected.dtype.kind != "f":
        return bool(np.array_equal(found, expected))
    scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    return bool(np.allclose(found, expected, rtol=1e-3, atol=1e-4 * scale + 1e-6, equal_nan=True))
