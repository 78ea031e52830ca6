"""Names that Python or torch have a use of their own for in a graph: keywords, attributes of
modules, and text that is no name at all.
"""

from __future__ import annotations

import keyword
import re

from torch import fx, nn
from torch.fx import graph as fx_graph

_MODULE = fx.GraphModule(nn.Module(), fx.Graph())
TAKEN = {*dir(_MODULE), *vars(_MODULE), *dir(nn.Module()), "self", "root", "base"}


def is_free(name: str) -> bool:
    """Whether a module, a tensor or an argument can have this name in any graph."""
    return name not in TAKEN and not keyword.iskeyword(name)


def identifier(name: str, digits: bool = False) -> str:
    """`name` as one that a graph can hold: `to` becomes `to_`. With `digits` it may begin with one,
    as names in a Sequential do.
    """
    plain = re.sub(r"\W", "_", name) or "value"
    plain = plain if digits or not plain[0].isdigit() else f"_{plain}"
    return plain if is_free(plain) else f"{plain}_"


def rename_nodes(graph: fx.Graph) -> None:
    """Gives nodes whose names are taken other ones: what is called after them is an attribute."""
    for node in graph.nodes:
        if not is_free(node.name):
            node._rename(f"{node.name}_value")


_usual_target = fx_graph._format_target


def _format_target(base: str, target: str) -> str:
    """How a graph's code reads an attribute. torch writes keywords, quotes and line ends as they
    are, which is no Python: a ModuleDict may have such keys.
    """
    parts = target.split(".")
    if all(p.isidentifier() and not keyword.iskeyword(p) for p in parts):
        return _usual_target(base, target)
    for part in parts:
        base = f"getattr({base}, {part!r})"
    return base


fx_graph._format_target = _format_target
