"""Integer arithmetic against loops over Python integers."""

from fractions import Fraction
from itertools import product

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from mirabelle.integers import arithmetic

SEEDS = st.integers(0, 2**31)


def integers(rng, shape, low=-128, high=127):
    return rng.integers(low, high + 1, shape).astype(np.int32)


def naive_conv(x, w, bias, stride, padding, dilation, groups):
    n, _, height, width = x.shape
    outputs, inputs, kh, kw = w.shape
    oh = (height + 2 * padding[0] - (kh - 1) * dilation[0] - 1) // stride[0] + 1
    ow = (width + 2 * padding[1] - (kw - 1) * dilation[1] - 1) // stride[1] + 1
    y = np.zeros((n, outputs, oh, ow), object)
    for b, o, i, j in product(range(n), range(outputs), range(oh), range(ow)):
        total = 0 if bias is None else int(bias[o])
        for c, u, v in product(range(inputs), range(kh), range(kw)):
            row, column = (
                i * stride[0] + u * dilation[0] - padding[0],
                j * stride[1] + v * dilation[1] - padding[1],
            )
            if 0 <= row < height and 0 <= column < width:
                total += int(x[b, o // (outputs // groups) * inputs + c, row, column]) * int(
                    w[o, c, u, v]
                )
        y[b, o, i, j] = total
    return y


@settings(deadline=None, max_examples=40)
@given(
    seed=SEEDS,
    groups=st.sampled_from([1, 2, 3]),
    each=st.integers(1, 2),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    biased=st.booleans(),
    zero_point=st.integers(0, 255),
)
def test_conv2d(seed, groups, each, kernel, stride, padding, dilation, biased, zero_point):
    rng = np.random.default_rng(seed)
    x = integers(rng, (2, groups * each, 6, 5), 0, 255) - zero_point
    w = integers(rng, (groups * 2, each, *kernel), -127)
    bias = integers(rng, groups * 2, -100000, 100000) if biased else None
    y = arithmetic.conv2d(x, w, bias, stride, padding, dilation, groups)
    assert y.dtype == np.int32
    assert (y == naive_conv(x, w, bias, stride, padding, dilation, groups)).all()


def test_padding_stands_for_zero_not_for_the_integer_zero():
    """With zero point 10, an image of tens is an image of zeros, and so are its convolutions, edges
    included.
    """
    q = np.full((1, 1, 3, 3), 10, np.int32)
    assert (arithmetic.conv2d(q - 10, np.ones((1, 1, 3, 3), np.int32), padding=(1, 1)) == 0).all()


@settings(deadline=None, max_examples=30)
@given(
    seed=SEEDS,
    lead=st.lists(st.integers(1, 3), max_size=2),
    inner=st.integers(1, 7),
    outputs=st.integers(1, 4),
)
def test_linear(seed, lead, inner, outputs):
    rng = np.random.default_rng(seed)
    x, w, b = (
        integers(rng, (*lead, inner)),
        integers(rng, (outputs, inner)),
        integers(rng, outputs, -1000, 1000),
    )
    y = arithmetic.linear(x, w, b)
    assert y.shape == (*lead, outputs) and y.dtype == np.int32
    for place in np.ndindex(*lead):
        for o in range(outputs):
            assert y[(*place, o)] == sum(
                int(a) * int(c) for a, c in zip(x[place], w[o], strict=True)
            ) + int(b[o])


@settings(deadline=None, max_examples=200)
@given(
    value=st.floats(-300, 300, width=32),
    power=st.integers(-4, 3),
    zero_point=st.integers(-128, 255),
)
def test_quantize_rounds_half_to_even_then_clips(value, power, zero_point):
    scale = 2.0**power  # so that the division is exact and Fractions decide
    expected = min(255, max(-128, round(Fraction(value) / Fraction(scale)) + zero_point))
    assert (
        arithmetic.quantize(np.array([value], np.float32), scale, zero_point, -128, 255)[0]
        == expected
    )


def test_quantize_on_halves():
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5, 300, -300], np.float32)
    assert arithmetic.quantize(x, 1.0, 0, -128, 127).tolist() == [
        -2,
        -2,
        0,
        0,
        2,
        2,
        126,
        127,
        127,
        -128,
    ]
    assert arithmetic.dequantize(np.array([0, 128, 255]), 0.5, 128).tolist() == [-64.0, 0.0, 63.5]


@settings(deadline=None, max_examples=100)
@given(
    accumulator=st.integers(-(2**22), 2**22),
    power=st.integers(-12, 0),
    zero_point=st.integers(-128, 127),
)
def test_requantize(accumulator, power, zero_point):
    expected = min(127, max(-128, round(Fraction(accumulator) * Fraction(2) ** power) + zero_point))
    assert (
        arithmetic.requantize(
            np.array([accumulator], np.int32), np.float32(2.0**power), zero_point, -128, 127
        )[0]
        == expected
    )


