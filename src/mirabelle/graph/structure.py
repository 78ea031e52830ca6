"""What was changed in a network besides its sizes: layers that have become two, residual blocks
that have gone. A network says it itself, by the kinds of its modules, so that it can be built again
from the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import clone
from mirabelle.base.errors import InputError

STRUCTURE = "structure"  # a key in the `meta` of captured networks, whose modules say it no more


class LowRank(nn.Sequential):
    """A linear layer or a convolution as two: the first computes `rank` numbers for each position,
    as the layer would, and the second, without neighbors, makes the outputs of these.
    """

    @property
    def rank(self) -> int:
        return len(self[0].weight)  # type: ignore[arg-type]

    def product(self) -> torch.Tensor:
        """The weight of the one layer that computes the same."""
        first, second = (self.get_parameter(f"{i}.weight").detach() for i in (0, 1))
        return (second.flatten(1) @ first.flatten(1)).reshape(-1, *first.shape[1:])


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


class Skipped(nn.Sequential):
    """What is left of a residual block without its branch: its activations, or nothing."""

    @classmethod
    def of(cls, activations: Iterable[str]) -> Skipped:
        """From names of `ACTIVATIONS`."""
        return cls(*(ACTIVATIONS[name]() for name in activations))

    def activations(self) -> list[str]:
        return [n for m in self for n, kind in ACTIVATIONS.items() if type(m) is kind]


def in_two(layer: nn.Module, rank: int, bias: bool) -> LowRank:
    """The two layers of rank `rank` for a linear layer or an ungrouped convolution, their weights
    at zero. bias: whether the second has one.
    """
    if isinstance(layer, nn.Linear):
        first = _empty(nn.Linear, layer.in_features, rank, bias=False)
        second = _empty(nn.Linear, rank, layer.out_features, bias=bias)
    elif isinstance(layer, nn.Conv2d) and layer.groups == 1:
        given = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        settings = {n: getattr(layer, n) for n in given}
        first = _empty(nn.Conv2d, layer.in_channels, rank, bias=False, **settings)
        second = _empty(nn.Conv2d, rank, layer.out_channels, kernel_size=1, bias=bias)
    else:
        raise InputError(f"a {type(layer).__name__} cannot be factorized")
    found = LowRank(first, second).to(layer.weight)
    for p in found.parameters():
        nn.init.zeros_(p)
        p.requires_grad_(layer.weight.requires_grad)
    return found.train(layer.training)


def _empty(kind: type[nn.Module], *sizes: int, **settings: Any) -> nn.Module:
    """A layer whose weights are not drawn: no generator is touched."""
    return nn.utils.skip_init(kind, *sizes, **settings)


def replace_module(model: nn.Module, path: str, new: nn.Module) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(owner), leaf, new)


def structure_of(model: nn.Module) -> dict[str, Any]:
    """low_rank: by path of a factorized layer its rank and whether it has a bias. skipped: by path
    of the module of a residual block the activations that are left of it.

    A network in graph form says what was done after it was captured, a quantized one what its float
    network was.
    """
    known = getattr(model, "meta", {}).get(STRUCTURE)
    if known is not None:
        return known
    pairs = {n: m for n, m in model.named_modules() if isinstance(m, LowRank)}
    low_rank = {
        n: {"rank": m.rank, "bias": getattr(m[1], "bias", None) is not None}
        for n, m in pairs.items()
    }
    skipped = {n: m.activations() for n, m in model.named_modules() if isinstance(m, Skipped)}
    return {"low_rank": low_rank, "skipped": skipped}


def restructured(model: nn.Module, structure: Mapping[str, Any]) -> nn.Module:
    """A copy of `model` with the structure of `structure_of`; its new layers hold zeros.

    Raises `InputError` where it has no such layer.
    """
    result = clone(model)
    for path, left in structure["skipped"].items():
        if path not in dict(result.named_modules()) or not path:
            raise InputError(
                f"{path} was saved as a block that is skipped, and {type(model).__name__} has no "
                "such module; load needs the network that was saved, as it was before"
            )
        replace_module(result, path, Skipped.of(left).train(result.training))
    for path, entry in structure["low_rank"].items():
        rank, bias = entry["rank"], entry["bias"]
        if type(rank) is not int or type(bias) is not bool or rank < 1:
            raise InputError(f"{path} is written with rank {rank!r} and bias {bias!r}")
        layer = dict(result.named_modules()).get(path)
        if not isinstance(layer, nn.Linear | nn.Conv2d) or rank > len(layer.weight):
            raise InputError(
                f"{path} was saved with rank {rank}, and {type(model).__name__} has no such layer "
                "there; load needs the network that was saved, as it was before"
            )
        replace_module(result, path, in_two(layer, rank, bias))
    return result
