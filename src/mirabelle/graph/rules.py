"""How labels pass through operators.

Operators that only move data run on the label tensors themselves; element-wise ones unite their operands; contractions and
normalisations have a rule each. An operator without a rule fixes every channel that it touches, and is named.
"""

from __future__ import annotations

import operator as py
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mirabelle.graph.capture import module_path, operator
from mirabelle.graph.labels import FIXED, Labels, Parameter, along, collapse, compact, varying, vector

MOVES = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "movedim", "squeeze", "unsqueeze", "expand", "expand_as", "clone",
    "contiguous", "cat", "concat", "stack", "split", "split_with_sizes", "unbind", "slice", "select", "narrow", "repeat", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "flip", "roll", "detach", "alias", "_unsafe_view", "view_as", "reshape_as", "lift_fresh_copy",
}  # fmt: skip
CUTS = {  # where each has its dimension, and the default
    "split": (2, 0), "split_with_sizes": (2, 0), "unbind": (1, 0), "slice": (1, 0), "select": (1, 0), "narrow": (1, 0), "roll": (2, None),
}  # fmt: skip
# Label tensors are expanded views, of which these can only be had as copies.
COPIES = {"view": torch.ops.aten.reshape.default, "_unsafe_view": torch.ops.aten.reshape.default, "view_as": torch.ops.aten.reshape_as.default}
SPATIAL = {
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "adaptive_max_pool2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d",
    "upsample_linear1d", "upsample_trilinear3d", "_upsample_nearest_exact2d", "reflection_pad2d", "replication_pad2d", "max_pool2d_with_indices",
}  # fmt: skip
REDUCTIONS = {"mean", "sum", "amax", "amin"}
POINTWISE = {
    "dropout", "dropout_", "feature_dropout", "zeros_like", "ones_like", "full_like", "to", "_to_copy", "type_as",
    "hardswish", "hardswish_", "relu_", "silu_", "hardtanh_", "threshold_", "alpha_dropout", "feature_alpha_dropout",
    "where", "masked_fill", "copy_", "fill_", "fill", "zero_",
}  # fmt: skip


