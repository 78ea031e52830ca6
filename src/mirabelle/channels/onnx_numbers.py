"""Sizes and places that are written into an ONNX file, as they are when channels have gone: so that
a pruned network still is that file, with smaller constants.
"""

from __future__ import annotations

import operator as py
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from mirabelle.base.errors import SurgeryError
from mirabelle.channels.ids import Parameter, Value
from mirabelle.channels.masking import Cutting
from mirabelle.graph.capture import module_path, operator
from mirabelle.onnx_files.nodes import Node
from mirabelle.onnx_files.shapes import Host
from mirabelle.onnx_files.source import ONNX_FORM, source_of
from mirabelle.onnx_files.write_back import WriteBack, put_tensors, rebased, set_shape

WHOLE = 2**31 - 1  # ends that files write for "to the end", and beyond
# By path of a module, what of its numbers are others now: (its kind of place, which) -> numbers.
Numbers = dict[str, dict[str, list[int]]]


class Cut:
    """The numbers of a network that has lost channels. model: that network, changed in place;
    captured: the graph that the channels were found in.
    """

    def __init__(self, model: fx.GraphModule, captured: fx.GraphModule, cutting: Cutting):
        self.model, self.cutting = model, cutting
        self.found: Numbers = {}
        self.captured: dict[str, list[fx.Node]] = {}  # what was captured of each module
        last: dict[str, Any] = {}
        for node in captured.graph.nodes:
            if operator(node) and (path := module_path(node)) and node in cutting.flow.values:
                last[path] = cutting.flow.values[node]
                self.captured.setdefault(path, []).append(node)
        given = [cutting.flow.values[n] for n in captured.graph.nodes if n.op == "placeholder"]
        self.values: dict[fx.Node, Any] = {}
        for node in model.graph.nodes:
            self.values[node] = self._value(node, last, given)

    def _value(self, node: fx.Node, last: Mapping[str, Any], given: list[Any]) -> Any:
        """The labels of what a node of the file gives; those of its first argument where the
        capture left nothing of it.
        """
        if node.op == "placeholder":
            return given.pop(0) if given else None
        if node.op == "get_attr":
            return self.cutting.flow.parameters.get(str(node.target))
        if node.target is py.getitem:
            whole = self.values[node.args[0]]  # type: ignore[index]
            many = isinstance(whole, (tuple, list))
            return whole[node.args[1]] if many else whole  # type: ignore[index]
        if node.op == "call_module" and str(node.target) in last:
            return last[str(node.target)]
        first = next((a for a in node.args if isinstance(a, fx.Node)), None)
        return self.values.get(first) if first is not None else None

    def kept(self, node: Any) -> dict[int, torch.Tensor]:
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        return self.cutting.kept(value) if isinstance(value, (Value, Parameter)) else {}

    def run(self) -> Numbers:
        for node in self.model.graph.nodes:
            module = self.model.get_submodule(str(node.target)) if _calls(node) else None
            if isinstance(module, Node) and (rewrite := REWRITES.get(module.kind)) is not None:
                rewrite(self, node, module)
        return self.found

    def source(self, node: fx.Node, module: Node, slot: int = 0) -> Any:
        """The argument that is an input of a node of the file."""
        place = module.slots[slot] if slot < len(module.slots) else None
        return node.args[place] if isinstance(place, int) else None

    def write(self, path: str, key: str, numbers: Sequence[int]) -> None:
        """key: `slot 1`, or the name of an attribute."""
        known = self.found.get(path, {}).get(key)
        if known is not None and known != list(numbers):
            raise SurgeryError(f"{path} of the ONNX file: two layers want different numbers of it")
        self.found.setdefault(path, {})[key] = list(numbers)

    def sizes(self, node: fx.Node, module: Node, slot: int, kept: Mapping[int, Any]) -> None:
        """Sizes of a result, where these are numbers of the file."""
        rank = len(self.values[node].shape) if isinstance(self.values[node], Value) else 0
        for dim, index in kept.items():
            self._size(node, module, slot, dim, rank, int(self.values[node].shape[dim]), len(index))

    def _size(
        self, node: Any, module: Node, slot: int, dim: int, rank: int, old: int, new: int
    ) -> None:
        held = module.slots[slot] if slot < len(module.slots) else None
        if isinstance(held, Host):
            place = dim - (rank - len(held.values)) if rank else dim  # shorter ones are broadcast
            numbers = self.found.get(str(node.target), {}).get(f"slot {slot}", list(held.values))
            if 0 <= place < len(numbers) and numbers[place] == old:
                changed = [*numbers[:place], new, *numbers[place + 1 :]]
                self.found.setdefault(str(node.target), {})[f"slot {slot}"] = changed
        elif isinstance(held, int):
            self._trace(node.args[held], dim, old, new)

    def _trace(self, node: Any, place: int, old: int, new: int) -> None:
        """Follows one number of a computed shape to the constant that it comes from, if it does."""
        module = self.model.get_submodule(str(node.target)) if _calls(node) else None
        if not isinstance(module, Node):
            return
        if module.kind in ("Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape"):
            self._size(node, module, 0, place, 0, old, new)
        elif module.kind == "Concat":
            for slot, held in enumerate(module.slots):
                length = len(held.values) if isinstance(held, Host) else self._length(node, held)
                if place < length:
                    self._size(node, module, slot, place, 0, old, new)
                    return
                place -= length

    def _length(self, node: fx.Node, held: Any) -> int:
        """How many numbers an argument has: exporters put shapes together of single ones."""
        before = node.args[held] if isinstance(held, int) else None
        module = self.model.get_submodule(str(before.target)) if _calls(before) else None  # type: ignore[union-attr]
        if isinstance(module, Node) and module.kind == "Slice":
            ends = [h.values[0] for h in module.slots[1:3] if isinstance(h, Host)]
            return max(1, ends[1] - ends[0]) if len(ends) == 2 else 1
        if isinstance(module, Node) and module.kind == "Concat":
            assert before is not None
            return sum(
                len(h.values) if isinstance(h, Host) else self._length(before, h)  # type: ignore[arg-type]
                for h in module.slots
            )
        return 1


