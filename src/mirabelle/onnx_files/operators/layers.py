"""Convolutions, products and normalizations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from mirabelle.onnx_files.operators.table import (
    Attributes,
    UnsupportedError,
    operator,
    pads,
    refuse,
    spread,
)
from mirabelle.onnx_files.shapes import as_tensor


@operator("Conv")
def conv(attributes: Attributes, x: Any, weight: Any, bias: Any = None) -> Any:
    n = x.ndim - 2
    kernel = list(weight.shape[2:])
    strides, dilations = attributes.get("strides", [1] * n), attributes.get("dilations", [1] * n)
    around = pads(attributes, x.shape[2:], kernel, strides, dilations)
    if any(a != b for a, b in around):
        x, around = F.pad(x, spread(around)), [(0, 0)] * n
    run = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[n]
    return run(
        x, weight, bias, strides, [a for a, _ in around], dilations, attributes.get("group", 1)
    )


@operator("ConvTranspose")
def conv_transpose(attributes: Attributes, x: Any, weight: Any, bias: Any = None) -> Any:
    n = x.ndim - 2
    refuse(attributes, auto_pad="NOTSET")
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
    refuse(attributes, training_mode=0, spatial=1)
    return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, attributes.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_norm(attributes: Attributes, x: Any, gamma: Any, beta: Any) -> Any:
    return F.instance_norm(x, None, None, gamma, beta, eps=attributes.get("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_norm(attributes: Attributes, x: Any, gamma: Any, beta: Any = None) -> Any:
    axis = attributes.get("axis", -1) % x.ndim
    return F.layer_norm(x, x.shape[axis:], gamma, beta, attributes.get("epsilon", 1e-5))