def test_requantize_per_channel():
    accumulator = np.full((1, 2, 1, 2), 100, np.int32)
    q = arithmetic.requantize(
        accumulator, np.array([0.5, 0.25], np.float32).reshape(1, 2, 1, 1), 3, 0, 255
    )
    assert q.tolist() == [[[[53, 53]], [[28, 28]]]]


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_either_end_of_32_bits_is_checked(value):
    """One sum beyond an end, among small ones, and the ends themselves."""
    sums = np.array([0, value, 1], np.int64)
    with pytest.raises(OverflowError, match="32 bits"):
        arithmetic.checked(sums)
    assert arithmetic.checked(sums, bits=64).tolist() == sums.tolist()
    ends = np.array([-(2**31), 2**31 - 1], np.int64)
    assert arithmetic.checked(ends).tolist() == ends.tolist()


def test_an_overflow_is_found():
    fits = np.full((1, 2**16), 255, np.int32), np.full((1, 2**16), 127, np.int32)
    assert arithmetic.linear(*fits)[0, 0] == 255 * 127 * 2**16 < 2**31
    with pytest.raises(OverflowError, match="32 bits"):
        arithmetic.linear(*fits, np.array([2**31 - 1 - 255 * 127 * 2**16 + 1]))
    with pytest.raises(OverflowError):
        arithmetic.conv2d(
            np.full((1, 2, 1, 1), -(2**15)), np.full((1, 2, 1, 1), 2**15), np.array([-1])
        )
    assert arithmetic.conv2d(
        np.full((1, 2, 1, 1), -(2**15)), np.full((1, 2, 1, 1), 2**15)
    ).item() == -(2**31)
    with pytest.raises(OverflowError):
        arithmetic.global_average(np.full((1, 1, 2, 2), 2**30, np.int32))


def test_relu():
    assert arithmetic.relu(np.array([-3, 0, 5]), 2).tolist() == [2, 2, 5]


@pytest.mark.parametrize("bits", [8, 16])
def test_depthwise(bits):
    rng = np.random.default_rng(0)
    x, w = (
        integers(rng, (2, 3, 5, 4), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
        integers(rng, (3, 1, 3, 2), -(2 ** (bits - 1)) + 1),
    )
    b = integers(rng, 3, -1000, 1000)
    y = arithmetic.conv2d(x, w, b, (2, 1), (1, 1), (1, 2), 3, 64 if bits == 16 else 32)
    assert (y == naive_conv(x, w, b, (2, 1), (1, 1), (1, 2), 3)).all()


@pytest.mark.parametrize("depth, largest", [(3, 127), (2000, 127), (40000, 255), (7, 2**15 - 1)])
def test_products_are_exact_whatever_their_length(depth, largest):
    rng = np.random.default_rng(0)
    rows, columns = (
        rng.integers(-largest, largest + 1, (2, depth)),
        rng.integers(-largest, largest + 1, (depth, 3)),
    )
    rows[0], columns[:, 0] = largest, largest
    assert (arithmetic.product(rows, columns) == rows @ columns).all() and arithmetic.product(
        rows, columns
    )[0, 0] == depth * largest**2


# --- one grid to another
# --------------------------------------------------------------------------------------------------


def test_fixed_point_by_hand():
    """0.3 = 1288490189 * 2^-32 to 31 bits: 0.3 * 2^32 = 1288490188.8. And 1 is 2^30 * 2^-30; 0.75
    with 3 bits is 6 / 8.
    """
    multiplier, shift = arithmetic.fixed_point(np.array([0.3, 1.0, 2.0**-20]))
    assert multiplier.tolist() == [1288490189, 2**30, 2**30] and shift.tolist() == [32, 30, 50]
    assert [int(v) for v in arithmetic.fixed_point(0.75, 3)] == [6, 3]
    assert [int(v) for v in arithmetic.fixed_point(1 - 2**-9, 3)] == [4, 2], (
        "7.98 eighths round up to one"
    )
    assert [int(v) for v in arithmetic.fixed_point(1e-30)] == [0, 0]
    for wrong in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="positive and finite"):
            arithmetic.fixed_point(wrong)
    with pytest.raises(ValueError, match="does not fit"):
        arithmetic.fixed_point(2.0**31)


