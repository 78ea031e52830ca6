"""Pools, reductions and resizing: what looks at several elements of a map."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from mirabelle.onnx_files.operators.table import (
    OPERATORS,
    Attributes,
    UnsupportedError,
    operator,
    pads,
    refuse,
    spread,
)
from mirabelle.onnx_files.shapes import as_list, as_tensor

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
    refuse(attributes, storage_order=0)
    kernel, strides, dilations, around, ceil = _window(attributes, x)
    if any(a != b or 2 * a > k for (a, b), k in zip(around, kernel, strict=True)):
        x, around = F.pad(x, spread(around), value=-math.inf), [(0, 0)] * len(kernel)
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


OPERATORS.update(
    {
        "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
        "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
        "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
        "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
        "ReduceL2": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
        "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    }
)


@operator("ArgMax")
def arg_max(attributes: Attributes, x: Any) -> Any:
    refuse(attributes, select_last_index=0)
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
