"""Rules for the operators that have no weights and yet mix or move channels, and the table of all
rules. Each is called with (flow, node, *the operator's own arguments) and gives labels.
"""

from __future__ import annotations

import math
import operator as py
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from mirabelle.channels.flow import Flow, Rule
from mirabelle.channels.ids import FIXED, Parameter, Value, along, thin, varying
from mirabelle.channels.layers import (
    addmm,
    batch_norm,
    convolution,
    embedding,
    group_norm,
    layer_norm,
    linear,
    prelu,
    transposed_convolution,
)
from mirabelle.channels.products import bmm, einsum, matmul, scaled_dot_product_attention
from mirabelle.channels.recurrent import CELLS, GATES, cell, layers
from mirabelle.graph.capture import operator

# Pooling and resizing, by the number of last dimensions that they work on.
SPATIAL = {
    **dict.fromkeys(
        [
            "max_pool1d",
            "avg_pool1d",
            "adaptive_avg_pool1d",
            "upsample_nearest1d",
            "upsample_linear1d",
            "_adaptive_avg_pool1d",
            "adaptive_max_pool1d",
        ],
        1,
    ),
    **dict.fromkeys(
        [
            "max_pool2d",
            "avg_pool2d",
            "adaptive_avg_pool2d",
            "_adaptive_avg_pool2d",
            "adaptive_max_pool2d",
            "upsample_nearest2d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "_upsample_nearest_exact2d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
            "reflection_pad2d",
            "replication_pad2d",
            "max_pool2d_with_indices",
            "grid_sampler",
            "grid_sampler_2d",
            "lp_pool2d",
        ],
        2,
    ),
    **dict.fromkeys(
        [
            "max_pool3d",
            "avg_pool3d",
            "adaptive_avg_pool3d",
            "upsample_nearest3d",
            "upsample_trilinear3d",
            "max_pool3d_with_indices",
        ],
        3,
    ),
}
REDUCTIONS = {
    "mean",
    "sum",
    "amax",
    "amin",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "norm",
    "linalg_vector_norm",
    "logsumexp",
    "max",
    "min",
    "nansum",
}
OVER_ONE = {
    "softmax",
    "_softmax",
    "log_softmax",
    "_log_softmax",
    "cumsum",
    "cumprod",
    "sort",
    "argsort",
    "topk",
    "glu",
    "special_softmax",
    "cummax",
}


def spatial(flow: Flow, node: fx.Node, x: Any, *rest: Any, **options: Any) -> Any:
    """Pooling, resizing and padding: the channels pass, the other dimensions change size."""
    source = flow.of(x)
    values = node.meta["val"] if isinstance(node.meta["val"], (tuple, list)) else [node.meta["val"]]
    shape = tuple(values[0].shape)
    ndim = len(source.shape)
    worked_on = range(ndim - SPATIAL[operator(node)], ndim)
    if len(shape) != ndim:
        return flow.give_up(node, [x], f"{flow.place(node)}: changes the number of dimensions")
    planes = []
    for plane in source.planes:
        if not set(varying(plane)) - set(worked_on):
            flow.labels.fix(
                plane, f"{flow.place(node)}: channels run along a dimension that it changes"
            )
            continue
        mixed = flow.mix(
            plane, worked_on, f"{flow.place(node)}: meets values that cannot be removed"
        )
        planes.append(thin(mixed, varying(mixed)).expand(shape))
    result = flow.value(shape, planes, source.rest)
    return (result, result) if len(values) > 1 else result


