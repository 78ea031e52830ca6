"""What is computed element by element, and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from mirabelle.onnx_files.operators.table import OPERATORS, Attributes, UnsupportedError, operator
from mirabelle.onnx_files.shapes import Host, as_number, as_tensor, both

# --- element by element
# --------------------------------------------------------------------------------------------------


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    return lambda attributes, x: function(as_tensor(x))


OPERATORS.update(
    {
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
)


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


OPERATORS.update(
    {
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
)


def _several(on_two: Callable) -> Callable:
    def run(attributes: Attributes, *values: Any) -> Any:
        result = as_tensor(values[0])
        for value in values[1:]:
            result = on_two(result, as_tensor(value))
        return result

    return run


OPERATORS.update(
    {"Max": _several(torch.maximum), "Min": _several(torch.minimum), "Sum": _several(torch.add)}
)


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


OPERATORS.update({"Softmax": softmax(torch.softmax), "LogSoftmax": softmax(torch.log_softmax)})


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
