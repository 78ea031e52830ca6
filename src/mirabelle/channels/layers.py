"""Rules for layers with weights: what makes channels and reads them, and what accompanies them.

Each is called with (flow, node, *the operator's own arguments) and gives labels. Statistics over
channels (LayerNorm) are those of the channels that are left: `masking.py` computes them so too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import fx

from mirabelle.channels.flow import Flow
from mirabelle.channels.ids import FIXED, Parameter, Value, along, thin, varying, vector
from mirabelle.channels.products import matmul


def convolution(
    flow: Flow,
    node: fx.Node,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
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
    return _convolve(flow, node, x, weight, bias, groups, transposed=True)


def _convolve(
    flow: Flow, node: fx.Node, x: Any, weight: Any, bias: Any, groups: int, transposed: bool
) -> Any:
    """Reads the input's channels and makes new ones; a depthwise one lets them pass; one with
    groups keeps the same number in each.

    Padding `same` and sizes do not matter to channels. The unbatched form (C, H, W) too.
    """
    shape = tuple(node.meta["val"].shape)
    source = flow.of(x)
    w_shape = weight.shape
    dim = len(source.shape) - (len(w_shape) - 1)
    if (
        math.prod(w_shape[2:]) == 1
        and not source.along(dim)
        and source.planes
        and shape[dim + 1 :] == source.shape[dim + 1 :]
    ):
        return _pass(flow, source, shape, w_shape)
    inputs = flow.read(node, source, dim)
    count = shape[dim]
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    macs = (math.prod(source.shape) if transposed else math.prod(shape)) * math.prod(w_shape[1:])
    if groups > 1 and groups == len(inputs):
        outputs = inputs.repeat_interleave(count // groups)
        flow.attach(node, weight, {0: (inputs if transposed else outputs, "along")})
        flow.work(macs, outputs)
    elif groups > 1:
        by_group = inputs.view(groups, -1)
        flow.labels.meet(
            by_group[:1].expand_as(by_group),
            by_group,
            f"{flow.place(node)}: shares a group position with values that cannot be removed",
        )
        per_group = flow.labels.fresh(count // groups)
        outputs = per_group.repeat(groups)
        if transposed:
            flow.attach(node, weight, {0: (inputs, "in"), 1: (per_group, "out")})
        else:
            flow.attach(node, weight, {0: (outputs, "out"), 1: (by_group[0], "in")})
        flow.work(macs, outputs, summed=[by_group[0]])
    else:
        outputs = flow.labels.fresh(count)
        flow.attach(node, weight, {in_dim: (inputs, "in"), out_dim: (outputs, "out")})
        flow.work(macs, outputs, summed=[inputs])
    result = flow.value(shape, [along(outputs, dim, shape)], _rest(flow, weight))
    return (
        result if bias is None else flow.merge(node, result, _standing(flow, bias, dim, len(shape)))
    )


def linear(flow: Flow, node: fx.Node, x: Any, weight: Any, bias: Any = None) -> Any:
    """Reads the channels of the last dimension and makes new ones; along another dimension than the
    channels' (token mixing) it lets them pass.
    """
    shape = tuple(node.meta["val"].shape)
    source = flow.of(x)
    w_shape = weight.shape
    if not source.along(-1) and source.planes:
        return _pass(flow, source, shape, w_shape)
    inputs = flow.read(node, source, -1)
    outputs = flow.labels.fresh(w_shape[0])
    flow.attach(node, weight, {0: (outputs, "out"), 1: (inputs, "in")})
    flow.work(math.prod(shape) * w_shape[1], outputs, summed=[inputs])
    if len(w_shape) == 1 or not shape:
        return flow.give_up(node, [x, weight], f"{flow.place(node)}: its weight is a vector")
    result = flow.value(shape, [along(outputs, len(shape) - 1, shape)], _rest(flow, weight))
    return (
        result
        if bias is None
        else flow.merge(node, result, _standing(flow, bias, len(shape) - 1, len(shape)))
    )


def addmm(flow: Flow, node: fx.Node, bias: Any, x: Any, weight: Any, **options: Any) -> Any:
    return flow.merge(node, flow.of(matmul(flow, node, x, weight)), flow.of(bias))


def _pass(flow: Flow, source: Value, shape: tuple[int, ...], w_shape: tuple[int, ...]) -> Value:
    """A layer that mixes along one dimension, while the channels run along others: they pass."""
    planes = [thin(p, varying(p)).expand(shape) for p in source.planes]
    flow.work(
        math.prod(shape) * math.prod(w_shape[1:]),
        *(vector(p, varying(p)[0]) for p in planes if len(varying(p)) == 1),
    )
    return flow.value(shape, planes, source.rest)


def _rest(flow: Flow, weight: Any) -> int:
    return weight.rest if isinstance(weight, Value) else FIXED


def _standing(flow: Flow, vector_: Any, dim: int, ndim: int) -> Value:
    """A vector of one number a channel, standing along `dim` of a tensor of `ndim` dimensions."""
    value = flow.of(vector_)
    shape = tuple(value.shape[0] if d == dim else 1 for d in range(ndim))
    return Value(shape, tuple(thin(p, [0]).reshape(shape) for p in value.planes), value.rest)


def _affine(flow: Flow, node: fx.Node, x: Value, vectors: Sequence[Any], dim: int) -> Value:
    for v in vectors:
        if v is not None:
            x = flow.merge(node, x, _standing(flow, v, dim, len(x.shape)))
    return x


def batch_norm(
    flow: Flow,
    node: fx.Node,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    *rest: Any,
    **options: Any,
) -> Any:
    """Each channel on its own: its four vectors accompany dimension 1."""
    return _affine(flow, node, flow.of(x), (weight, bias, mean, variance), 1)


def layer_norm(
    flow: Flow,
    node: fx.Node,
    x: Any,
    normalized: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    *rest: Any,
    **options: Any,
) -> Any:
    """Statistics over the last dimensions, of the channels that are left; weight and bias have
    those dimensions' shape. Root-mean-square norms too.
    """
    result = flow.of(x)
    for v in (weight, bias):
        if isinstance(v, (Parameter, Value)):
            result = flow.merge(node, result, flow.of(v))
    return result


def group_norm(
    flow: Flow,
    node: fx.Node,
    x: Any,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    *rest: Any,
    **options: Any,
) -> Any:
    """Statistics over groups of channels: each group keeps the same positions."""
    source = flow.of(x)
    if 1 < groups < source.shape[1]:
        for plane in source.along(1):
            labels = flow.read(node, Value(source.shape, (plane,)), 1).view(groups, -1)
            flow.labels.meet(
                labels[:1].expand_as(labels),
                labels,
                f"{flow.place(node)}: shares a group position with values that cannot be removed",
            )
    return _affine(flow, node, source, (weight, bias), 1)


def prelu(flow: Flow, node: fx.Node, x: Any, weight: Any) -> Any:
    """A slope per channel of dimension 1, or one for all."""
    source = flow.of(x)
    return (
        source
        if math.prod(weight.shape) == 1
        else _affine(flow, node, source, (weight,), min(1, len(source.shape) - 1))
    )


def embedding(
    flow: Flow, node: fx.Node, weight: Any, indices: Any, *rest: Any, **options: Any
) -> Any:
    """Rows are looked up by number, so they stay; the columns are channels."""
    table = flow.of(weight)
    flow.labels.fix_all(table.along(0), f"{flow.place(node)}: rows are looked up by number")
    flow.labels.roles(table, {1: "out"})
    shape = tuple(node.meta["val"].shape)
    return flow.value(
        shape, [along(vector(p, 1), len(shape) - 1, shape) for p in table.along(1)], table.rest
    )
