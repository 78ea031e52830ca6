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

from mirabelle.channels.ids import FIXED, Labels, Parameter, Value, along, thin, varying, vector
from mirabelle.channels.meeting import make_rectangular, merge, mix, value_of
from mirabelle.channels.operators import CONSTANTS, COPIES, JOINS, MOVES, PARTS, POINTWISE, VIEWS
from mirabelle.graph.capture import module_path, operator

Rule = Callable[..., Any]


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one operator for the whole example. vectors: labels of the dimensions
    in proportion to which they shrink, and whether the operator sums over them. node: the operator.
    """

    macs: int
    vectors: tuple[tuple[torch.Tensor, bool], ...]
    node: fx.Node


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
            self.node = node  # whose rule is at work
            self.values[node] = self._run(node)
        if training is not None:
            self._follow_training(*training)
        make_rectangular(self.labels, self.values.values())

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

    def mix(self, plane: torch.Tensor, dims: Sequence[int], reason: str) -> torch.Tensor:
        return mix(self.labels, plane, dims, reason)

    def value(
        self, shape: Sequence[int], planes: Sequence[torch.Tensor], rest: int = FIXED
    ) -> Value:
        return value_of(self.labels, shape, planes, rest)

    def merge(self, node: fx.Node, a: Value, b: Value) -> Value:
        reason = f"{self.place(node)}: meets values that cannot be removed"
        return merge(self.labels, a, b, reason)

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

    def work(self, macs: int, *labels: torch.Tensor, summed: Sequence[torch.Tensor] = ()) -> None:
        found = [*((v, False) for v in labels), *((v, True) for v in summed)]
        vectors = tuple((v, over) for v, over in found if bool((v != FIXED).any()))
        self.works.append(Work(macs, vectors, self.node))

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
        """Concatenation: channels along `dim` are put one after another; those along other
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


def _viewed(node: Any) -> fx.Node | None:
    """The whole tensor of which `node` is a view, if anything else reads it; None where not."""
    shared = False
    whole = node
    while isinstance(whole, fx.Node) and (operator(whole) in VIEWS or whole.target is py.getitem):
        whole = whole.args[0]
        shared |= isinstance(whole, fx.Node) and len(whole.users) > 1
    return whole if shared and isinstance(whole, fx.Node) else None
