"""The ONNX file behind a network that was read from one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from onnx import ModelProto
from torch import fx

SOURCE = "onnx"  # the key in a network's `meta`
# The key under which a network that was read node by node says with what example, and which
# numbers of the file have been rewritten since.
ONNX_FORM = "onnx_form"
NAMES = "onnx_names"  # that of a network that is the file's no more, but keeps its names


class Reader(NamedTuple):
    """An input of a node of the file that is a constant: which node, which of its inputs, and
    whether the network holds it with its two dimensions swapped.
    """

    node: int
    slot: int
    turned: bool


@dataclass(frozen=True)
class Source:
    """Where a network came from, and what is what. proto: the file, as it is worked on
    (`prepare.py`). inputs: their names, in the order of the network's.

    modules: path of a module -> index of its node. constants: parameter or buffer -> the file's
    constant, and whether its two dimensions are swapped. readers: parameter or buffer -> the
    inputs of nodes that it stands for.
    outside: why nodes run as they are, by their names. unnamed: indices of nodes that have a name
    only here.
    """

    proto: ModelProto
    inputs: list[str]
    modules: dict[str, int] = field(default_factory=dict)
    constants: dict[str, tuple[str, bool]] = field(default_factory=dict)
    readers: dict[str, list[Reader]] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    unnamed: frozenset[int] = frozenset()

    def __deepcopy__(self, memo: dict) -> Source:
        return self  # nothing changes it


def source_of(model: object) -> Source | None:
    """The file that a network was read from; None for any other network."""
    found = model.meta.get(SOURCE) if isinstance(model, fx.GraphModule) else None
    return found if isinstance(found, Source) else None


def paths_of_nodes(model: object) -> dict[str, str]:
    """The path of the module that stands for a node, by the node's name; {} for a network that no
    file was read for.
    """
    source = source_of(model)
    if source is None:
        return {}
    nodes = source.proto.graph.node
    return {nodes[i].name: path for path, i in source.modules.items() if nodes[i].name}
