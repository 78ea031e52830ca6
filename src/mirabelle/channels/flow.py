"""One pass over a captured graph that labels every value.

Operators that only move data run on the label tensors themselves; element-wise ones unite their
operands; what remains has a rule in `rules.py`. An operator without a rule fixes every channel that
it touches, and is named.
"""

from __future__ import annotations

import operator as py
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from mirabelle.channels.ids import (
    FIXED,
    Labels,
    Parameter,
    Value,
    along,
    collapse,
    compact,
    thin,
    varying,
    vector,
)
from mirabelle.graph.capture import module_path, operator

MOVES = {
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "permute",
    "transpose",
    "t",
    "movedim",
    "moveaxis",
    "swapaxes",
    "squeeze",
    "unsqueeze",
    "expand",
    "expand_as",
    "clone",
    "contiguous",
    "split",
    "split_with_sizes",
    "unbind",
    "slice",
    "select",
    "narrow",
    "repeat",
    "repeat_interleave",
    "flip",
    "detach",
    "detach_",
    "alias",
    "_unsafe_view",
    "view_as",
    "reshape_as",
    "lift_fresh_copy",
    "tile",
    "chunk",
    "tensor_split",
    "unfold",
    "diagonal",
    "mT",
    "adjoint",
    "numpy_T",
    "unsafe_split",
    "unsafe_chunk",
    "rot90",
    "fliplr",
    "flipud",
    "squeeze_",
    "unsqueeze_",
    "resolve_conj",
}
# Label tensors are expanded views, of which these can only be had as copies.
COPIES = {
    "view": torch.ops.aten.reshape.default,
    "_unsafe_view": torch.ops.aten.reshape.default,
    "view_as": torch.ops.aten.reshape_as.default,
}
JOINS = {"cat": 0, "concat": 0, "concatenate": 0, "stack": 0}
PARTS = {"split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"}
POINTWISE = {
    "dropout",
    "dropout_",
    "feature_dropout",
    "zeros_like",
    "ones_like",
    "full_like",
    "to",
    "_to_copy",
    "type_as",
    "float",
    "half",
    "bernoulli",
    "rand_like",
    "hardswish",
    "hardswish_",
    "relu_",
    "silu_",
    "hardtanh_",
    "threshold_",
    "alpha_dropout",
    "feature_alpha_dropout",
    "empty_like",
    "randn_like",
    "where",
    "masked_fill",
    "masked_fill_",
    "fill_",
    "fill",
    "zero_",
    "gelu_",
    "mish_",
    "rrelu",
    "native_dropout",
    "clamp",
    "clamp_",
}
CONSTANTS = {
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
}  # they take only type and device from their operand
VIEWS = {
    "view",
    "select",
    "slice",
    "narrow",
    "split",
    "chunk",
    "unbind",
    "transpose",
    "permute",
    "expand",
    "squeeze",
    "unsqueeze",
    "diagonal",
    "t",
}

