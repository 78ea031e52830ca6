"""What reads shapes, or moves elements without changing them; and sums over indices."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from mirabelle.onnx_files.operators.table import Attributes, UnsupportedError, operator, spread
from mirabelle.onnx_files.shapes import Host, as_list, as_number, as_tensor, gather

# --- data movement
# --------------------------------------------------------------------------------------------------


@operator("Identity", "Dropout")
def identity(attributes: Attributes, x: Any, *rest: Any) -> Any:
    return x


@operator("Shape")
def shape(attributes: Attributes, x: Any) -> Any:
    sizes = (len(x.values),) if isinstance(x, Host) else tuple(x.shape)
    return Host(sizes[attributes.get("start", 0) : attributes.get("end")])


@operator("Size")
def size(attributes: Attributes, x: Any) -> Any:
    return Host((len(x.values) if isinstance(x, Host) else x.numel(),), True)


@operator("ConstantOfShape")
def constant_of_shape(attributes: Attributes, sizes: Any) -> Any:
    value = attributes.get("value")
    value = torch.zeros(1) if value is None else value
    wanted = as_list(sizes)
    if (
        len(wanted) == 1
        and not value.is_floating_point()
        and isinstance(wanted[0], int)
        and wanted[0] <= 64
    ):
        return Host((value.item(),) * wanted[0], False, value.dtype)
    return torch.full(wanted, value.item(), dtype=value.dtype)


@operator("Range")
def arange(attributes: Attributes, start: Any, limit: Any, delta: Any) -> Any:
    return torch.arange(as_number(start), as_number(limit), as_number(delta))


@operator("Reshape")
def reshape(attributes: Attributes, x: Any, sizes: Any) -> Any:
    wanted = as_list(sizes)
    if isinstance(x, Host):
        return Host(x.values, not wanted, x.dtype)
    if not attributes.get("allowzero", 0):
        wanted = [x.shape[i] if isinstance(s, int) and s == 0 else s for i, s in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Flatten")
def flatten(attributes: Attributes, x: Any) -> Any:
    axis = attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.flatten(1) if axis == 1 else x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Transpose")
def transpose(attributes: Attributes, x: Any) -> Any:
    return x.permute(attributes.get("perm", list(reversed(range(x.ndim)))))


@operator("Squeeze")
def squeeze(attributes: Attributes, x: Any, axes: Any = None) -> Any:
    given = attributes.get("axes") if axes is None else as_list(axes)
    if isinstance(x, Host):
        return Host(x.values, True, x.dtype)
    return x.squeeze() if given is None else x.squeeze(tuple(given))


@operator("Unsqueeze")
def unsqueeze(attributes: Attributes, x: Any, axes: Any = None) -> Any:
    given: Any = attributes.get("axes") if axes is None else as_list(axes)
    if isinstance(x, Host):
        if x.scalar and len(given) == 1:
            return Host(x.values, False, x.dtype)
        x = x.tensor()
    for axis in sorted(a % (x.ndim + len(given)) for a in given):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(attributes: Attributes, *parts: Any) -> Any:
    if all(isinstance(p, Host) for p in parts):
        return Host(tuple(v for p in parts for v in p.values), False, parts[0].dtype)
    return torch.cat([as_tensor(p) for p in parts], attributes["axis"])


@operator("Split")
def split(attributes: Attributes, x: Any, sizes: Any = None) -> Any:
    axis = attributes.get("axis", 0)
    given = attributes.get("split") if sizes is None else as_list(sizes)
    each = -(-x.shape[axis] // attributes["outputs"])
    return tuple(torch.split(x, each if given is None else list(given), axis))


@operator("Slice")
def slice_(
    attributes: Attributes,
    x: Any,
    starts: Any = None,
    ends: Any = None,
    axes: Any = None,
    steps: Any = None,
) -> Any:
    first, last = (
        attributes[n] if v is None else as_list(v) for n, v in (("starts", starts), ("ends", ends))
    )
    along = attributes.get("axes") if axes is None else as_list(axes)
    along = list(range(len(first))) if along is None else along
    by = [1] * len(first) if steps is None else as_list(steps)
    if isinstance(x, Host):
        return Host(x.values[slice(first[0], last[0], by[0])], False, x.dtype)
    for a, b, axis, step in zip(first, last, along, by, strict=True):
        if step < 0:
            if not (a in (-1, x.shape[axis] - 1) and b <= -x.shape[axis] and step == -1):
                raise UnsupportedError("a step backwards over part of a dimension")
            x = x.flip(axis)
        else:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(a, b, step),)]
    return x


@operator("Gather")
def gather_(attributes: Attributes, x: Any, indices: Any) -> Any:
    axis = attributes.get("axis", 0)
    if isinstance(x, Host) and isinstance(indices, Host):
        return gather(x, indices.values, indices.scalar)
    x = as_tensor(x)
    if isinstance(indices, Host) and indices.scalar:
        return x.select(axis, indices.values[0])
    at = as_tensor(indices).to(torch.int64)
    at = torch.where(at < 0, at + x.shape[axis], at)
    found = x.index_select(axis, at.flatten())
    before = x.shape[: axis % x.ndim]
    return (
        found if at.ndim == 1 else found.reshape(*before, *at.shape, *x.shape[axis % x.ndim + 1 :])
    )


@operator("Expand")
def expand(attributes: Attributes, x: Any, sizes: Any) -> Any:
    x, wanted = as_tensor(x), as_list(sizes)
    shape = (1,) * (len(wanted) - x.ndim) + tuple(x.shape)
    wanted = [1] * (len(shape) - len(wanted)) + wanted
    return x.expand(
        [s if isinstance(w, int) and w == 1 else w for s, w in zip(shape, wanted, strict=True)]
    )


@operator("Tile")
def tile(attributes: Attributes, x: Any, repeats: Any) -> Any:
    return as_tensor(x).repeat(as_list(repeats))


@operator("Pad")
def pad(
    attributes: Attributes, x: Any, widths: Any = None, value: Any = None, axes: Any = None
) -> Any:
    around = attributes["pads"] if widths is None else as_list(widths)
    fill = attributes.get("value", 0.0) if value is None else as_number(value)
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        attributes.get("mode", "constant")
    ]
    n = len(around) // 2
    places = list(range(n)) if axes is None else [a % x.ndim for a in as_list(axes)]
    each = [(0, 0)] * x.ndim
    for place, before, after in zip(places, around[:n], around[n:], strict=True):
        each[place] = (before, after)
    while len(each) > 1 and each[0] == (0, 0) and (mode == "constant" or len(each) > x.ndim - 2):
        each = each[1:]
    if mode == "constant":
        return F.pad(x, spread(each), value=fill)
    if x.ndim == 2:  # torch pads borders of 3 dimensions and more
        return (
            F.pad(x[None], spread(each[-1:]), mode)[0]
            if len(each) == 1
            else F.pad(x[None], spread(each), mode)[0]
        )
    return F.pad(x, spread(each), mode)


@operator("DepthToSpace")
def depth_to_space(attributes: Attributes, x: Any) -> Any:
    if attributes.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, attributes["blocksize"])
    n, c, h, w = x.shape
    b = attributes["blocksize"]
    return (
        x.reshape(n, b, b, c // b**2, h, w)
        .permute(0, 3, 4, 1, 5, 2)
        .reshape(n, c // b**2, h * b, w * b)
    )


@operator("SpaceToDepth")
def space_to_depth(attributes: Attributes, x: Any) -> Any:
    n, c, h, w = x.shape
    b = attributes["blocksize"]
    return (
        x.reshape(n, c, h // b, b, w // b, b)
        .permute(0, 3, 5, 1, 2, 4)
        .reshape(n, c * b**2, h // b, w // b)
    )


@operator("Einsum")
def einsum(attributes: Attributes, *operands: Any) -> Any:
    return torch.einsum(attributes["equation"], *operands)


@operator("Trilu")
def trilu(attributes: Attributes, x: Any, k: Any = None) -> Any:
    offset = 0 if k is None else int(as_number(k))
    return torch.triu(x, offset) if attributes.get("upper", 1) else torch.tril(x, offset)