def pad(flow: Flow, node: fx.Node, x: Any, widths: Any, *rest: Any, **options: Any) -> Any:
    """Padding of space lets the channels pass; padding of channels by a constant adds some that
    cannot be removed.
    """
    source = flow.of(x)
    shape = tuple(node.meta["val"].shape)
    padded = {len(shape) - 1 - i // 2 for i, p in enumerate(widths) if p}
    planes = []
    for plane in source.planes:
        dims = set(varying(plane))
        if dims & padded and operator(node) == "pad" and rest and rest[0] != "constant":
            return flow.give_up(node, [x], f"{flow.place(node)}: repeats channels as padding")
        if dims & padded:
            wide = thin(plane, dims | padded).clone()
            kept = [w if len(shape) - 1 - i // 2 in dims else 0 for i, w in enumerate(widths)]
            planes.append(
                thin(nn.functional.pad(wide, tuple(kept), value=FIXED), dims).expand(shape)
            )
        else:
            planes.append(thin(plane, dims).expand(shape))
    return flow.value(shape, planes, source.rest)


def reduction(flow: Flow, node: fx.Node, x: Any, *rest: Any, **options: Any) -> Any:
    """Channels that differ only along the reduced dimensions are summed up and end there; where the
    rest of the tensor has them too, they become one.
    """
    source = flow.of(x)
    name = operator(node)
    position = {"norm": 1, "linalg_vector_norm": 1}.get(name, 0)
    dims = options.get("dim", rest[position] if len(rest) > position else None)
    if isinstance(dims, (Value, Parameter)):  # max(x, y) of two tensors
        return flow.unite(node, [x, dims])
    given = (
        range(len(source.shape))
        if dims is None or dims == []
        else [dims]
        if isinstance(dims, int)
        else dims
    )
    over = {d % len(source.shape) for d in given} if source.shape else set()
    values = node.meta["val"] if isinstance(node.meta["val"], (tuple, list)) else [node.meta["val"]]
    shape = tuple(values[0].shape)
    keepdim = len(shape) == len(source.shape)
    parts: list[Any] = [u.args[1] for u in node.users if u.target is py.getitem]
    numbered = any(values[part].dtype == torch.int64 for part in parts) and len(values) > 1
    planes = []
    for plane in source.planes:
        if numbered and over & set(varying(plane)):
            flow.labels.fix(plane, f"{flow.place(node)}: gives the numbers of channels")
        if not set(varying(plane)) - over:
            continue
        plane = flow.mix(
            plane, sorted(over), f"{flow.place(node)}: meets values that cannot be removed"
        )
        for d in sorted(over, reverse=True):
            plane = plane.narrow(d, 0, 1) if keepdim else plane.select(d, 0)
        planes.append(plane)
    results = tuple(flow.value(tuple(v.shape), planes, source.rest) for v in values)
    return results if isinstance(node.meta["val"], (tuple, list)) else results[0]


def over_one(flow: Flow, node: fx.Node, x: Any, *rest: Any, **options: Any) -> Any:
    """Operators in which every element along one dimension depends on all: channels along it stay,
    or become one where they run elsewhere too.
    """
    source = flow.of(x)
    name = operator(node)
    position = 1 if name == "topk" else 0
    dim = options.get("dim", rest[position] if len(rest) > position else -1)
    values = node.meta["val"] if isinstance(node.meta["val"], (tuple, list)) else [node.meta["val"]]
    planes = []
    for plane in source.planes:
        if varying(plane) == [dim % len(source.shape)]:
            flow.labels.fix(plane, f"{flow.place(node)}: every channel depends on all the others")
            continue
        mixed = flow.mix(plane, [dim], f"{flow.place(node)}: meets values that cannot be removed")
        planes.append(thin(mixed, varying(mixed)).expand(tuple(values[0].shape)))
    results = tuple(flow.value(tuple(v.shape), planes, source.rest) for v in values)
    return results if isinstance(node.meta["val"], (tuple, list)) else results[0]


def glu(flow: Flow, node: fx.Node, x: Any, dim: int = -1) -> Any:
    """Two equal halves, multiplied: position j of both is one channel."""
    source = flow.of(x)
    shape = tuple(node.meta["val"].shape)
    dim %= len(shape)
    halves = [
        flow.value(shape, [p.narrow(dim, start, shape[dim]) for p in source.planes], source.rest)
        for start in (0, shape[dim])
    ]
    return flow.merge(node, *halves)


def roll(flow: Flow, node: fx.Node, x: Any, shifts: Any, dims: Any = ()) -> Any:
    """Shifts of space let channels pass; channels that are shifted by a number written into forward
    stay.
    """
    source = flow.of(x)
    moved = {
        d % len(source.shape)
        for d in ([dims] if isinstance(dims, int) else dims or range(len(source.shape)))
    }
    for plane in source.planes:
        if moved & set(varying(plane)):
            return flow.give_up(
                node, [x], f"{flow.place(node)}: cuts the channels at places written into forward"
            )
    return source


def index(flow: Flow, node: fx.Node, x: Any, indices: Any) -> Any:
    """Rows picked by number: channels along the picked dimensions stay."""
    source = flow.of(x)
    shape = tuple(node.meta["val"].shape)
    picked = [d for d, i in enumerate(indices) if i is not None]
    shapes = [i.shape if i is not None else None for i in indices]
    planes = []
    for plane in source.planes:
        if set(varying(plane)) & set(picked):
            flow.labels.fix(plane, f"{flow.place(node)}: picks channels by number")
            continue
        zeros = [None if s is None else torch.zeros(s, dtype=torch.int64) for s in shapes]
        try:
            found = torch.ops.aten.index.Tensor(plane, zeros)
        except Exception:
            return flow.give_up(node, [x], f"{flow.place(node)}: cannot be followed")
        if tuple(found.shape) != shape:  # a mask: how many it picks is in the data
            return flow.give_up(node, [x], f"{flow.place(node)}: cannot be followed")
        planes.append(found)
    return flow.value(shape, planes, source.rest)


def gather(flow: Flow, node: fx.Node, x: Any, dim: int, indices: Any, **options: Any) -> Any:
    """Picks along one dimension: channels along it stay. `index_select`, `gather` and
    `take_along_dim`.
    """
    if isinstance(indices, int):
        dim, indices = indices, dim  # take_along_dim(x, indices, dim)
    source = flow.of(x)
    shape = tuple(node.meta["val"].shape)
    planes = []
    for plane in source.planes:
        if dim % len(shape) in varying(plane) or len(shape) != len(source.shape):
            flow.labels.fix(plane, f"{flow.place(node)}: picks channels by number")
        elif any(shape[d] != source.shape[d] for d in varying(plane)):
            return flow.give_up(node, [x], f"{flow.place(node)}: picks some of the channels")
        else:
            planes.append(thin(plane, varying(plane)).expand(shape))
    index_value = flow.of(indices)
    flow.labels.fix_all(index_value.planes, f"{flow.place(node)}: picks by channels")
    return flow.value(shape, planes, source.rest)


def pixel_shuffle(flow: Flow, node: fx.Node, x: Any, factor: int) -> Any:
    """(C r^2, H, W) -> (C, r H, r W): the r^2 channels behind one pixel block are one channel."""
    source = flow.of(x)
    shape = tuple(node.meta["val"].shape)
    dim = len(shape) - 3
    labels = flow.read(node, source, dim).view(shape[dim], -1)
    flow.labels.meet(
        labels[:, :1].expand_as(labels),
        labels,
        f"{flow.place(node)}: shares a pixel block with values that cannot be removed",
    )
    return flow.value(shape, [along(labels[:, 0], dim, shape)], source.rest)


def pixel_unshuffle(flow: Flow, node: fx.Node, x: Any, factor: int) -> Any:
    """(C, r H, r W) -> (C r^2, H, W): each channel becomes r^2 that go together."""
    source = flow.of(x)
    shape = tuple(node.meta["val"].shape)
    dim = len(shape) - 3
    return flow.value(
        shape,
        [along(flow.read(node, source, dim).repeat_interleave(factor**2), dim, shape)],
        source.rest,
    )


def channel_shuffle(flow: Flow, node: fx.Node, x: Any, groups: int) -> Any:
    """Position j of every group is one channel: else what is left could not be shuffled by the same
    rule.
    """
    source = flow.of(x)
    labels = flow.read(node, source, 1).view(groups, -1)
    flow.labels.meet(
        labels[:1].expand_as(labels),
        labels,
        f"{flow.place(node)}: shares a group position with values that cannot be removed",
    )
    return flow.value(source.shape, [along(labels.T.reshape(-1), 1, source.shape)], source.rest)


def im2col(
    flow: Flow, node: fx.Node, x: Any, kernel: Sequence[int], *rest: Any, **options: Any
) -> Any:
    """(N, C, H, W) -> (N, C k k, positions): every channel becomes k k that go together."""
    source = flow.of(x)
    shape = tuple(node.meta["val"].shape)
    labels = flow.read(node, source, len(source.shape) - 3).repeat_interleave(math.prod(kernel))
    return flow.value(shape, [along(labels, len(shape) - 2, shape)], source.rest)


RULES: dict[str, Rule] = {
    "conv1d": convolution,
    "conv2d": convolution,
    "conv3d": convolution,
    "conv_transpose1d": transposed_convolution,
    "conv_transpose2d": transposed_convolution,
    "conv_transpose3d": transposed_convolution,
    "linear": linear,
    "addmm": addmm,
    "matmul": matmul,
    "mm": matmul,
    "bmm": bmm,
    "einsum": einsum,
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "instance_norm": batch_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
    "group_norm": group_norm,
    "prelu": prelu,
    "embedding": embedding,
    "pad": pad,
    "constant_pad_nd": pad,
    "glu": glu,
    "roll": roll,
    "index": index,
    "index_select": gather,
    "gather": gather,
    "take_along_dim": gather,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
    "im2col": im2col,
    **dict.fromkeys(GATES, layers),
    **dict.fromkeys(CELLS, cell),
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(OVER_ONE - {"glu"}, over_one),
    **dict.fromkeys(SPATIAL, spatial),
}
