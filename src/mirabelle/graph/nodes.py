"""Typed reading of a captured graph's nodes: `torch.fx` types an argument as the union of all that
it may be, and which of them it is depends on the operator.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import fx, nn

M = TypeVar("M", bound=nn.Module)


def argument(node: fx.Node, place: int) -> fx.Node:
    """The node that stands at this place of a node's arguments; `TypeError` where none does."""
    found = optional_argument(node, place)
    if found is None:
        raise TypeError(f"{node} has no value as its argument {place}")
    return found


def optional_argument(node: fx.Node, place: int) -> fx.Node | None:
    """The same, but None where the argument is left out or is no node."""
    found = node.args[place] if len(node.args) > place else None
    return found if isinstance(found, fx.Node) else None


def setting(node: fx.Node, name: str) -> Any:
    """The argument of an ATen operator by the name that its schema has for it; ATen's default where
    it is left out. `KeyError` where the operator has none of this name.
    """
    schema: Any = getattr(node.target, "_schema", None)
    for place, declared in enumerate(schema.arguments if schema is not None else ()):
        if declared.name == name:
            if len(node.args) > place:
                return node.args[place]
            return node.kwargs.get(name, declared.default_value)
    raise KeyError(f"{node.target} has no argument {name!r}")


def has_setting(node: fx.Node, name: str) -> bool:
    """Whether the operator's schema has an argument of this name: overloads differ in theirs."""
    schema: Any = getattr(node.target, "_schema", None)
    return schema is not None and any(a.name == name for a in schema.arguments)


def target_name(node: fx.Node) -> str:
    """The path of the parameter that a node reads, or of the module that it calls."""
    return str(node.target)


def value_of(node: fx.Node) -> torch.Tensor:
    """The tensor that a node had when it was captured: its shape and type, no numbers. `TypeError`
    where it is no tensor.
    """
    found = node.meta.get("val")
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"{node} is no tensor")
    return found


def has_value(node: fx.Node) -> bool:
    """Whether a node is one tensor."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def computed_inputs(node: fx.Node) -> list[fx.Node]:
    """What a node reads that is neither a parameter nor a buffer."""
    return [n for n in node.all_input_nodes if n.op != "get_attr"]


def overload(node: fx.Node) -> str:
    """The overload of a node's ATen operator, such as `padding`; '' for anything else."""
    return str(getattr(node.target, "_overloadname", ""))


def module(network: nn.Module, path: str, kind: type[M]) -> M:
    """The module at this path; `TypeError` where it is of another kind."""
    found = network.get_submodule(path)
    if not isinstance(found, kind):
        raise TypeError(f"{path} is a {type(found).__name__}, not a {kind.__name__}")
    return found


def called(network: nn.Module, node: fx.Node | None, kind: type[M]) -> M | None:
    """The module that a node calls; None where it calls none, or one of another kind."""
    if node is None or node.op != "call_module":
        return None
    found = network.get_submodule(target_name(node))
    return found if isinstance(found, kind) else None
