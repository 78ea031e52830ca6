"""ONNX out: the file that a network was read from, with the network's own weights in it.

Everything else stays as it was: open dimensions, names, metadata, operators that nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper
from torch import fx

from mirabelle.base.errors import InputError
from mirabelle.onnx_files.constants import Constants
from mirabelle.onnx_files.source import SOURCE, Reader, Source, source_of
from mirabelle.runtimes.onnx_model import opset_of

Numbers = Mapping[tuple[int, int], np.ndarray]  # by node and place among its inputs


class WriteBack:
    """A copy of a file in which constants are given other values. proto: the copy."""

    def __init__(self, source: Source):
        self.source, self.proto = source, ModelProto()
        self.proto.CopyFrom(source.proto)
        self.graph: GraphProto = self.proto.graph
        self.constants = Constants(self.graph)
        self.taken = {t.name for t in self.graph.initializer} | {
            name for node in self.graph.node for name in (*node.input, *node.output)
        }
        self.readers = self._readers()

    def _readers(self) -> dict[str, set[tuple[int, int]]]:
        """By constant, who reads it: node and place, through Identity and Transpose; (-1, -1) for
        the outputs of the file and graphs inside nodes.
        """
        found: dict[str, set[tuple[int, int]]] = {}
        roots = {**self.constants.turned, **self.constants.names}
        handed_on = {
            i
            for i, node in enumerate(self.graph.node)
            if len(node.output) == 1 and node.output[0] in roots and len(node.input) == 1
        }
        for i, node in enumerate(self.graph.node):
            for slot, name in enumerate(node.input):
                if name in roots and i not in handed_on:
                    found.setdefault(roots[name], set()).add((i, slot))
            for name in inner_names(node) & roots.keys():
                found.setdefault(roots[name], set()).add((-1, -1))
        for output in self.graph.output:
            if output.name in roots:
                found.setdefault(roots[output.name], set()).add((-1, -1))
        return found

    def put(self, name: str, values: list[tuple[np.ndarray, list[Reader], bool]]) -> None:
        """Gives a constant other values. values: what is held of it (swapped where the last says
        so), and the readers that are to have it. Where they want different things, or somebody else
        reads it, those who want something new get a constant of their own.
        """
        old = self.constants.array(name)
        wanted = [(a.T if turned else a, readers) for a, readers, turned in values]
        told = {(r.node, r.slot) for _, readers in wanted for r in readers}
        first = wanted[0][0]
        if all(same(first, a) for a, _ in wanted) and self.readers.get(name, set()) <= told:
            if not same(first, old):
                self.replace(name, first)
            return
        made: list[tuple[np.ndarray, str]] = []
        for (array, readers, _), (whole, _) in zip(values, wanted, strict=True):
            if same(whole, old):
                continue
            if len({r.turned for r in readers}) > 1:
                raise InputError(
                    f"{name} of the ONNX file is read in two forms, and by what must keep it as it "
                    "was; write it twice in the file"
                )
            for reader in readers:
                stored = array.T if reader.turned else array
                known = next((n for a, n in made if same(a, stored)), None)
                if known is None:
                    known = self.add(name, stored)
                    made.append((stored, known))
                self.graph.node[reader.node].input[reader.slot] = known

    def add(self, name: str, array: np.ndarray) -> str:
        """Another initializer, called after `name`."""
        count = 1
        while f"{name}_{count}" in self.taken:
            count += 1
        found = f"{name}_{count}"
        self.taken.add(found)
        self.graph.initializer.append(_tensor(array, found))
        return found

    def replace(self, name: str, array: np.ndarray) -> None:
        """The constant itself, wherever it stands."""
        tensor = _tensor(array, name)
        if name in self.constants.nodes:
            node = self.graph.node[self.constants.nodes[name]]
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("value", tensor))
            return
        for held in self.graph.initializer:
            if held.name == name:
                held.CopyFrom(tensor)
        for given in self.graph.input:  # of old files, which name constants there too
            if given.name == name:
                set_shape(given, list(array.shape))

    def numbers(self, found: Numbers) -> None:
        """Sizes and places that are constants of the file: other ones for single readers."""
        by_name: dict[str, list[tuple[np.ndarray, list[Reader], bool]]] = {}
        for (node, slot), array in found.items():
            given = self.graph.node[node].input[slot]
            if given not in self.constants.names:  # computed from constants
                self.graph.node[node].input[slot] = self.add(given, np.asarray(array, np.int64))
                continue
            name = self.constants.names[given]
            old = self.constants.array(name)
            value = np.asarray(array, old.dtype).reshape(
                old.shape if array.size == old.size else -1
            )
            by_name.setdefault(name, []).append((value, [Reader(node, slot, False)], False))
        for name, values in by_name.items():
            self.put(name, values)

    def attribute(self, node: int, name: str, value: Any) -> None:
        for attribute in self.graph.node[node].attribute:
            if attribute.name == name:
                attribute.CopyFrom(helper.make_attribute(name, value))


def written(model: fx.GraphModule) -> ModelProto:
    """The file that a float network was read from, with what its weights have become since."""
    source = source_of(model)
    assert source is not None
    back = WriteBack(source)
    put_tensors(back, model)
    for i in source.unnamed:
        back.graph.node[i].name = ""
    return back.proto


def put_tensors(back: WriteBack, model: fx.GraphModule, leave: Any = ()) -> None:
    """The network's parameters and buffers, but those named in `leave`, in the places of the
    constants that they were read from.
    """
    by_name: dict[str, list[tuple[np.ndarray, list[Reader], bool]]] = {}
    for path, (name, turned) in back.source.constants.items():
        owner, _, leaf = path.rpartition(".")
        if path in leave or not hasattr(holder := _module(model, owner), leaf):
            continue
        tensor = getattr(holder, leaf)
        value = tensor.detach().cpu().contiguous().numpy()
        by_name.setdefault(name, []).append((value, back.source.readers[path], turned))
    for name, values in by_name.items():
        back.put(name, values)


def _module(model: fx.GraphModule, path: str) -> Any:
    """The module at a path; None where a captured network lacks it."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def rebased(model: fx.GraphModule, back: WriteBack) -> None:
    """Makes `back` the file that the network comes from, in place: what is cut is cut there."""
    source = back.source
    constants = {}
    for path, (name, turned) in source.constants.items():
        readers = source.readers[path]
        if readers and readers[0].slot >= 0:
            given = back.graph.node[readers[0].node].input[readers[0].slot]
            own = given not in back.constants.turned and given not in back.constants.names
            if own:  # it was given an initializer of its own, as its reader likes it
                name, turned = given, readers[0].turned
        constants[path] = (name, turned)
    model.meta[SOURCE] = replace(source, proto=back.proto, constants=constants)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def set_shape(value: Any, dims: list[int | None]) -> None:
    """Known sizes of a value that the file describes; None leaves what it says."""
    described = value.type.tensor_type.shape.dim
    for place, size in zip(described, dims):
        if size is not None and place.HasField("dim_value"):
            place.dim_value = size


def inner_names(node: Any) -> set[str]:
    """What the graphs inside a node read."""
    found: set[str] = set()
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else list(attribute.graphs)
        for graph in graphs:
            found |= {o.name for o in graph.output}
            for inner in graph.node:
                found |= set(inner.input) | inner_names(inner)
    return found


def _tensor(array: np.ndarray, name: str) -> TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def check_opset(source: Source, least: int, what: str) -> None:
    """`InputError` where the file is of an opset that lacks something."""
    version = opset_of(source.proto)
    if version < least:
        raise InputError(
            f"this network comes from an ONNX file of opset {version}, and {what} needs {least}; "
            "export it with mb.export and give the path of that file, which is then converted"
        )
