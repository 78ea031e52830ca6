"""ONNX in: a file as a network of torch operators, on which pruning and quantization work as on any
other.

Nodes become modules that are called after the nodes of the file: layers torch's own ones
(`layers.py`) with their weights in them; other constants become parameters and buffers of
`constants`. Each node's translation is run on an example and compared with what ONNX Runtime gives:
one that has no translation, or whose translation disagrees, is left to ONNX Runtime (`outside.py`).
"""

from __future__ import annotations

import operator as python
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, helper
from torch import fx, nn

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.base.graph_names import identifier
from mirabelle.onnx_files import outside
from mirabelle.onnx_files.constants import Constants, is_vector
from mirabelle.onnx_files.layers import layer, padded
from mirabelle.onnx_files.nodes import Foreign, Node, agrees, attributes_of
from mirabelle.onnx_files.operators import OPERATORS, UnsupportedError
from mirabelle.onnx_files.prepare import (
    as_it_is,
    check_opened,
    fixed_batch,
    prepared,
    run_all,
    takes_any_batch,
    with_open_batch,
)
from mirabelle.onnx_files.shapes import LARGEST, Host, as_tensor
from mirabelle.onnx_files.source import ONNX_FORM, SOURCE, Reader, Source
from mirabelle.runtimes.onnx_model import opset_of

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


ENOUGH = 2  # samples: all values of these and of twice as many are held


