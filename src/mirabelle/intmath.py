"""The arithmetic of quantised networks with integers only. NumPy, no network library: read it beside the formulas.

A float x stands as an integer q on a grid: x ≈ (q - zero_point) * scale (ONNX's convention; the seminar's S is 1 / scale).
For y = w x + b, with one scale s_x and a scale s_w per output channel,

    accumulator = sum over inputs of (q_x - z_x) * q_w  +  round(b / (s_x s_w))        an int32, in units of s_x s_w
    q_y         = clip(round(accumulator * s_x s_w / s_y) + z_y)                       requantisation, one factor per channel

ReLU commutes with positive scales, so it acts on accumulators. Floats come back once, at the end: y = accumulator * s_x s_w.
Jacob et al. 2018, section 2.

Sums of products run through float64 matrix products, which are exact for integers below 2^53 and far faster than NumPy's own integer ones.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def quantize(x: Array, scale: float, zero_point: int, low: int, high: int) -> Array:
    """float -> int32 on the grid: round half to even, then clip to [low, high]. Computed in float32, as runtimes do."""
    return np.clip(np.rint(x.astype(np.float32) / np.float32(scale)) + zero_point, low, high).astype(np.int32)


def dequantize(q: Array, scale: Array | float, zero_point: int = 0) -> Array:
    """Integers -> float32."""
    return ((q - zero_point).astype(np.float32) * np.asarray(scale, dtype=np.float32)).astype(np.float32)


def requantize(accumulator: Array, factor: Array, zero_point: int, low: int, high: int) -> Array:
    """int32 accumulators -> integers of the next grid. factor: s_x s_w / s_y, float32, broadcast over the accumulator."""
    return np.clip(np.rint(accumulator.astype(np.float32) * np.asarray(factor, np.float32)) + zero_point, low, high).astype(np.int32)


def _exact(a: Array, b: Array) -> Array:
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)


def _checked(accumulator: Array, bits: int = 32) -> Array:
    """int32, the width of the accumulators on every machine; a sum that does not fit would wrap silently there. With `bits` of 64, int64."""
    if bits == 64:
        return accumulator
    if accumulator.size and (accumulator.max() > 2**31 - 1 or accumulator.min() < -(2**31)):
        raise OverflowError("an accumulator leaves 32 bits")
    return accumulator.astype(np.int32)


def linear(x: Array, weight: Array, bias: Array | None = None, bits: int = 32) -> Array:
    """x: (..., K) integers with the zero point taken off. weight: (O, K). bias: (O,) in units of the accumulators. Returns (..., O) int32.

    bits: of the accumulators; 64 for operands of 16 bits.
    """
    accumulator = _exact(x, weight.T)
    return _checked(accumulator if bias is None else accumulator + bias.astype(np.int64), bits)


def patches(x: Array, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]) -> Array:
    """(N, C, H, W) -> (N, OH, OW, C, kh, kw): what each output position of a convolution reads, zeros outside."""
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, span, axis=(2, 3))  # type: ignore[call-overload]
    return windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]].transpose(0, 2, 3, 1, 4, 5)


def conv2d(
    x: Array, weight: Array, bias: Array | None = None, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1), groups: int = 1, bits: int = 32,
) -> Array:  # fmt: skip
    """x: (N, C, H, W) integers with the zero point taken off, so that padding is 0. weight: (O, C / groups, kh, kw). Returns (N, O, OH, OW) int32.

    bits: of the accumulators; 64 for operands of 16 bits.
    """
    outputs, inputs = weight.shape[:2]
    seen = patches(x, weight.shape[2:], stride, padding, dilation)
    n, height, width = seen.shape[:3]
    parts = []
    for g in range(groups):
        rows = seen[:, :, :, g * inputs : (g + 1) * inputs].reshape(n * height * width, -1)
        filters = weight[g * (outputs // groups) : (g + 1) * (outputs // groups)].reshape(outputs // groups, -1)
        parts.append(_exact(rows, filters.T))
    accumulator = np.concatenate(parts, 1)
    if bias is not None:
        accumulator = accumulator + bias.astype(np.int64)
    return _checked(accumulator, bits).reshape(n, height, width, outputs).transpose(0, 3, 1, 2)


def relu(q: Array, zero_point: int = 0) -> Array:
    """On integers: the zero point is zero."""
    return np.maximum(q, zero_point)


def add(a: Array, scale_a: float, b: Array, scale_b: float) -> Array:
    """Two integers (zero points taken off) of different grids, summed in float32: what runtimes compute before they requantise."""
    return a.astype(np.float32) * np.float32(scale_a) + b.astype(np.float32) * np.float32(scale_b)


def max_pool2d(q: Array, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], lowest: int) -> Array:
    """The largest integer of each window; `lowest` stands outside the image."""
    x = np.pad(q, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2), constant_values=lowest)
    return patches(x, kernel, stride, (0, 0), dilation).max((4, 5)).transpose(0, 3, 1, 2)


def global_average(q: Array) -> Array:
    """Sums over the two last dimensions, kept as size 1: an int32 accumulator in units of scale / (H * W)."""
    return _checked(q.astype(np.int64).sum((2, 3), keepdims=True))
