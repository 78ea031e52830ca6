"""The arithmetic of quantized networks with integers only. NumPy, no network library: read it
beside the formulas.

A float x stands as an integer q on a grid: x ≈ (q - zero_point) * scale (ONNX's convention; the
seminar's S is 1 / scale). For y = w x + b, with one scale s_x and a scale s_w per output channel,

    accumulator = sum over inputs of (q_x - z_x) * q_w  +  round(b / (s_x s_w))        an int32, in
    units of s_x s_w
    q_y         = clip(round(accumulator * s_x s_w / s_y) + z_y)
    requantization, one factor per channel

ReLU commutes with positive scales, so it acts on accumulators. Floats come back once, at the end: y
= accumulator * s_x s_w. Jacob et al. 2018, section 2.

The factor s_x s_w / s_y comes in two forms: as a float32, as CPU runtimes have it, and as a
fixed-point multiplier and a shift, for machines without floats. Functions that end in `_fixed` are
of the second kind. Sums of products run through float matrix products, which are exact for integers
below 2^24 (float32) or 2^53 (float64) and far faster than NumPy's own integer ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mirabelle.integers.patches import Array, patches, places

# --- between floats and integers
# --------------------------------------------------------------------------------------------------


def quantize(x: Array, scale: float, zero_point: int, low: int, high: int) -> Array:
    """float -> int32 on the grid: round half to even, then clip to [low, high]. Computed in
    float32, as runtimes do.
    """
    return np.clip(
        np.rint(x.astype(np.float32) / np.float32(scale)) + zero_point, low, high
    ).astype(np.int32)


def dequantize(q: Array, scale: Array | float, zero_point: int = 0) -> Array:
    """Integers -> float32."""
    return ((q - zero_point).astype(np.float32) * np.asarray(scale, dtype=np.float32)).astype(
        np.float32
    )


# --- from one grid to another
# --------------------------------------------------------------------------------------------------


def requantize(accumulator: Array, factor: Array, zero_point: int, low: int, high: int) -> Array:
    """int32 accumulators -> integers of the next grid. factor: s_x s_w / s_y, float32, broadcast
    over the accumulator.
    """
    return np.clip(
        np.rint(accumulator.astype(np.float32) * np.asarray(factor, np.float32)) + zero_point,
        low,
        high,
    ).astype(np.int32)


def fixed_point(factor: Array | float, bits: int = 31) -> tuple[Array, Array]:
    """A positive factor as integers: factor ≈ multiplier * 2^-shift, with 2^(bits-1) <= multiplier
    < 2^bits and 0 <= shift < 63.

    A factor below 2^(bits-63) becomes (0, 0): it turns every int32 into zero. Raises `ValueError`
    for one that is not positive and finite, or too large for a shift to the right. Jacob et al.
    2018, section 2.2.
    """
    factor = np.asarray(factor, np.float64)
    if not (np.isfinite(factor) & (factor > 0)).all():
        raise ValueError("a requantization factor must be positive and finite")
    mantissa, exponent = np.frexp(factor)  # factor = mantissa * 2^exponent, mantissa in [0.5, 1)
    multiplier = np.rint(mantissa * 2.0**bits).astype(np.int64)
    carried = multiplier == 2**bits
    multiplier, shift = np.where(carried, multiplier // 2, multiplier), bits - exponent - carried
    if (shift < 0).any():
        raise ValueError(f"a requantization factor of {factor.max():g} does not fit {bits} bits")
    vanishes = shift > 62
    return np.where(vanishes, 0, multiplier), np.where(vanishes, 0, shift).astype(np.int64)


def shifted(product: Array, shift: Array) -> Array:
    """round(product * 2^-shift) on int64, halves upwards: add half of what is shifted away, then
    shift.
    """
    return (product + np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)) >> shift


def requantize_fixed(
    accumulator: Array, multiplier: Array, shift: Array, zero_point: int, low: int, high: int
) -> Array:
    """`requantize` without floats: one 32 x 32 bit product and one shift. multiplier, shift: of
    `fixed_point`, broadcast over the accumulator.
    """
    return np.clip(
        shifted(accumulator.astype(np.int64) * multiplier, shift) + zero_point, low, high
    ).astype(np.int32)


def rescale(q: Array, scale: float, target: float) -> Array:
    """Integers (zero point taken off) in units of `scale` -> float32 steps of `target`, not yet
    rounded.
    """
    return q.astype(np.float32) * (np.float32(scale) / np.float32(target))


def add(
    a: Array,
    scale_a: float,
    zero_a: int,
    b: Array,
    scale_b: float,
    zero_b: int,
    scale: float,
    zero_point: int,
    low: int,
    high: int,
) -> Array:
    """Two tensors of integers, each on its own grid, added and brought to a third one:

        q = clip(round(r_a q_a + r_b q_b + z - (r_a z_a + r_b z_b))),  r_a = s_a / s, r_b = s_b / s,
        all float32

    in ONNX Runtime's order of operations, each multiplication and addition fused (rounded once).
    """
    r_a, r_b = np.float32(scale_a) / np.float32(scale), np.float32(scale_b) / np.float32(scale)
    fixed = np.float32(zero_point) - (r_a * np.float32(zero_a) + r_b * np.float32(zero_b))
    return np.clip(np.rint(_fused(a, r_a, _fused(b, r_b, fixed))), low, high).astype(np.int32)


def _fused(q: Array, factor: np.float32, addend: Array | np.float32) -> Array:
    """q * factor + addend, rounded to float32 once: the product of a byte and a float32 is exact in
    float64.
    """
    return (q.astype(np.float64) * np.float64(factor) + addend).astype(np.float32)


ADDITION_BITS = 22  # a byte with its sign takes 9: both products and their sum fit 32 bits


def add_fixed(
    a: Array,
    scale_a: float,
    b: Array,
    scale_b: float,
    scale: float,
    zero_point: int,
    low: int,
    high: int,
) -> Array:
    """`add` without floats, for integers with their zero points taken off: two multipliers of 22
    bits, one shift for both.
    """
    ratios = np.array([scale_a, scale_b], np.float64) / scale
    _, shift = fixed_point(ratios.max(), ADDITION_BITS)
    multipliers = np.rint(ratios * 2.0 ** float(shift)).astype(np.int64)
    total = checked(a.astype(np.int64) * multipliers[0] + b.astype(np.int64) * multipliers[1])
    return np.clip(shifted(total.astype(np.int64), shift) + zero_point, low, high).astype(np.int32)


GUARD_BITS = 8


def sum_fixed(
    parts: list[tuple[Array, Array | float]], scale: float, zero_point: int, low: int, high: int
) -> Array:
    """Tensors of integers in units of their own (accumulators among them), added on the grid of
    `scale` without floats: each goes to steps of 1 / 256, the sum to whole ones.
    """
    total = sum(
        shifted(q.astype(np.int64) * m, s)
        for q, (m, s) in (
            (q, fixed_point(np.asarray(u, np.float64) / scale * 2.0**GUARD_BITS)) for q, u in parts
        )
    )
    return np.clip(
        shifted(np.asarray(total), np.asarray(GUARD_BITS)) + zero_point, low, high
    ).astype(np.int32)


# --- sums of products
# --------------------------------------------------------------------------------------------------


def checked(accumulator: Array, bits: int = 32) -> Array:
    """int32, the width of the accumulators on every machine; a sum that does not fit would wrap
    silently there. With `bits` of 64, int64.
    """
    if bits == 64:
        return accumulator.astype(np.int64)
    if accumulator.size and (accumulator.max() > 2**31 - 1 or accumulator.min() < -(2**31)):
        raise OverflowError("an accumulator leaves 32 bits")
    return accumulator.astype(np.int32)


def product(rows: Array, columns: Array) -> Array:
    """(..., R, K) x (..., K, O) -> (..., R, O): sums of products of integers, exact, as int64.

    Through float32 in pieces of K so short that no sum reaches 2^24, or through float64 where the
    integers are too large for that.
    """
    depth = rows.shape[-1]
    largest = float(np.abs(rows).max(initial=0)) * float(np.abs(columns).max(initial=0))
    piece = int(2**24 / largest) if largest else depth
    if piece >= min(depth, 256):
        a, b = rows.astype(np.float32), columns.astype(np.float32)
        starts = range(0, max(1, depth), max(1, min(piece, depth)))
        total: Any = sum(
            ((a[..., i : i + piece] @ b[..., i : i + piece, :]).astype(np.int64) for i in starts),
            start=np.int64(0),
        )
        return total
    return (rows.astype(np.float64) @ columns.astype(np.float64)).astype(np.int64)


def with_bias(total: Array, bias: Array | None, bits: int = 32) -> Array:
    """Sums of products (..., O), int64, as accumulators of so many bits. bias: (O,) in units of the
    accumulators.
    """
    return checked(total if bias is None else total + bias.astype(np.int64), bits)


def linear(x: Array, weight: Array, bias: Array | None = None, bits: int = 32) -> Array:
    """x: (..., K) integers with the zero point taken off. weight: (O, K). bias: (O,) in units of
    the accumulators. Returns (..., O) int32.

    bits: of the accumulators; 64 for operands of 16 bits.
    """
    return with_bias(product(x, weight.T), bias, bits)


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    bits: int = 32,
) -> Array:
    """x: (N, C, H, W) integers with the zero point taken off, so that padding is 0. weight: (O, C /
    groups, kh, kw). Returns (N, O, OH, OW) int32.

    bits: of the accumulators; 64 for operands of 16 bits.
    """
    outputs, inputs = weight.shape[:2]
    if groups == outputs and inputs == 1:
        return _depthwise(x, weight, bias, stride, padding, dilation, bits)
    seen = patches(x, weight.shape[2:], stride, padding, dilation)
    n, height, width, count, _ = seen.shape
    rows = (
        seen.reshape(n * height * width, count, groups, inputs)
        .transpose(2, 0, 1, 3)
        .reshape(groups, -1, count * inputs)
    )
    total = product(rows, filters(weight, groups)).transpose(1, 0, 2).reshape(-1, outputs)
    return with_bias(total, bias, bits).reshape(n, height, width, outputs).transpose(0, 3, 1, 2)


def filters(weight: Array, groups: int = 1) -> Array:
    """(O, C / groups, kh, kw) -> (groups, kh * kw * C / groups, O / groups): the columns that the
    rows of `patches` are multiplied with.
    """
    outputs, inputs = weight.shape[:2]
    return (
        weight.reshape(groups, outputs // groups, inputs, -1)
        .transpose(0, 3, 2, 1)
        .reshape(groups, -1, outputs // groups)
    )


def _depthwise(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: tuple,
    padding: tuple,
    dilation: tuple,
    bits: int,
) -> Array:
    """One filter a channel, place by place: as a product of matrices each would have one column."""
    kind = (
        np.int64 if bits == 64 else np.int32
    )  # a byte by a byte takes 16 bits: 2^15 places fit an int32
    column = weight.astype(kind).transpose(1, 2, 3, 0)[0, :, :, :, None, None]  # (kh, kw, C, 1, 1)
    total = sum(
        seen * column[i, j]
        for i, j, seen in places(x.astype(kind), weight.shape[2:], stride, padding, dilation)
    )
    return with_bias(np.moveaxis(np.asarray(total), 1, 3).astype(np.int64), bias, bits).transpose(
        0, 3, 1, 2
    )


# --- the rest of a network
# --------------------------------------------------------------------------------------------------


def relu(q: Array, zero_point: int = 0) -> Array:
    """On integers: the zero point is zero."""
    return np.maximum(q, zero_point)


def concatenate(
    parts: list[tuple[Array, float]],
    axis: int,
    scale: float,
    zero_point: int,
    low: int,
    high: int,
    fixed: bool = False,
) -> Array:
    """Tensors of integers (zero points taken off) with the scale of each, brought to one grid and
    put one after another along `axis`.
    """
    if fixed:
        moved = [
            requantize_fixed(q, *fixed_point(s / scale), zero_point, low, high) for q, s in parts
        ]
    else:
        moved = [
            requantize(q, np.float32(s) / np.float32(scale), zero_point, low, high)
            for q, s in parts
        ]
    return np.concatenate(moved, axis)


def max_pool2d(
    q: Array,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    lowest: int,
) -> Array:
    """The largest integer of each window; `lowest` stands outside the image."""
    return np.maximum.reduce(
        [seen for _, _, seen in places(q, kernel, stride, padding, dilation, lowest)]
    )


def sum_pool2d(
    q: Array, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Array:
    """Sums over windows of integers with the zero point taken off, zeros outside: an accumulator in
    units of scale / (kh * kw).
    """
    return checked(
        np.sum([seen for _, _, seen in places(q.astype(np.int64), kernel, stride, padding)], axis=0)
    )


def global_average(q: Array) -> Array:
    """Sums over the two last dimensions, kept as size 1: an int32 accumulator in units of scale /
    (H * W).
    """
    return checked(q.astype(np.int64).sum((2, 3), keepdims=True))
