"""Which weights are pruned: those that are exactly zero, in the parameters that are marked as
sparse. There is no other mask.

The mark lies on the module that owns the parameter, so that copies, parts of a network and networks
around it keep it. It says in blocks of how many outputs the zeros lie.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

_MARK = "_mirabelle_sparse"


def blocks(model: nn.Module) -> dict[str, int]:
    """The parameters that are marked as sparse, by name, and how many outputs share their zeros (1:
    none do).
    """
    found = {}
    for path, module in model.named_modules():
        for own, block in getattr(module, _MARK, {}).items():
            if own in module._parameters:
                found[f"{path}.{own}" if path else own] = block
    return found


def mark(model: nn.Module, sparse: Mapping[str, int]) -> None:
    """Marks parameters of `model`, in place. Marks that are there already stay, or are replaced."""
    for name, block in sparse.items():
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        setattr(module, _MARK, {**getattr(module, _MARK, {}), own: block})


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    """The mask of every parameter that is marked: True where a weight is pruned."""
    return {name: model.get_parameter(name).detach() == 0 for name in blocks(model)}


def enforce(model: nn.Module, pruned: Mapping[str, torch.Tensor]) -> None:
    """Makes the pruned weights zero, in place; never negative zero, so that equal networks are
    equal bytes.
    """
    with torch.no_grad():
        for name, mask in pruned.items():
            model.get_parameter(name).masked_fill_(mask, 0.0)


def enforce_gradients(model: nn.Module, pruned: Mapping[str, torch.Tensor]) -> None:
    """Gradients of pruned weights become zero: they must not count in a norm that is clipped, nor
    in the optimizer's averages.
    """
    for name, mask in pruned.items():
        gradient = model.get_parameter(name).grad
        if gradient is not None:
            gradient.masked_fill_(mask, 0.0)