def network(path: str | Path, example: Batch, fold: bool = True) -> fx.GraphModule:
    """The network of an ONNX file, with a `Source` as `meta["onnx"]`; BatchNorm and the like in
    eval mode. example: what the file takes, by position or by name. fold: constants are folded and
    batch norms merged first, as quantization likes it; else the nodes are those of the file.

    Raises `InputError` where the file does not run on the example.
    """
    path = Path(path)
    proto, unnamed = (prepared(path), frozenset[int]()) if fold else as_it_is(path)
    known = {t.name for t in proto.graph.initializer}  # inputs of old files, too
    inputs = [i.name for i in proto.graph.input if i.name not in known]
    source = Source(proto, inputs, unnamed=unnamed)
    few = example.head(ENOUGH) if takes_any_batch(proto, inputs) else example
    found = _Reader(source, _example(few, source, path), path).read()
    if not fold:
        named = [*(("", t) for t in example.args), *example.kwargs.items()]
        inputs = [[n, list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in named]
        found.meta[ONNX_FORM] = {"inputs": inputs, "numbers": {}}
    return found


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


class _Reader:
    """Builds the graph node by node. values: what ONNX Runtime gives for everything on the example,
    by name; doubled: the same for twice the batch, or {}.
    """

    def __init__(self, source: Source, example: dict[str, np.ndarray], path: Path):
        self.source, self.path = source, path
        self.proto = source.proto
        self.constants = Constants(self.proto.graph)
        self.opset = opset_of(self.proto)
        size = len(example[source.inputs[0]]) if example[source.inputs[0]].ndim else 0
        runs, written = with_open_batch(self.proto, example)
        try:
            self.values = run_all(runs, example, path)
        except InputError as error:
            if not written:
                raise
            raise InputError(fixed_batch(path, written, size)) from error
        if written:
            check_opened(self.proto, written, self.values, size, path)
        self.constants.fold(self.proto.graph, self.values)
        # Runtimes do without type and rank of inputs and outputs, checkers do not.
        for place in (*self.proto.graph.input, *self.proto.graph.output):
            if not place.type.tensor_type.HasField("shape") and place.name in self.values:
                value = self.values[place.name]
                kind = helper.np_dtype_to_tensor_dtype(value.dtype)
                dims = [None] * value.ndim
                place.CopyFrom(helper.make_tensor_value_info(place.name, kind, dims))
        twice = {
            n: np.concatenate([a, a]) if a.ndim and len(a) == size else a
            for n, a in example.items()
        }
        try:
            self.doubled = run_all(runs, twice, path)
        except InputError:
            self.doubled = {}
        self.root, self.graph = nn.Module(), fx.Graph()
        self.root.add_module("constants", nn.Module())
        self.made: dict[str, Any] = {}
        self.hosts: set[str] = set()  # values that are numbers, not tensors
        self.tensors: dict[Any, torch.Tensor] = {}  # parameters and buffers, as they are held
        self.readers: dict[int, list[Reader]] = {}  # by id of one of these

    def read(self) -> fx.GraphModule:
        for name in self.source.inputs:
            self.made[name] = self.graph.placeholder(identifier(name))
        for i, node in enumerate(self.proto.graph.node):
            if i not in self.constants.silent:
                self._node(i, node)
        outputs = [
            self.made[o.name] if o.name in self.made else self._constant(o.name, False, None)
            for o in self.proto.graph.output
        ]
        self.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        result = fx.GraphModule(self.root, self.graph)
        result.graph.eliminate_dead_code()
        self._drop_unread(result)
        result.recompile()
        result.meta[SOURCE] = self.source
        return result.eval()

    def _drop_unread(self, result: fx.GraphModule) -> None:
        """Constants of nodes whose results nobody reads."""
        read = {str(n.target) for n in result.graph.nodes if n.op == "get_attr"}
        for path in [p for p in self.source.readers if p.startswith("constants.")]:
            if path not in read:
                if hasattr(holder := result.get_submodule("constants"), path.partition(".")[2]):
                    delattr(holder, path.partition(".")[2])
                self.source.constants.pop(path, None)
                del self.source.readers[path]

    def _node(self, index: int, node: NodeProto) -> None:
        found = self._translated(node)
        if found is None:
            module, names = self._foreign(node)
            path = self._enter_module(node.name, module)
            arguments = [self._value(n, Reader(index, -1, False)) for n in names]
        elif (made := self._layer(index, node, *found)) is not None:
            module, (path, arguments) = made[0], made[1:]
        else:
            _, module, turned = found
            path = self._enter_module(node.name, module)
            given = [i for i, s in enumerate(module.slots) if isinstance(s, int)]
            arguments = [
                self._value(node.input[i], Reader(index, i, i == 1 and turned)) for i in given
            ]
        self.source.modules[path] = index
        call = self.graph.call_module(path, tuple(arguments))
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

    def _foreign(self, node: NodeProto) -> tuple[Foreign, list[str]]:
        """A node that runs as it is, and the values that it reads."""
        results = [self.values[o] for o in node.output if o]
        known = self.constants.embedded()
        key, names = outside.enter(node, self.proto, self.values, known, results)
        if self.doubled:
            sides = [
                ([v[n] for n in names], [v[o] for o in node.output if o])
                for v in (self.values, self.doubled)
            ]
            outside.follow_batch(key, *sides)
        return Foreign(key), names

    def _layer(
        self, index: int, node: NodeProto, kind: str, module: Node, turned: bool
    ) -> tuple[nn.Module, str, list[fx.Node]] | None:
        """The node as a module of torch's that holds its tensors, where it is, and what it is
        called with; None where it is no layer.
        """
        values = [self._tensor(n, i == 1 and turned) for i, n in enumerate(node.input)]
        found = layer(kind, module.attributes, values, lambda i: self._is_constant(node.input[i]))
        if found is None or isinstance(x := self.made[node.input[0]], tuple):
            return None
        made, tensors, rule = found
        path = self._enter_module(node.name, made)
        for name, place in tensors.items():
            reader = Reader(index, place, place == 1 and turned)
            tensor = self._parameter(node.input[place], reader, name in made._parameters)
            (made._parameters if name in made._parameters else made._buffers)[name] = tensor  # type: ignore[index]
            self._enter_constant(f"{path}.{name}", node.input[place], reader, tensor)
        if isinstance(made, nn.modules.batchnorm._BatchNorm):
            made.num_batches_tracked = torch.tensor(0)
        if rule is not None:
            x = self.graph.call_function(padded, (x, rule, list(values[1].shape[2:])))  # type: ignore[union-attr]
        return made, path, [x]

    def _translated(self, node: NodeProto) -> tuple[str, Node, bool] | None:
        """The kind and the module of a node, and whether the dimensions of its second input are
        swapped; None where it runs as it is, and says why.
        """
        kind = "" if node.domain not in ("", "ai.onnx") else node.op_type
        if kind not in OPERATORS or any(a.HasField("g") or a.graphs for a in node.attribute):
            return self._left(node, "no translation")
        attributes, turned = attributes_of(node, self.opset), False
        if self._is_linear(node, attributes):
            kind, turned = "Linear", self._is_turned(node)
        slots: list[int | Host | None] = []
        names: list[str] = []
        for i, name in enumerate(node.input):
            known = self._host(name, i in NUMBERS.get(kind, ())) if name else None
            slots.append(known if known is not None or not name else len(names))
            if name and known is None:
                names.append(name)
        module = Node(kind, attributes, slots)
        second = node.input[1] if turned else ""
        try:
            with torch.no_grad():
                found = module(*(self._seen(n, n == second) for n in names))
        except UnsupportedError as error:
            return self._left(node, str(error))
        except Exception as error:  # torch refuses a combination that the file allows
            return self._left(node, f"{type(error).__name__}: {str(error).splitlines()[0]}")
        found = found if isinstance(found, tuple) else (found,)
        for name, value in zip(node.output, found):
            if name and not agrees(as_tensor(value).numpy(), self.values[name]):
                return self._left(node, "the translation gives something else than ONNX Runtime")
            if isinstance(value, Host):
                self.hosts.add(name)
        return kind, module, turned

    def _left(self, node: NodeProto, reason: str) -> None:
        self.source.outside[node.name] = f"{node.op_type}: {reason}"

    def _is_constant(self, name: str) -> bool:
        return name in self.constants or name in self.constants.turned

    def _is_turned(self, node: NodeProto) -> bool:
        """Whether the weight of a linear layer is stored as (columns, outputs) where it is read."""
        given = {a.name: a.i for a in node.attribute}
        return node.op_type == "MatMul" or not given.get("transB", 0)

    def _is_linear(self, node: NodeProto, attributes: dict[str, Any]) -> bool:
        """A product with a constant matrix, and perhaps a constant vector added."""
        if node.op_type not in ("Gemm", "MatMul") or not self._is_constant(node.input[1]):
            return False
        turned = self.constants.turned.get(node.input[1])
        dims = list(self.constants[turned or node.input[1]].dims)
        if len(dims) != 2:
            return False
        if node.op_type == "MatMul":
            return self.values[node.input[0]].ndim >= 2 if node.input[0] in self.values else False
        bias = self.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        width = dims[bool(attributes.get("transB", 0)) == bool(turned)]
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
        array = self.constants.array(name) if name in self.constants else self.values[name]
        tensor = torch.from_numpy(np.array(array))
        if name in self.hosts:
            return Host(tuple(tensor.flatten().tolist()), tensor.ndim == 0, tensor.dtype)
        return tensor.t() if turned else tensor

    def _tensor(self, name: str, turned: bool) -> torch.Tensor | None:
        return as_tensor(self._seen(name, turned)) if name else None

    def _value(self, name: str, reader: Reader) -> Any:
        constant = name in self.constants or (reader.turned and name in self.constants.turned)
        return self._constant(name, reader.turned, reader) if constant else self.made[name]

    def _held(self, name: str, turned: bool) -> tuple[str, bool]:
        """The constant behind a name, and whether it is held with its dimensions swapped."""
        if name in self.constants.turned:
            return self.constants.turned[name], not turned
        return self.constants.names[name], turned

    def _parameter(self, name: str, reader: Reader, learned: bool) -> torch.Tensor:
        """A constant as a tensor of the network: one for all who read it in the same form, but
        vectors one for each.
        """
        root, turned = self._held(name, reader.turned)
        key = (root, turned, reader if is_vector(self.constants[root].dims) else None, learned)
        if key not in self.tensors:
            tensor = torch.from_numpy(self.constants.array(root))
            tensor = tensor.t().contiguous() if turned else tensor
            self.tensors[key] = nn.Parameter(tensor) if learned else tensor
        return self.tensors[key]

    def _enter_constant(
        self, path: str, name: str, reader: Reader | None, tensor: torch.Tensor
    ) -> None:
        held = self._held(name, reader is not None and reader.turned)
        if held[0] not in self.constants.folded:  # else no constant of the file
            self.source.constants[path] = held
        readers = self.readers.setdefault(id(tensor), [])  # of all names that a tensor has
        readers.extend([reader] if reader is not None else [])
        self.source.readers[path] = readers

    def _constant(self, name: str, turned: bool, reader: Reader | None) -> fx.Node:
        """A constant as a parameter or buffer of `constants`: one for each of its two forms, and
        for each who reads a vector.
        """
        leaf = identifier(name) + ("_turned" if turned else "")
        holder = self.root.get_submodule("constants")
        readers = [n for n in self.proto.graph.node if name in n.input]
        floating = outside.is_floating(self.constants[self._held(name, turned)[0]])
        learned = floating and (
            turned
            or any(
                n.op_type in LEARNED or (n.op_type == "Gemm" and n.input[0] != name)
                for n in readers
            )
        )
        tensor = self._parameter(name, reader or Reader(-1, -1, turned), learned)
        while hasattr(holder, leaf) and getattr(holder, leaf) is not tensor:
            leaf += "_"
        if not hasattr(holder, leaf):
            if learned:
                holder.register_parameter(leaf, tensor)  # type: ignore[arg-type]
            else:
                holder.register_buffer(leaf, tensor)
        self._enter_constant(f"constants.{leaf}", name, reader, tensor)
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
            if type(owner) is not nn.Module:  # a node and a folder of one name
                return self._enter_module(name.replace("/", "_").replace(".", "_"), module)
        leaf = parts[-1]
        while leaf in owner._modules:
            leaf += "_"
        owner.add_module(leaf, module)
        return ".".join([*parts[:-1], leaf])
