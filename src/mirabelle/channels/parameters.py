"""The parameters and buffers that a captured graph reads, under the names that they have in the
network.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from mirabelle.base.checks import every_tensor
from mirabelle.channels.ids import Parameter
from mirabelle.graph.capture import get_tensor, parameter_name


def read_parameters(graph_module: fx.GraphModule, model: nn.Module) -> dict[str, Parameter]:
    """What the graph reads, by the name that it has there; a constant that the network does not own
    is not editable.
    """
    names = first_names(model)
    found = {}
    for node in graph_module.graph.nodes:
        if (name := parameter_name(node)) is not None:
            value = get_tensor(graph_module, name)
            if isinstance(value, torch.Tensor):
                found[name] = Parameter(
                    names.get(name, name), value.detach(), editable=name in names
                )
    return found


def first_names(model: nn.Module) -> dict[str, str]:
    """For each name of a parameter or buffer the first name that the same tensor has: shared
    weights have several.
    """
    first: dict[int, str] = {}
    tensors = every_tensor(model).items()
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}