Rule = Callable[..., Any]


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one operator for the whole example. vectors: labels of the dimensions
    in proportion to which they shrink, and whether the operator sums over them.
    """

    macs: int
    vectors: tuple[tuple[torch.Tensor, bool], ...]


class Flow:
    """The labels of all values of a graph. rules: by operator name, called with (flow, node, *the
    operator's own arguments).

    training: the graph of the network in training mode, with what it reads, where that reads more
    parameters.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        parameters: dict[str, Parameter],
        rules: dict[str, Rule],
        training: tuple[fx.GraphModule, dict[str, Parameter]] | None = None,
    ):
        self.labels = Labels()
        self.parameters = parameters
        self.unknown: dict[str, list[str]] = {}
        self.works: list[Work] = []
        self.values: dict[fx.Node, Any] = {}
        self._rules = rules
        for node in graph_module.graph.nodes:
            self.values[node] = self._run(node)
        if training is not None:
            self._follow_training(*training)
        self._make_rectangular()

    # --- what rules use
    # ----------------------------------------------------------------------------------------------

    def place(self, node: fx.Node) -> str:
        return f"{operator(node) or node.name} in {module_path(node) or 'the network'}"

    def of(self, value: Value | Parameter) -> Value:
        return self.labels.of(value) if isinstance(value, Parameter) else value

    def constant(self, node: fx.Node, rest: int = FIXED) -> Any:
        """Labels of something without channels: all fixed; the value itself where it is no
        tensor.
        """
        return pytree.tree_map(
            lambda v: Value(tuple(v.shape), (), rest) if isinstance(v, torch.Tensor) else v,
            node.meta.get("val"),
        )

    def give_up(
        self, node: fx.Node, values: Sequence[Value | Parameter], reason: str, unknown: bool = False
    ) -> Any:
        """Fixes every channel of `values`, and what reads the result: what cannot be followed is
        left alone.
        """
        if unknown:
            self.unknown.setdefault(operator(node) or str(node.target), []).append(
                module_path(node)
            )
        for value in values:
            self.labels.fix_all(self.of(value).planes, reason)
        return self.constant(node, self.labels.lost(f"{reason}"))

    def mix(self, plane: torch.Tensor, dims: Sequence[int], reason: str) -> torch.Tensor:
        """What an operator that mixes the elements along `dims` makes of a plane: the channels that
        differ along them become one.
        """
        vary = set(varying(plane))
        hit = vary & {d % plane.ndim for d in dims}
        if not hit:
            return plane
        first, whole = thin(plane, vary - hit), thin(plane, vary)
        self.labels.meet(first.expand_as(whole), whole, reason)
        return first.expand(plane.shape)

    def read(self, node: fx.Node, value: Value, dim: int) -> torch.Tensor:
        """(size,) labels of what is read along `dim`; channels along other dimensions, which do not
        survive, are fixed.
        """
        dim = dim % len(value.shape)
        planes = value.along(dim)
        reason = f"{self.place(node)}: channels run along a dimension that it does not read"
        self.labels.fix_all(
            [p for p in value.planes if p is not (planes[0] if planes else None)], reason
        )
        if not planes:
            return torch.full((value.shape[dim],), value.rest)
        others = [d for d in range(len(value.shape)) if d != dim]
        return vector(
            self.mix(planes[0], others, f"{self.place(node)}: meets values that cannot be removed"),
            dim,
        )

    def value(
        self, shape: Sequence[int], planes: Sequence[torch.Tensor], rest: int = FIXED
    ) -> Value:
        """A value with these planes; a plane in which the channel does not change is none."""
        kept = []
        for plane in planes:
            plane = collapse(plane)
            if varying(plane):
                kept.append(plane)
            elif plane.numel() and (label := int(plane.reshape(-1)[0])) != FIXED:
                self.labels.fix(thin(plane, ()), "a single channel")
                rest = rest or label
        return Value(tuple(shape), tuple(kept), rest)

    def attach(
        self,
        node: fx.Node,
        weight: Value | Parameter | None,
        dims: Mapping[int, tuple[torch.Tensor, str]],
    ) -> None:
        """Ties the dimensions of a weight to channels, in a role (`Link`): those of a parameter, or
        those of the parameters that a computed weight was made from.
        """
        if weight is None or isinstance(weight, Parameter):
            for dim, (labels, role) in dims.items():
                self.labels.link(weight, dim, labels, role)
            return
        self.labels.roles(weight, {d: role for d, (_, role) in dims.items()})
        for dim, (labels, _) in dims.items():
            self.merge(
                node,
                Value(weight.shape, (along(labels, dim, weight.shape),)),
                Value(weight.shape, tuple(weight.along(dim)), weight.rest),
            )
        for dim in range(len(weight.shape)):
            if dim not in dims:
                self.labels.fix_all(
                    weight.along(dim), f"{self.place(node)}: the size of its kernel"
                )

    def work(self, macs: int, *vectors: torch.Tensor, summed: Sequence[torch.Tensor] = ()) -> None:
        found = [*((v, False) for v in vectors), *((v, True) for v in summed)]
        self.works.append(
            Work(macs, tuple((v, over) for v, over in found if bool((v != FIXED).any())))
        )

    def _follow_training(
        self, graph_module: fx.GraphModule, parameters: dict[str, Parameter]
    ) -> None:
        """What training alone computes (auxiliary classifiers) reads channels too, and so loses
        them; it costs nothing and decides nothing.
        """
        known, works = {p.name for p in self.parameters.values()}, len(self.works)
        self.parameters = {**self.parameters, **parameters}
        for node in graph_module.graph.nodes:
            self.values[node] = self._run(node)
        del self.works[works:]
        for key, link in self.labels.links.items():
            if link.parameter not in known:
                self.labels.links[key] = replace(link, role="along")

    # --- dispatch
    # ----------------------------------------------------------------------------------------------

    def _run(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self.parameters.get(str(node.target))
        if node.op == "placeholder":
            return self.constant(node)
        args, kwargs = pytree.tree_map(
            lambda v: self.values[v] if isinstance(v, fx.Node) else v, (node.args, node.kwargs)
        )
        tensors = [
            v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, (Value, Parameter))
        ]
        if node.op == "output":
            for value in tensors:
                self.labels.fix_all(self.of(value).planes, "an output of the network")
            return None
        if node.target is py.getitem:
            return args[0][args[1]]
        name = operator(node)
        if (
            not tensors or name in CONSTANTS or node.meta.get("val") is None
        ):  # the last are checks, without a result
            return self.constant(node)
        if (
            name.endswith("_")
            and not name.endswith("__")
            and (whole := _viewed(node.args[0])) is not None
        ):
            everything = [
                *tensors,
                *(v for v in [self.values[whole]] if isinstance(v, (Value, Parameter))),
            ]
            return self.give_up(
                node, everything, f"{self.place(node)}: writes into a part of a tensor"
            )
        if name in self._rules:
            return self._rules[name](self, node, *args, **kwargs)
        if name in JOINS:
            return self.join(
                node,
                args[0],
                args[1] if len(args) > 1 else kwargs.get("dim", 0),
                stack=name == "stack",
            )
        if name in MOVES:
            return self.move(node, args, kwargs)
        if name in POINTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ()):
            return self.unite(node, tensors)
        if not any(self.of(v).planes for v in tensors):
            return self.constant(
                node, next((rest for v in tensors if (rest := self.of(v).rest)), FIXED)
            )
        return self.give_up(
            node,
            tensors,
            f"{self.place(node)}: Mirabelle has no rule for this operator",
            unknown=True,
        )

    # --- data movement, joining, element-wise
    # -----------------------------------------------------------------------------------------

    def move(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Runs the operator on the label tensors themselves; of several operands (`view_as`) only
        the first has labels that matter.
        """
        name = operator(node)
        source = self.of(args[0])
        expected, spec = pytree.tree_flatten(node.meta["val"])
        shapes = [tuple(v.shape) for v in expected]
        rest, results = source.rest, [[] for _ in shapes]
        function: Any = COPIES.get(name, node.target)
        others = pytree.tree_map(
            lambda v: (
                torch.empty(v.shape)
                if isinstance(v, Value)
                else torch.empty(v.tensor.shape)
                if isinstance(v, Parameter)
                else v
            ),
            (args[1:], kwargs),
        )
        for plane in source.planes:
            try:
                moved = pytree.tree_leaves(function(plane, *others[0], **others[1]))
            except Exception as error:  # an operator that refuses whole numbers
                return self.give_up(
                    node,
                    [source],
                    f"{self.place(node)}: cannot be followed ({type(error).__name__})",
                )
            if [tuple(v.shape) for v in moved] != shapes:
                return self.give_up(
                    node,
                    [source],
                    f"{self.place(node)}: cannot be followed (its result has another shape)",
                )
            if name in PARTS:
                self._keep_equal(node, plane, moved)
            for result, part in zip(results, moved, strict=True):
                result.append(part)
        return pytree.tree_unflatten(
            [self.value(s, r, rest) for s, r in zip(shapes, results, strict=True)], spec
        )

    def _keep_equal(self, node: fx.Node, plane: torch.Tensor, parts: list[torch.Tensor]) -> None:
        """Equal parts stay equal: position j of every part is one channel, so that a forward that
        divides by their number goes on working.
        """
        cut = next((d for d in range(plane.ndim) if parts[0].shape[d] != plane.shape[d]), None)
        if cut in varying(plane) and all(p.shape == parts[0].shape for p in parts):
            for part in parts[1:]:
                dims = set(varying(parts[0])) | set(varying(part))
                self.labels.meet(
                    thin(parts[0], dims),
                    thin(part, dims),
                    f"{self.place(node)}: shares its position with values that cannot be removed",
                )

    def join(
        self, node: fx.Node, values: Sequence[Value | Parameter], dim: int, stack: bool = False
    ) -> Value:
        """Concatenation: channels along `dim` are put behind one another; those along other
        dimensions are the same in every part.
        """
        shape = tuple(node.meta["val"].shape)
        dim = dim % len(shape)
        parts = [v for v in map(self.of, values) if 0 not in v.shape] or [
            *map(self.of, values)
        ]  # empty parts say nothing
        if stack:
            parts = [
                Value(
                    (*v.shape[:dim], 1, *v.shape[dim:]),
                    tuple(p.unsqueeze(dim) for p in v.planes),
                    v.rest,
                )
                for v in parts
            ]
        rest = next((v.rest for v in parts if v.rest), FIXED)
        planes, through = [], []
        # Heads and their parts run along several dimensions; a part of the heads alone belongs
        # behind them.
        across = {d for v in parts for p in v.along(dim) for d in varying(p)} - {dim}
        behind = [v.along(dim) or [p for p in v.planes if across & set(varying(p))] for v in parts]
        if any(v.along(dim) for v in parts):
            for own in behind:
                self.labels.fix_all(
                    own[1:], f"{self.place(node)}: channels run along several dimensions"
                )
            planes.append(
                torch.cat(
                    [
                        own[0] if own else torch.tensor(v.rest).expand(v.shape)
                        for v, own in zip(parts, behind, strict=True)
                    ],
                    dim,
                )
            )
        else:
            behind = [[] for _ in parts]
        for v, own in zip(parts, behind, strict=True):
            rows = tuple(p.narrow(dim, 0, 1) for p in v.planes if not any(p is o for o in own))
            through.append(Value((*shape[:dim], 1, *shape[dim + 1 :]), rows, v.rest))
        merged = through[0]
        for other in through[1:]:
            merged = self.merge(node, merged, other)
        return self.value(shape, [*planes, *(p.expand(shape) for p in merged.planes)], rest)

    def merge(self, node: fx.Node, a: Value, b: Value) -> Value:
        """Elements that meet are one channel. An operand that is repeated along a dimension (size
        1) shares no channel of that dimension.
        """
        shape = torch.broadcast_shapes(a.shape, b.shape)
        reason = f"{self.place(node)}: meets values that cannot be removed"
        (left, wide_a), (right, wide_b) = ((v.planes, _broadcast(v.shape, shape)) for v in (a, b))
        left, right = [p.expand(shape) for p in left], [p.expand(shape) for p in right]
        left, right = (
            self._settle(left, right, wide_b, reason),
            self._settle(right, left, wide_a, reason),
        )
        merged = []
        for p in left:
            dims = set(varying(p))
            partners = [q for q in right if dims & set(varying(q))]
            right = [q for q in right if not any(q is other for other in partners)]
            for q in partners:
                both = dims | set(varying(q))
                x, y = thin(p, both), thin(q, both)
                self.labels.meet(
                    x.expand(torch.broadcast_shapes(x.shape, y.shape)),
                    y.expand(torch.broadcast_shapes(x.shape, y.shape)),
                    reason,
                )
                if len(varying(q)) < len(dims):
                    p = q
                p = torch.where((x == FIXED) | (y == FIXED), FIXED, thin(p, both)).expand(shape)
            if not partners and not dims <= wide_b:
                self._meet_rest(p, b.rest, reason)
            merged.append(p)
        for q in right:
            if not set(varying(q)) <= wide_a:
                self._meet_rest(q, a.rest, reason)
            merged.append(q)
        return self.value(shape, merged, a.rest or b.rest)

    def _settle(
        self, planes: list[torch.Tensor], others: list[torch.Tensor], wide: set[int], reason: str
    ) -> list[torch.Tensor]:
        """Channels that run along several dimensions (heads and their parts), met by an operand
        that spans only some of them, become one along those.
        """
        settled = []
        for plane in planes:
            dims = set(varying(plane))
            partners = [(q, set(varying(q))) for q in others if dims & set(varying(q))]
            narrow = [(q, along) for q, along in partners if along < dims]
            hit = (dims - wide - {d for _, along in partners for d in along}) | {
                d for _, along in narrow for d in along
            }
            if len(dims) > 1 and hit and hit != dims:
                self.labels.fix_all([q for q, _ in narrow], reason)
                plane = self.mix(plane, sorted(hit), reason)
            elif len(dims) > 1 and narrow and hit == dims:
                plane = self.mix(plane, sorted(dims - narrow[0][1]), reason)
            settled.append(plane)
        return settled

    def _meet_rest(self, plane: torch.Tensor, rest: int, reason: str) -> None:
        labels = compact(plane)
        self.labels.meet(labels, torch.full_like(labels, rest), reason)

    def unite(self, node: fx.Node, values: Sequence[Value | Parameter]) -> Any:
        """Element-wise operators. Where the result's shape is not that of the operands broadcast,
        nothing is known.
        """
        operands = [v for v in map(self.of, values) if v.shape != ()]
        value = node.meta["val"]
        if isinstance(value, (tuple, list)):
            value = value[0]
        if not operands:
            return self.constant(node)
        merged = operands[0]
        for other in operands[1:]:
            merged = self.merge(node, merged, other)
        if merged.shape != tuple(value.shape):
            return self.give_up(
                node,
                operands,
                f"{self.place(node)}: its result has another shape than its operands",
            )
        return (
            tuple(merged for _ in node.meta["val"])
            if isinstance(node.meta["val"], (tuple, list))
            else merged
        )

    # --- at the end
    # ----------------------------------------------------------------------------------------------

    def _make_rectangular(self) -> None:
        """What is left of a tensor must be a tensor: where channels run along two dimensions at
        once they become one along all but the longest.
        """
        seen: set[tuple] = set()
        roots = self.labels.solve()
        for value in pytree.tree_leaves(list(self.values.values())):
            for plane in value.planes if isinstance(value, Value) else ():
                if len(varying(plane)) < 2:
                    continue
                small = roots[thin(plane, varying(plane))]
                dims = varying(small)
                if len(dims) < 2 or (key := (small.shape, small.numpy().tobytes())) in seen:
                    continue
                seen.add(key)
                kept = max(dims, key=lambda d: small.shape[d])
                first = thin(small, [kept])
                self.labels.meet(
                    first.expand(small.shape),
                    small,
                    "shares its position with values that cannot be removed",
                )
                roots = self.labels.solve()


def _broadcast(own: tuple[int, ...], shape: Sequence[int]) -> set[int]:
    """The dimensions of `shape` along which an operand of shape `own` is repeated."""
    missing = len(shape) - len(own)
    return {d for d in range(len(shape)) if d < missing or (own[d - missing] == 1 and shape[d] > 1)}


def _viewed(node: Any) -> fx.Node | None:
    """The whole tensor of which `node` is a view, if anything else reads it; None where not."""
    shared = False
    whole = node
    while isinstance(whole, fx.Node) and (operator(whole) in VIEWS or whole.target is py.getitem):
        whole = whole.args[0]
        shared |= isinstance(whole, fx.Node) and len(whole.users) > 1
    return whole if shared and isinstance(whole, fx.Node) else None
