"""Nodes that are layers, as torch's own modules: what looks at layers, hooks them or makes them
sparse finds in a file what it finds in a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mirabelle.onnx_files.operators.table import pads, spread

Attributes = dict[str, Any]
# (name of the tensor in the module, place of it among the node's inputs)
Tensors = dict[str, int]

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def padded(
    x: torch.Tensor, rule: Attributes, kernel: Sequence[int], value: float = 0.0
) -> torch.Tensor:
    """What a convolution reads whose padding its module cannot have: another one before than
    behind, or one by the size of its input.
    """
    n = len(kernel)
    around = pads(
        rule, x.shape[2:], kernel, rule.get("strides", [1] * n), rule.get("dilations", [1] * n)
    )
    return F.pad(x, spread(around), value=value)


def _shapes(values: Sequence[torch.Tensor | None]) -> list[tuple[int, ...]]:
    return [() if v is None else tuple(v.shape) for v in values]


def _convolution(attributes: Attributes, values: Sequence[torch.Tensor | None]) -> Any:
    x, weight = _shapes(values)[:2]
    n = len(x) - 2
    groups = attributes.get("group", 1)
    around = attributes.get("pads", [0] * (2 * n))
    plain = attributes.get("auto_pad", "NOTSET") == "NOTSET" and around[:n] == around[n:]
    return _CONV[n](
        weight[1] * groups,
        weight[0],
        tuple(weight[2:]),
        tuple(attributes.get("strides", [1] * n)),
        tuple(around[:n]) if plain else (0,) * n,
        tuple(attributes.get("dilations", [1] * n)),
        groups,
        bias=len(values) > 2 and values[2] is not None,
        device="meta",
    )


def _transposed(attributes: Attributes, values: Sequence[torch.Tensor | None]) -> Any:
    x, weight = _shapes(values)[:2]
    n = len(x) - 2
    groups = attributes.get("group", 1)
    return _TRANSPOSED[n](
        weight[0],
        weight[1] * groups,
        tuple(weight[2:]),
        tuple(attributes.get("strides", [1] * n)),
        tuple(attributes.get("pads", [0] * (2 * n))[:n]),
        tuple(attributes.get("output_padding", [0] * n)),
        groups,
        bias=len(values) > 2 and values[2] is not None,
        dilation=tuple(attributes.get("dilations", [1] * n)),
        device="meta",
    )


def _linear(attributes: Attributes, values: Sequence[torch.Tensor | None]) -> Any:
    outputs, columns = _shapes(values)[1]
    bias = len(values) > 2 and values[2] is not None
    return nn.Linear(columns, outputs, bias=bias, device="meta")


def _batch_norm(attributes: Attributes, values: Sequence[torch.Tensor | None]) -> Any:
    x, gamma = _shapes(values)[:2]
    if len(x) not in _NORMS:
        return None
    epsilon, momentum = attributes.get("epsilon", 1e-5), 1 - attributes.get("momentum", 0.9)
    return _NORMS[len(x)](gamma[0], epsilon, momentum, device="meta")


def _layer_norm(attributes: Attributes, values: Sequence[torch.Tensor | None]) -> Any:
    x, gamma = _shapes(values)[:2]
    if gamma != x[attributes.get("axis", -1) % len(x) :]:
        return None
    bias = len(values) > 2 and values[2] is not None
    return nn.LayerNorm(list(gamma), attributes.get("epsilon", 1e-5), bias=bias, device="meta")


_AFFINE: Tensors = {"weight": 1, "bias": 2}
# By kind of node: how its module is made of its attributes and inputs, and what that holds.
LAYERS: dict[str, tuple[Callable[[Attributes, Sequence[torch.Tensor | None]], Any], Tensors]] = {
    "Conv": (_convolution, _AFFINE),
    "ConvTranspose": (_transposed, _AFFINE),
    "Linear": (_linear, _AFFINE),
    "BatchNormalization": (_batch_norm, {**_AFFINE, "running_mean": 3, "running_var": 4}),
    "LayerNormalization": (_layer_norm, _AFFINE),
}


def layer(
    kind: str, attributes: Attributes, values: Sequence[torch.Tensor | None], constant: Any
) -> tuple[nn.Module, Tensors, Attributes | None] | None:
    """The module of a node, without its tensors; which of the node's inputs these are; and how its
    input is padded before it. None where torch has no module for it.

    values: the node's inputs on an example, None for those left out. constant: (place) -> whether
    that input is a constant.
    """
    if kind not in LAYERS:
        return None
    make, tensors = LAYERS[kind]
    held = {n: p for n, p in tensors.items() if p < len(values) and values[p] is not None}
    for place in held.values():
        value = values[place]
        if not constant(place) or value is None or not value.is_floating_point():
            return None
    if constant(0) or (module := make(attributes, values)) is None:
        return None
    rule = None
    if kind == "Conv":
        n = len(values[1].shape) - 2  # type: ignore[union-attr]
        around = attributes.get("pads", [0] * (2 * n))
        kind_of_padding = attributes.get("auto_pad", "NOTSET")
        if kind_of_padding.startswith("SAME") or (
            kind_of_padding == "NOTSET" and around[:n] != around[n:]
        ):
            names = ("auto_pad", "pads", "strides", "dilations")
            rule = {k: attributes[k] for k in names if k in attributes}
    return module, held, rule