def _calls(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_module"


def _result(slot: int) -> Callable[[Cut, fx.Node, Node], None]:
    """Sizes of the result, as an input of the node."""

    def rewrite(cut: Cut, node: fx.Node, module: Node) -> None:
        if kept := cut.kept(node):
            cut.sizes(node, module, slot, kept)

    return rewrite


def _split(cut: Cut, node: fx.Node, module: Node) -> None:
    source = cut.source(node, module)
    value, parts = cut.values.get(source), cut.values[node]
    if not isinstance(value, (Value, Parameter)) or not isinstance(parts, (tuple, list)):
        return
    axis = module.attributes.get("axis", 0) % len(value.shape)
    if axis not in cut.cutting.kept(value):
        return
    sizes = [
        len(k[axis]) if axis in (k := cut.cutting.kept(p)) else int(p.shape[axis]) for p in parts
    ]
    if "split" in module.attributes:
        cut.write(str(node.target), "split", sizes)
    elif len(module.slots) > 1 and isinstance(module.slots[1], Host):
        cut.write(str(node.target), "slot 1", sizes)


def _given(module: Node, name: str, slot: int) -> tuple[list[int] | None, str]:
    """Numbers that are an attribute in old files and an input in new ones; None where they are
    computed. And the key of their place.
    """
    held = module.slots[slot] if slot < len(module.slots) else None
    if isinstance(held, Host):
        return [int(v) for v in held.values], f"slot {slot}"
    return (module.attributes.get(name), name) if held is None else (None, name)


def _slice(cut: Cut, node: fx.Node, module: Node) -> None:
    kept = cut.kept(source := cut.source(node, module))
    if not kept:
        return
    shape = cut.values[source].shape
    starts, first = _given(module, "starts", 1)
    ends, last = _given(module, "ends", 2)
    axes, _ = _given(module, "axes", 3)
    steps, _ = _given(module, "steps", 4)
    if starts is None or ends is None:
        _computed_slice(cut, str(node.target), kept, int(shape[next(iter(kept))]))
        return
    axes = list(range(len(starts))) if axes is None else axes
    new = {first: list(starts), last: list(ends)}
    for i, axis in enumerate(a % len(shape) for a in axes):
        if axis not in kept:
            continue
        if steps is not None and steps[i] != 1:
            raise SurgeryError(f"{node.target} of the ONNX file takes every {steps[i]}th channel")
        for key, numbers in ((first, starts), (last, ends)):
            if -WHOLE < numbers[i] < WHOLE and numbers[i] != 0:
                new[key][i] = _moved(kept[axis], numbers[i], int(shape[axis]))
    for key, old in ((first, starts), (last, ends)):
        if new[key] != list(old):
            cut.write(str(node.target), key, new[key])


def _computed_slice(cut: Cut, path: str, kept: Mapping[int, Any], size: int) -> None:
    """Places that the file computes, as halves of what there is: those of the channels that are
    left become constants, as the parts need not be equal any more.
    """
    slices = [n for n in cut.captured.get(path, []) if operator(n) == "slice"]
    if len(slices) != 1 or len(kept) != 1:
        return
    dim, start, end, step = (*slices[0].args[1:], *[0, None, None, 1][len(slices[0].args) - 1 :])
    numbers = [0 if start is None else start, size if end is None else min(end, size)]  # type: ignore[operator]
    if dim not in kept or step not in (None, 1) or not all(type(v) is int for v in numbers):
        return
    for slot, number in enumerate(numbers, 1):
        cut.write(path, f"slot {slot}", [_moved(kept[dim], int(number), size)])  # type: ignore[arg-type, index]


def _moved(kept: torch.Tensor, position: int, size: int) -> int:
    """Where a position is when only the `kept` ones are left; counted from the start."""
    return int((kept < (position + size if position < 0 else position)).sum())


def _gather(cut: Cut, node: fx.Node, module: Node) -> None:
    kept = cut.kept(source := cut.source(node, module))
    value = cut.values.get(source)
    held = module.slots[1] if len(module.slots) > 1 else None
    if not kept or not isinstance(held, Host) or value is None:
        return
    axis = module.attributes.get("axis", 0) % len(value.shape)
    if axis not in kept:
        return
    size = int(value.shape[axis])
    place = {int(k): i for i, k in enumerate(kept[axis])}
    wanted = [v + size if v < 0 else v for v in map(int, held.values)]
    cut.write(str(node.target), "slot 1", [place[v] for v in wanted if v in place])


def _depthwise(cut: Cut, node: fx.Node, module: Node) -> None:
    value = cut.values.get(source := cut.source(node, module))
    groups = module.attributes.get("group", 1)
    if groups > 1 and 1 in (kept := cut.kept(source)) and groups == int(value.shape[1]):  # type: ignore[union-attr]
        cut.write(str(node.target), "group", [len(kept[1])])


REWRITES: dict[str, Callable[[Cut, fx.Node, Node], None]] = {
    "Reshape": _result(1),
    "Expand": _result(1),
    "ConstantOfShape": _result(0),
    "Resize": _result(3),
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Conv": _depthwise,
    "ConvTranspose": _depthwise,
}


# --- what was found, in the network and in its file


def renew(model: Any, described: Mapping[str, Any]) -> None:
    """Puts the numbers that `described` (`meta[ONNX_FORM]`) tells of into a network that was read
    from the whole file and has the cut sizes by now, in place. Raises where it is another network.
    """
    back = renumbered(model, described["numbers"])
    del back.graph.value_info[:]  # these say the old sizes, which ONNX Runtime refuses
    model.meta[ONNX_FORM] = described


def cut_file(model: fx.GraphModule, captured: fx.GraphModule, cutting: Cutting) -> None:
    """Rewrites the numbers of a network of an ONNX file whose tensors have been cut, in place, and
    makes the cut file the one that it comes from.
    """
    cut = Cut(model, captured, cutting)
    numbers = cut.run()
    back = renumbered(model, numbers)
    shapes: dict[str, Any] = {}
    for node, value in cut.values.items():
        if isinstance(value, Value) and _calls(node) and (kept := cutting.kept(value)):
            place = source_of(model).modules.get(str(node.target))  # type: ignore[union-attr]
            if place is not None:
                sizes = [len(kept[d]) if d in kept else None for d in range(len(value.shape))]
                shapes[back.graph.node[place].output[0]] = sizes
    for described in back.graph.value_info:
        if described.name in shapes:
            set_shape(described, shapes[described.name])
    before = model.meta[ONNX_FORM]
    merged = {p: {**before["numbers"].get(p, {}), **n} for p, n in numbers.items()}
    model.meta[ONNX_FORM] = {**before, "numbers": {**before["numbers"], **merged}}


def renumbered(model: fx.GraphModule, numbers: Numbers) -> WriteBack:
    """Puts numbers into the modules and into the file, with the tensors as they are now."""
    source = source_of(model)
    assert source is not None
    back = WriteBack(source)
    slots: dict[tuple[int, int], np.ndarray] = {}
    for path, found in sorted(numbers.items()):  # new constants are numbered
        module: Any = model.get_submodule(path)
        index = source.modules[path]
        for key, values in sorted(found.items()):
            if key.startswith("slot "):
                slot = int(key.removeprefix("slot "))
                held = module.slots[slot]
                known = isinstance(held, Host)  # else it was computed
                kind = (held.scalar, held.dtype) if known else (False, torch.int64)
                module.slots[slot] = Host(tuple(values), *kind)
                slots[index, slot] = np.array(values)
            else:
                value = values[0] if key == "group" else list(values)
                module.attributes = {**module.attributes, key: value}
                back.attribute(index, key, value)
    for path, index in source.modules.items():
        groups = getattr(model.get_submodule(path), "groups", None)
        if isinstance(groups, int):
            back.attribute(index, "group", groups)
    put_tensors(back, model)
    back.numbers(slots)
    rebased(model, back)
    return back