@settings(deadline=None, max_examples=200)
@given(
    accumulator=st.integers(-(2**31), 2**31 - 1),
    factor=st.floats(2.0**-24, 1.0),
    zero_point=st.integers(-128, 255),
)
def test_requantize_fixed(accumulator, factor, zero_point):
    """Halves upwards, of the product with a multiplier that is off by at most 2^-31 of itself."""
    multiplier, shift = arithmetic.fixed_point(factor)
    assert 2**30 <= multiplier < 2**31 and abs(
        Fraction(int(multiplier), 2 ** int(shift)) / Fraction(factor) - 1
    ) <= Fraction(1, 2**31)
    exact = Fraction(accumulator) * int(multiplier) / 2 ** int(shift) + Fraction(1, 2)
    expected = min(255, max(-128, exact.__floor__() + zero_point))
    assert (
        arithmetic.requantize_fixed(
            np.array([accumulator], np.int32), multiplier, shift, zero_point, -128, 255
        )[0]
        == expected
    )


def test_fixed_and_float_requantization_differ_by_rounding_alone():
    accumulator = np.random.default_rng(0).integers(-(2**20), 2**20, (4, 5000)).astype(np.int32)
    factor = np.array([0.001, 1 / 3, 0.0173, 2e-4], np.float32)[:, None]
    floats = arithmetic.requantize(accumulator, factor, 3, -(2**20), 2**20)
    fixed = arithmetic.requantize_fixed(
        accumulator, *arithmetic.fixed_point(factor), 3, -(2**20), 2**20
    )
    assert np.abs(floats - fixed).max() <= 1 and (floats == fixed).mean() > 0.995


def test_add_by_hand():
    """q = round(2 (a - 1) + 0.5 (b - 3) + 10) with s_a = 1, s_b = 0.25, s = 0.5: for (2, 4) 12.5,
    which rounds to even; for (1, 7) 12.
    """
    a, b = np.array([2, 1, 200, 0]), np.array([4, 7, 200, 0])
    assert arithmetic.add(a, 1.0, 1, b, 0.25, 3, 0.5, 10, 0, 255).tolist() == [12, 12, 255, 6]
    assert arithmetic.add_fixed(a - 1, 1.0, b - 3, 0.25, 0.5, 10, 0, 255).tolist() == [
        13,
        12,
        255,
        7,
    ], "halves upwards: 12.5 and 6.5"


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, scales=st.tuples(*[st.floats(1e-3, 10)] * 2), share=st.floats(0.2, 2))
def test_additions_in_both_forms(seed, scales, share):
    a, b = np.random.default_rng(seed).integers(0, 256, (2, 500))
    scale = share * max(scales)
    exact = ((a - 128) * scales[0] + (b - 7) * scales[1]) / scale + 128
    for q in (
        arithmetic.add(a, scales[0], 128, b, scales[1], 7, scale, 128, 0, 255),
        arithmetic.add_fixed(a - 128, scales[0], b - 7, scales[1], scale, 128, 0, 255),
    ):
        assert (np.abs(q - np.clip(exact, 0, 255)) <= 0.5 + 1e-3).all()


@pytest.mark.parametrize("fixed", [False, True])
def test_concatenation_rescales_each_part(fixed):
    """[10, -4] in units of 0.5 and [3] in units of 2, in units of 1 from 100: 105, 98, 106."""
    parts = [(np.array([[10, -4]]), 0.5), (np.array([[3]]), 2.0)]
    assert arithmetic.concatenate(parts, 1, 1.0, 100, 0, 255, fixed).tolist() == [[105, 98, 106]]
    assert arithmetic.concatenate(parts, 1, 0.02, 100, 0, 255, fixed).tolist() == [[255, 0, 255]]


@settings(deadline=None, max_examples=30)
@given(
    seed=SEEDS,
    kernel=st.integers(2, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
)
def test_max_pool(seed, kernel, stride, padding, dilation):
    q = integers(np.random.default_rng(seed), (2, 3, 7, 6))
    y = arithmetic.max_pool2d(
        q, (kernel, kernel), (stride, stride), (padding, padding), (dilation, dilation), -128
    )
    expected = torch.nn.functional.max_pool2d(
        torch.from_numpy(q).double(), kernel, stride, padding, dilation
    ).numpy()
    assert (y == expected).all()


def test_global_average_is_a_sum():
    q = np.arange(12, dtype=np.int32).reshape(1, 2, 2, 3)
    assert arithmetic.global_average(q).tolist() == [[[[15]], [[51]]]]


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, kernel=st.integers(1, 3), stride=st.integers(1, 2), padding=st.integers(0, 1))
def test_sums_of_windows(seed, kernel, stride, padding):
    padding = min(padding, kernel // 2)
    q = integers(np.random.default_rng(seed), (2, 3, 7, 6))
    total = arithmetic.sum_pool2d(q, (kernel, kernel), (stride, stride), (padding, padding))
    expected = (
        torch.nn.functional.avg_pool2d(
            torch.from_numpy(q).double(), kernel, stride, padding
        ).numpy()
        * kernel**2
    )
    assert np.allclose(total, expected, atol=1e-6)