class Flow:
    """One pass over a captured graph that labels every value."""

    def __init__(self, graph_module: fx.GraphModule, parameters: dict[str, Parameter]):
        self.labels = Labels()
        self.parameters = parameters
        self.unknown: dict[str, list[str]] = {}
        self._values: dict[fx.Node, Any] = {}
        for node in graph_module.graph.nodes:
            self._values[node] = self._run(node)
        self._check_layout()

    def _check_layout(self) -> None:
        """What is left of a tensor must be a tensor: channels that run along two dimensions at once would leave holes."""
        roots = self.labels.solve()
        for node, value in self._values.items():
            for labels in pytree.tree_leaves(value):
                if isinstance(labels, torch.Tensor) and len(varying(labels)) > 1 and len(varying(roots[compact(labels)])) > 1:
                    self.labels.fix(labels, f"{self.place(node)}: channels run along two dimensions at once")

    def place(self, node: fx.Node) -> str:
        return f"{operator(node) or node.name} in {module_path(node) or 'the network'}"

    def _run(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self.parameters.get(str(node.target))
        if node.op == "placeholder":
            return self.constant(node)
        args, kwargs = pytree.tree_map(lambda v: self._values[v] if isinstance(v, fx.Node) else v, (node.args, node.kwargs))
        if node.op == "output":
            for value in pytree.tree_leaves(args):
                if isinstance(value, (torch.Tensor, Parameter)):
                    self.labels.fix(self.labels.of(value), "an output of the network")
            return None
        if node.target is py.getitem:
            return args[0][args[1]]
        name = operator(node)
        tensors = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, (torch.Tensor, Parameter))]
        if not tensors:
            return self.constant(node)
        if name in RULES:
            return RULES[name](self, node, *args, **kwargs)
        if name in MOVES:
            return self._move(node, args, kwargs)
        if name in SPATIAL:
            return spatial(self, node, *args, **kwargs)
        if name in POINTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ()):
            return self.unite(node, tensors)
        return self.give_up(node, tensors, f"{self.place(node)}: Mirabelle has no rule for this operator", unknown=True)

    def constant(self, node: fx.Node) -> Any:
        """Labels of something without channels: all fixed; the value itself where it is no tensor."""

        def fixed(value: Any) -> Any:
            return torch.zeros((), dtype=torch.int64).expand(tuple(value.shape)) if isinstance(value, torch.Tensor) else value

        return pytree.tree_map(fixed, node.meta.get("val"))

    def give_up(self, node: fx.Node, values: list, reason: str, unknown: bool = False) -> Any:
        """Fixes every channel of `values`, and what reads the result: what cannot be followed is left alone."""
        if unknown:
            self.unknown.setdefault(operator(node) or str(node.target), []).append(module_path(node))
        lost = self.labels.fresh(1)
        for labels in (lost, *map(self.labels.of, values)):
            self.labels.fix(labels, reason)
        return pytree.tree_map(lambda v: lost[0].expand(v.shape) if isinstance(v, torch.Tensor) else v, self.constant(node))

    def unite(self, node: fx.Node, values: list) -> Any:
        """Element-wise operators: elements that meet are one channel. An operand that is broadcast along the channels shares none with them."""
        shape = tuple(node.meta["val"].shape)
        merged: torch.Tensor | None = None
        repeated: set[int] = set()
        for value in values:
            raw = self.labels.of(value)
            if raw.numel() == 1:
                self.labels.fix(raw, f"{self.place(node)}: one number for all channels")
                continue
            other, other_repeated = raw.expand(shape), _broadcast(raw, shape)
            if merged is None:
                merged, repeated = other, other_repeated
                continue
            thin, other_thin = bool(repeated & set(varying(other))), bool(other_repeated & set(varying(merged)))
            for labels, is_thin in ((merged, thin), (other, other_thin)):
                if is_thin:
                    self.labels.fix(labels, f"{self.place(node)}: broadcast along the channels of the other operand")
            if thin and other_thin:
                merged = torch.zeros(1, dtype=torch.int64).expand(shape)
            elif thin or other_thin:
                merged = other if thin else merged
            else:
                a, b = _shrink(merged, other)
                self.labels.meet(a, b, f"{self.place(node)}: meets values that cannot be removed")
                plainer = a if len(varying(a)) <= len(varying(b)) else b  # a bare parameter has a label an element
                merged = torch.where((a == FIXED) | (b == FIXED), FIXED, plainer).expand(shape)
            repeated &= other_repeated
        return self.constant(node) if merged is None else merged

    def _move(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        name = operator(node)
        args, kwargs = pytree.tree_map(lambda v: self.labels.of(v) if isinstance(v, Parameter) else v, (args, kwargs))
        tensors = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        if name in CUTS:
            place, default = CUTS[name]
            dims = args[place] if len(args) > place else kwargs.get("dim", default)
            if _dims(tensors[0], dims) & set(varying(tensors[0])):
                return self.give_up(node, tensors, f"{self.place(node)}: cuts the channels at places written into forward")
        try:
            moved = COPIES.get(name, node.target)(*args, **kwargs)  # type: ignore[operator]
        except Exception as error:  # an operator that refuses whole numbers
            return self.give_up(node, tensors, f"{self.place(node)}: cannot be followed ({type(error).__name__})")
        leaves, expected = pytree.tree_leaves(moved), pytree.tree_leaves(node.meta["val"])
        if [v.shape for v in leaves] != [v.shape for v in expected]:
            return self.give_up(node, tensors, f"{self.place(node)}: cannot be followed (its result has another shape)")
        return pytree.tree_map(lambda v: collapse(v) if isinstance(v, torch.Tensor) else v, moved)


def _dims(labels: torch.Tensor, dims: Any) -> set[int]:
    """Dimensions as an operator's argument gives them: one or several, negative ones from the end; none of them are all."""
    given = range(labels.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return {d % labels.ndim for d in given} if labels.ndim else set()


def _broadcast(labels: torch.Tensor, shape: tuple[int, ...]) -> set[int]:
    """The dimensions of `shape` along which an operand with these labels is repeated."""
    missing = len(shape) - labels.ndim
    return {d for d in range(len(shape)) if shape[d] > 1 and (d < missing or labels.shape[d - missing] == 1)}


def _shrink(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both without the dimensions along which neither varies (size 1 instead)."""
    keep = set(varying(a)) | set(varying(b))
    for d in range(a.ndim):
        if d not in keep and a.shape[d] > 1:
            a, b = a.narrow(d, 0, 1), b.narrow(d, 0, 1)
    return a, b


# --- rules: (flow, node, *the operator's own arguments) -> labels of the result -----------------------------------------------------------


def convolution(
    flow: Flow, node: fx.Node, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    """Reads the channels of dimension 1 and makes new ones. Depthwise: the channels pass through. Grouped: position j of every group is one channel,
    so that the groups stay equal."""
    return _convolve(flow, node, x, weight, bias, groups, transposed=False)


def transposed_convolution(
    flow: Flow,
    node: fx.Node,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """As `convolution`; the weight is (in, out / groups, ...)."""
    return _convolve(flow, node, x, weight, bias, groups, transposed=True)


def _convolve(flow: Flow, node: fx.Node, x: Any, weight: Any, bias: Any, groups: int, transposed: bool) -> Any:
    shape = tuple(node.meta["val"].shape)
    labels = flow.labels.of(x)
    operands = [v for v in (x, weight, bias) if v is not None]
    dim = labels.ndim - (weight.tensor.ndim - 1 if isinstance(weight, Parameter) else labels.ndim - 1)
    inputs = vector(labels, dim)
    if not isinstance(weight, Parameter) or not (bias is None or isinstance(bias, Parameter)):
        return flow.give_up(node, operands, f"{flow.place(node)}: its weight is computed, not a parameter")
    if inputs is None or len(shape) != labels.ndim:
        return flow.give_up(node, operands, f"{flow.place(node)}: channels run along a dimension that it does not read")
    outputs_count = shape[dim]
    if groups > 1 and groups == len(inputs):
        outputs = inputs.repeat_interleave(outputs_count // groups)
        flow.labels.link(weight, 0, inputs if transposed else outputs, "along")
    elif groups > 1:
        by_group = inputs.view(groups, -1)
        flow.labels.unite(by_group[0].expand_as(by_group), by_group)
        flow.labels.fix(
            inputs[by_group.eq(FIXED).any(0).repeat(groups)], f"{flow.place(node)}: shares a group position with values that cannot be removed"
        )
        outputs = flow.labels.fresh(outputs_count // groups).repeat(groups)
        if transposed:
            flow.labels.link(weight, 0, inputs, "in")
            flow.labels.link(weight, 1, outputs[: outputs_count // groups], "out")
        else:
            flow.labels.link(weight, 1, by_group[0], "in")
            flow.labels.link(weight, 0, outputs, "out")
    else:
        outputs = flow.labels.fresh(outputs_count)
        flow.labels.link(weight, int(not transposed), inputs, "in")
        flow.labels.link(weight, int(transposed), outputs, "out")
    flow.labels.link(bias, 0, outputs, "along")
    return along(outputs, dim, shape)


def linear(flow: Flow, node: fx.Node, x: Any, weight: Any, bias: Any = None) -> Any:
    """Reads the channels of the last dimension and makes new ones; along another dimension than the channels' (token mixing) it lets them pass."""
    shape = tuple(node.meta["val"].shape)
    labels = flow.labels.of(x)
    if not isinstance(weight, Parameter) or not (bias is None or isinstance(bias, Parameter)):
        return flow.give_up(node, [v for v in (x, weight, bias) if v is not None], f"{flow.place(node)}: its weight is computed, not a parameter")
    dims = varying(labels)
    if dims and labels.ndim - 1 not in dims:
        return labels.narrow(-1, 0, 1).expand(shape)
    inputs = vector(labels, -1)
    if inputs is None:
        return flow.give_up(node, [x], f"{flow.place(node)}: channels run along a dimension that it does not read")
    outputs = flow.labels.fresh(shape[-1])
    flow.labels.link(weight, 1, inputs, "in")
    flow.labels.link(weight, 0, outputs, "out")
    flow.labels.link(bias, 0, outputs, "along")
    return along(outputs, len(shape) - 1, shape)


def batch_norm(flow: Flow, node: fx.Node, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any, **options: Any) -> Any:
    """Each channel on its own: its four vectors accompany dimension 1."""
    labels = flow.labels.of(x)
    channels = vector(labels, 1)
    vectors = [v for v in (weight, bias, mean, variance) if v is not None]
    if channels is None or not all(isinstance(v, Parameter) for v in vectors):
        return flow.give_up(node, [x, *vectors], f"{flow.place(node)}: it normalises another dimension than the channels', or by computed values")
    for parameter in vectors:
        flow.labels.link(parameter, 0, channels, "along")
    return labels


def prelu(flow: Flow, node: fx.Node, x: Any, weight: Any) -> Any:
    """A slope per channel of dimension 1, or one for all."""
    labels = flow.labels.of(x)
    if not isinstance(weight, Parameter):
        return flow.give_up(node, [x, weight], f"{flow.place(node)}: its slopes are computed")
    if weight.tensor.numel() > 1:
        channels = vector(labels, 1)
        if channels is None:
            return flow.give_up(node, [x, weight], f"{flow.place(node)}: channels run along another dimension")
        flow.labels.link(weight, 0, channels, "along")
    return labels


def chunk(flow: Flow, node: fx.Node, x: Any, chunks: int, dim: int = 0) -> Any:
    """Equal parts, which stay equal: position j of every part is one channel. Unequal parts cut the channels where nobody can follow."""
    labels = flow.labels.of(x)
    parts = labels.chunk(chunks, dim)
    if dim % labels.ndim in varying(labels):
        if any(part.shape != parts[0].shape for part in parts):
            return flow.give_up(node, [x], f"{flow.place(node)}: cuts the channels into parts that are not equal")
        for part in parts[1:]:
            flow.labels.meet(compact(parts[0]), compact(part), f"{flow.place(node)}: shares its position with values that cannot be removed")
    return tuple(collapse(part) for part in parts)


def pad(flow: Flow, node: fx.Node, x: Any, widths: Any, *rest: Any, **options: Any) -> Any:
    """Padding of space lets the channels pass; padding of channels by a constant adds some that cannot be removed."""
    labels = flow.labels.of(x)
    padded = {labels.ndim - 1 - i // 2 for i, p in enumerate(widths) if p}
    if not padded & set(varying(labels)):
        return spatial(flow, node, x)
    if operator(node) == "pad" and rest and rest[0] != "constant":
        return flow.give_up(node, [x], f"{flow.place(node)}: repeats channels as padding")
    return collapse(nn.functional.pad(labels, tuple(widths), value=FIXED))


def spatial(flow: Flow, node: fx.Node, x: Any, *rest: Any, **options: Any) -> Any:
    """Pooling, resizing and padding: the channels pass, the other dimensions change size. The operator's name ends with how many it works on."""
    labels = flow.labels.of(x)
    value = node.meta["val"]
    outputs = value if isinstance(value, (tuple, list)) else [value]
    shape = tuple(outputs[0].shape)
    count = re.search(r"(\d)d", operator(node))
    worked_on = range(labels.ndim - int(count[1]), labels.ndim) if count else ()
    if len(shape) != labels.ndim or any(shape[d] != labels.shape[d] or d in worked_on for d in varying(labels)):
        return flow.give_up(node, [x], f"{flow.place(node)}: channels run along a dimension that it changes")
    for d in range(labels.ndim):
        if labels.shape[d] != shape[d]:
            labels = labels.narrow(d, 0, 1)
    labels = labels.expand(shape)
    return (labels, labels) if isinstance(value, (tuple, list)) else labels


def reduction(flow: Flow, node: fx.Node, x: Any, dim: Any = None, keepdim: bool = False, **options: Any) -> Any:
    """Sums and means over dimensions that hold no channels; over channels it ties them to their number, so they are fixed."""
    labels = flow.labels.of(x)
    dims = sorted(_dims(labels, dim), reverse=True)
    if set(dims) & set(varying(labels)):
        return flow.give_up(node, [x], f"{flow.place(node)}: reduces over channels")
    for d in dims:
        labels = labels.narrow(d, 0, 1) if keepdim else labels.select(d, 0)
    return labels


RULES: dict[str, Callable[..., Any]] = {
    "conv1d": convolution, "conv2d": convolution, "conv3d": convolution, "conv_transpose1d": transposed_convolution,
    "conv_transpose2d": transposed_convolution, "conv_transpose3d": transposed_convolution,
    "linear": linear, "batch_norm": batch_norm, "prelu": prelu, "chunk": chunk, "pad": pad, "constant_pad_nd": pad,
    **dict.fromkeys(REDUCTIONS, reduction),
}  # fmt: skip
