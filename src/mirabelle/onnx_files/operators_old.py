"""ONNX operators in terms of torch: `OPERATORS[op_type](attributes, *inputs)`. What is not here, or
raises `UnsupportedError`, runs as it is (`outside.py`).

Inputs are tensors, `Host`s (numbers known while the graph is captured) or None for those left out.
Versions before opset 13 differ where axes were attributes; both are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from mirabelle.onnx_files.shapes import Host, as_list, as_number, as_tensor, both, gather

Attributes = dict[str, Any]


class UnsupportedError(Exception):
    """An attribute or a combination of inputs that has no translation here."""


OPERATORS: dict[str, Callable[..., Any]] = {}


def operator(*names: str) -> Callable:
    def enter(function: Callable) -> Callable:
        for name in names:
            OPERATORS[name] = function
        return function

    return enter


def _refuse(attributes: Attributes, **usual: Any) -> None:
    """Raises `UnsupportedError` where an attribute has another value than the usual one."""
    for name, value in usual.items():
        if attributes.get(name, value) != value:
            raise UnsupportedError(f"{name}={attributes[name]!r}")


# --- layers of weights
# --------------------------------------------------------------------------------------------------


def pads(
    attributes: Attributes, size: Any, kernel: Any, strides: Any, dilations: Any
) -> list[tuple[int, int]]:
    """(before, after) of each spatial dimension."""
    rule, n = attributes.get("auto_pad", "NOTSET"), len(kernel)
    if rule == "VALID":
        return [(0, 0)] * n
    if rule.startswith("SAME"):
        found = []
        for s, k, step, d in zip(size, kernel, strides, dilations, strict=True):
            total = max(0, (-(-s // step) - 1) * step + (k - 1) * d + 1 - s)
            found.append(
                (total // 2, total - total // 2)
                if rule == "SAME_UPPER"
                else (total - total // 2, total // 2)
            )
        return found
    given = attributes.get("pads", [0] * (2 * n))
    return list(zip(given[:n], given[n:], strict=True))


def _spread(around: list[tuple[int, int]]) -> list[int]:
    """Pads in the order of `F.pad`: the last dimension first."""
    return [v for pair in reversed(around) for v in pair]


@operator("Conv")
def conv(attributes: Attributes, x: Any, weight: Any, bias: Any = None) -> Any:
    n = x.ndim - 2
    kernel = list(weight.shape[2:])
    strides, dilations = attributes.get("strides", [1] * n), attributes.get("dilations", [1] * n)
    around = pads(attributes, x.shape[2:], kernel, strides, dilations)
    if any(a != b for a, b in around):
        x, around = F.pad(x, _spread(around)), [(0, 0)] * n
    run = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[n]
    return run(
        x, weight, bias, strides, [a for a, _ in around], dilations, attributes.get("group", 1)
    )


@operator("ConvTranspose")
def conv_transpose(attributes: Attributes, x: Any, weight: Any, bias: Any = None) -> Any:
    n = x.ndim - 2
    _refuse(attributes, auto_pad="NOTSET")
    if "output_shape" in attributes:
        raise UnsupportedError("output_shape")
    around = pads(attributes, x.shape[2:], weight.shape[2:], [1] * n, [1] * n)
    if any(a != b for a, b in around):
        raise UnsupportedError("pads that differ on both sides")
    run = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[n]
    extra, strides = attributes.get("output_padding", [0] * n), attributes.get("strides", [1] * n)
    return run(
        x,
        weight,
        bias,
        strides,
        [a for a, _ in around],
        extra,
        attributes.get("group", 1),
        attributes.get("dilations", [1] * n),
    )


@operator(
    "Linear"
)  # not ONNX's: Gemm, or MatMul with a constant, whose weight the reader has turned to (O, K)
def linear(attributes: Attributes, x: Any, weight: Any, bias: Any = None) -> Any:
    return F.linear(x, weight, bias)


@operator("Gemm")
def gemm(attributes: Attributes, a: Any, b: Any, c: Any = None) -> Any:
    a, b = (m.t() if attributes.get(f"trans{n}", 0) else m for n, m in (("A", a), ("B", b)))
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * as_tensor(c)


@operator("MatMul")
def matmul(attributes: Attributes, a: Any, b: Any) -> Any:
    return torch.matmul(a, b)


@operator("BatchNormalization")
def batch_norm(
    attributes: Attributes, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any
) -> Any:
    _refuse(attributes, training_mode=0, spatial=1)
    return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, attributes.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_norm(attributes: Attributes, x: Any, gamma: Any, beta: Any) -> Any:
    return F.instance_norm(x, None, None, gamma, beta, eps=attributes.get("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_norm(attributes: Attributes, x: Any, gamma: Any, beta: Any = None) -> Any:
    axis = attributes.get("axis", -1) % x.ndim
    return F.layer_norm(x, x.shape[axis:], gamma, beta, attributes.get("epsilon", 1e-5))


# --- element by element
# --------------------------------------------------------------------------------------------------


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    return lambda attributes, x: function(as_tensor(x))


OPERATORS |= {
    name: _unary(function)
    for name, function in {
        "Relu": F.relu,
        "Sigmoid": torch.sigmoid,
        "Tanh": torch.tanh,
        "HardSwish": F.hardswish,
        "Softplus": F.softplus,
        "Softsign": F.softsign,
        "Mish": F.mish,
        "Erf": torch.erf,
        "Exp": torch.exp,
        "Log": torch.log,
        "Abs": torch.abs,
        "Ceil": torch.ceil,
        "Round": torch.round,
        "Sign": torch.sign,
        "Sin": torch.sin,
        "Cos": torch.cos,
        "Reciprocal": torch.reciprocal,
        "Not": torch.logical_not,
        "IsNaN": torch.isnan,
    }.items()
}


@operator("Sqrt")
def sqrt(attributes: Attributes, x: Any) -> Any:
    return x.map(math.sqrt) if isinstance(x, Host) else torch.sqrt(x)


@operator("Neg")
def neg(attributes: Attributes, x: Any) -> Any:
    return x.map(lambda v: -v) if isinstance(x, Host) else -x


@operator("Floor")
def floor(attributes: Attributes, x: Any) -> Any:
    return x.map(math.floor) if isinstance(x, Host) else torch.floor(x)


def _binary(
    on_tensors: Callable, on_numbers: Callable | None = None, dtype: torch.dtype | None = None
) -> Callable:
    def run(attributes: Attributes, a: Any, b: Any) -> Any:
        if isinstance(a, Host) and isinstance(b, Host) and on_numbers is not None:
            return both(a, b, on_numbers, dtype)
        return on_tensors(as_tensor(a), as_tensor(b))

    return run


def _divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


OPERATORS |= {
    "Add": _binary(torch.add, lambda a, b: a + b),
    "Sub": _binary(torch.sub, lambda a, b: a - b),
    "Mul": _binary(torch.mul, lambda a, b: a * b),
    "Div": _binary(
        _divide, lambda a, b: a / b if isinstance(a, float) or isinstance(b, float) else a // b
    ),  # sizes are not negative
    "Pow": _binary(torch.pow, lambda a, b: a**b),
    "Mod": _binary(torch.remainder, lambda a, b: a % b),
    "Equal": _binary(torch.eq, lambda a, b: a == b, torch.bool),
    "Greater": _binary(torch.gt, lambda a, b: a > b, torch.bool),
    "GreaterOrEqual": _binary(torch.ge, lambda a, b: a >= b, torch.bool),
    "Less": _binary(torch.lt, lambda a, b: a < b, torch.bool),
    "LessOrEqual": _binary(torch.le, lambda a, b: a <= b, torch.bool),
    "And": _binary(torch.logical_and, lambda a, b: a and b),
    "Or": _binary(torch.logical_or, lambda a, b: a or b),
}


def _several(on_two: Callable) -> Callable:
    def run(attributes: Attributes, *values: Any) -> Any:
        result = as_tensor(values[0])
        for value in values[1:]:
            result = on_two(result, as_tensor(value))
        return result

    return run


OPERATORS |= {
    "Max": _several(torch.maximum),
    "Min": _several(torch.minimum),
    "Sum": _several(torch.add),
}


@operator("Where")
def where(attributes: Attributes, condition: Any, a: Any, b: Any) -> Any:
    if all(isinstance(v, Host) for v in (condition, a, b)):
        length = max(len(v.values) for v in (condition, a, b))
        c, x, y = (v.values * length if len(v.values) == 1 else v.values for v in (condition, a, b))
        return Host(
            tuple(p if t else q for t, p, q in zip(c, x, y, strict=True)),
            condition.scalar and a.scalar and b.scalar,
            a.dtype,
        )
    return torch.where(as_tensor(condition), as_tensor(a), as_tensor(b))


@operator("Clip")
def clip(attributes: Attributes, x: Any, low: Any = None, high: Any = None) -> Any:
    least = attributes.get("min") if low is None else float(as_number(low))
    largest = attributes.get("max") if high is None else float(as_number(high))
    if least is None and largest is None:
        return x
    if least is not None and largest is not None:
        return (
            F.hardtanh(x, least, largest)
            if x.is_floating_point()
            else torch.clamp(x, int(least), int(largest))
        )
    return F.relu(x) if least == 0 and x.is_floating_point() else torch.clamp(x, least, largest)


@operator("LeakyRelu")
def leaky_relu(attributes: Attributes, x: Any) -> Any:
    return F.leaky_relu(x, attributes.get("alpha", 0.01))


@operator("PRelu")
def prelu(attributes: Attributes, x: Any, slope: Any) -> Any:
    return torch.where(x < 0, x * slope, x)


@operator("Elu")
def elu(attributes: Attributes, x: Any) -> Any:
    return F.elu(x, attributes.get("alpha", 1.0))


@operator("Gelu")
def gelu(attributes: Attributes, x: Any) -> Any:
    return F.gelu(x, approximate=attributes.get("approximate", "none"))


@operator("HardSigmoid")
def hard_sigmoid(attributes: Attributes, x: Any) -> Any:
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    return (
        F.hardsigmoid(x)
        if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5
        else torch.clamp(x * alpha + beta, 0, 1)
    )


@operator("Softmax", "LogSoftmax")
def _softmax(attributes: Attributes, x: Any) -> Any:
    raise UnsupportedError("needs the operator's name")


def softmax(function: Callable) -> Callable:
    def run(attributes: Attributes, x: Any) -> Any:
        if attributes["opset"] >= 13:
            return function(x, attributes.get("axis", -1))
        axis = (
            attributes.get("axis", 1) % x.ndim
        )  # before, everything from the axis on was one dimension
        return (
            function(x, axis)
            if axis == x.ndim - 1
            else function(x.flatten(axis), axis).view(x.shape)
        )

    return run


OPERATORS |= {"Softmax": softmax(torch.softmax), "LogSoftmax": softmax(torch.log_softmax)}


@operator("Cast")
def cast(attributes: Attributes, x: Any) -> Any:
    kind = attributes["to"]  # the reader has made it a torch.dtype
    if isinstance(x, Host):
        return x.map(
            float
            if kind.is_floating_point
            else bool
            if kind == torch.bool
            else lambda v: v if isinstance(v, torch.SymInt) else int(v),
            kind,
        )
    return x.to(kind)


# --- over windows and axes
# --------------------------------------------------------------------------------------------------


def _window(
    attributes: Attributes, x: Any
) -> tuple[list[int], list[int], list[int], list[tuple[int, int]], bool]:
    kernel = attributes["kernel_shape"]
    strides, dilations = (
        attributes.get("strides", [1] * len(kernel)),
        attributes.get("dilations", [1] * len(kernel)),
    )
    return (
        kernel,
        strides,
        dilations,
        pads(attributes, x.shape[2:], kernel, strides, dilations),
        bool(attributes.get("ceil_mode", 0)),
    )


@operator("MaxPool")
def max_pool(attributes: Attributes, x: Any) -> Any:
    _refuse(attributes, storage_order=0)
    kernel, strides, dilations, around, ceil = _window(attributes, x)
    if any(a != b or 2 * a > k for (a, b), k in zip(around, kernel, strict=True)):
        x, around = F.pad(x, _spread(around), value=-math.inf), [(0, 0)] * len(kernel)
    run = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel)]
    return run(x, kernel, strides, [a for a, _ in around], dilations, ceil)


@operator("AveragePool")
def average_pool(attributes: Attributes, x: Any) -> Any:
    kernel, strides, dilations, around, ceil = _window(attributes, x)
    counted = bool(attributes.get("count_include_pad", 0))
    if any(d != 1 for d in dilations):
        raise UnsupportedError("dilations")
    if any(a != b or 2 * a > k for (a, b), k in zip(around, kernel, strict=True)):
        raise UnsupportedError("pads that differ on both sides")
    run = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
    return run(x, kernel, strides, [a for a, _ in around], ceil, counted)


@operator("GlobalAveragePool")
def global_average(attributes: Attributes, x: Any) -> Any:
    return (
        F.adaptive_avg_pool2d(x, 1) if x.ndim == 4 else x.mean(list(range(2, x.ndim)), keepdim=True)
    )


@operator("GlobalMaxPool")
def global_max(attributes: Attributes, x: Any) -> Any:
    return x.amax(list(range(2, x.ndim)), keepdim=True)


def _reduction(function: Callable) -> Callable:
    def run(attributes: Attributes, x: Any, axes: Any = None) -> Any:
        x = as_tensor(x)
        given = attributes.get("axes") if axes is None else as_list(axes)
        if not given and attributes.get("noop_with_empty_axes", 0):
            return x
        return function(x, list(given or range(x.ndim)), bool(attributes.get("keepdims", 1)))

    return run


OPERATORS |= {
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
}


@operator("ArgMax")
def arg_max(attributes: Attributes, x: Any) -> Any:
    _refuse(attributes, select_last_index=0)
    return x.argmax(attributes.get("axis", 0), keepdim=bool(attributes.get("keepdims", 1)))


@operator("Resize", "Upsample")
def resize(attributes: Attributes, x: Any, *settings: Any) -> Any:
    if len(settings) == 1:  # Upsample, and Resize of opset 10
        settings = (None, settings[0])
    scales, sizes = (
        as_list(s) if s is not None else [] for s in (*settings[1:3], *[None] * (3 - len(settings)))
    )
    mode, place = (
        attributes.get("mode", "nearest"),
        attributes.get("coordinate_transformation_mode", "half_pixel"),
    )
    if (
        x.ndim != 4
        or "axes" in attributes
        or attributes.get("antialias", 0)
        or (scales and scales[:2] != [1, 1])
    ):
        raise UnsupportedError("a resize of anything but the two last dimensions of images")
    size: Any = [int(v) if not isinstance(v, torch.SymInt) else v for v in sizes[2:]] or None
    factor = None if size else [float(s) for s in scales[2:]]
    if (
        mode == "nearest"
        and place == "asymmetric"
        and attributes.get("nearest_mode", "round_prefer_floor") == "floor"
    ):
        return F.interpolate(x, size, factor, "nearest")
    whole = factor is not None and all(s == int(s) for s in factor)
    if (
        mode == "nearest"
        and whole
        and attributes.get("nearest_mode", "round_prefer_floor") in ("floor", "round_prefer_floor")
        and place != "align_corners"
    ):
        return F.interpolate(
            x, size, factor, "nearest"
        )  # a whole factor repeats pixels, whatever the rule
    if mode == "linear" and place in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return F.interpolate(x, size, factor, "bilinear", align_corners=place == "align_corners")
    raise UnsupportedError(f"mode {mode} with {place}")


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
        return F.pad(x, _spread(each), value=fill)
    if x.ndim == 2:  # torch pads borders of 3 dimensions and more
        return (
            F.pad(x[None], _spread(each[-1:]), mode)[0]
            if len(each) == 1
            else F.pad(x[None], _spread(each), mode)[0]
        )
    return F.pad(x, _spread(each), mode)


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
