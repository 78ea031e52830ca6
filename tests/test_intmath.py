"""Integer arithmetic against loops over Python integers."""

from fractions import Fraction
from itertools import product

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from mirabelle import intmath

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
            row, column = i * stride[0] + u * dilation[0] - padding[0], j * stride[1] + v * dilation[1] - padding[1]
            if 0 <= row < height and 0 <= column < width:
                total += int(x[b, o // (outputs // groups) * inputs + c, row, column]) * int(w[o, c, u, v])
        y[b, o, i, j] = total
    return y


@settings(deadline=None, max_examples=40)
@given(
    seed=SEEDS, groups=st.sampled_from([1, 2, 3]), each=st.integers(1, 2), kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)), padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)), biased=st.booleans(), zero_point=st.integers(0, 255),
)  # fmt: skip
def test_conv2d(seed, groups, each, kernel, stride, padding, dilation, biased, zero_point):
    rng = np.random.default_rng(seed)
    x = integers(rng, (2, groups * each, 6, 5), 0, 255) - zero_point
    w = integers(rng, (groups * 2, each, *kernel), -127)
    bias = integers(rng, groups * 2, -100000, 100000) if biased else None
    y = intmath.conv2d(x, w, bias, stride, padding, dilation, groups)
    assert y.dtype == np.int32
    assert (y == naive_conv(x, w, bias, stride, padding, dilation, groups)).all()


def test_padding_stands_for_zero_not_for_the_integer_zero():
    """With zero point 10, an image of tens is an image of zeros, and so are its convolutions, edges included."""
    q = np.full((1, 1, 3, 3), 10, np.int32)
    assert (intmath.conv2d(q - 10, np.ones((1, 1, 3, 3), np.int32), padding=(1, 1)) == 0).all()


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, lead=st.lists(st.integers(1, 3), max_size=2), inner=st.integers(1, 7), outputs=st.integers(1, 4))
def test_linear(seed, lead, inner, outputs):
    rng = np.random.default_rng(seed)
    x, w, b = integers(rng, (*lead, inner)), integers(rng, (outputs, inner)), integers(rng, outputs, -1000, 1000)
    y = intmath.linear(x, w, b)
    assert y.shape == (*lead, outputs) and y.dtype == np.int32
    for place in np.ndindex(*lead):
        for o in range(outputs):
            assert y[(*place, o)] == sum(int(a) * int(c) for a, c in zip(x[place], w[o], strict=True)) + int(b[o])


@settings(deadline=None, max_examples=200)
@given(value=st.floats(-300, 300, width=32), power=st.integers(-4, 3), zero_point=st.integers(-128, 255))
def test_quantize_rounds_half_to_even_then_clips(value, power, zero_point):
    scale = 2.0**power  # so that the division is exact and Fractions decide
    expected = min(255, max(-128, round(Fraction(value) / Fraction(scale)) + zero_point))
    assert intmath.quantize(np.array([value], np.float32), scale, zero_point, -128, 255)[0] == expected


def test_quantize_on_halves():
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5, 300, -300], np.float32)
    assert intmath.quantize(x, 1.0, 0, -128, 127).tolist() == [-2, -2, 0, 0, 2, 2, 126, 127, 127, -128]
    assert intmath.dequantize(np.array([0, 128, 255]), 0.5, 128).tolist() == [-64.0, 0.0, 63.5]


@settings(deadline=None, max_examples=100)
@given(accumulator=st.integers(-(2**22), 2**22), power=st.integers(-12, 0), zero_point=st.integers(-128, 127))
def test_requantize(accumulator, power, zero_point):
    expected = min(127, max(-128, round(Fraction(accumulator) * Fraction(2) ** power) + zero_point))
    assert intmath.requantize(np.array([accumulator], np.int32), np.float32(2.0**power), zero_point, -128, 127)[0] == expected


def test_requantize_per_channel():
    accumulator = np.full((1, 2, 1, 2), 100, np.int32)
    q = intmath.requantize(accumulator, np.array([0.5, 0.25], np.float32).reshape(1, 2, 1, 1), 3, 0, 255)
    assert q.tolist() == [[[[53, 53]], [[28, 28]]]]


def test_an_overflow_is_found():
    fits = np.full((1, 2**16), 255, np.int32), np.full((1, 2**16), 127, np.int32)
    assert intmath.linear(*fits)[0, 0] == 255 * 127 * 2**16 < 2**31
    with pytest.raises(OverflowError, match="32 bits"):
        intmath.linear(*fits, np.array([2**31 - 1 - 255 * 127 * 2**16 + 1]))
    with pytest.raises(OverflowError):
        intmath.conv2d(np.full((1, 2, 1, 1), -(2**15)), np.full((1, 2, 1, 1), 2**15), np.array([-1]))
    assert intmath.conv2d(np.full((1, 2, 1, 1), -(2**15)), np.full((1, 2, 1, 1), 2**15)).item() == -(2**31)
    with pytest.raises(OverflowError):
        intmath.global_average(np.full((1, 1, 2, 2), 2**30, np.int32))


def test_relu_and_add():
    assert intmath.relu(np.array([-3, 0, 5]), 2).tolist() == [2, 2, 5]
    assert intmath.add(np.array([2, -4]), 0.5, np.array([1, 1]), 0.25).tolist() == [1.25, -1.75]


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, kernel=st.integers(2, 3), stride=st.integers(1, 2), padding=st.integers(0, 1), dilation=st.integers(1, 2))
def test_max_pool(seed, kernel, stride, padding, dilation):
    q = integers(np.random.default_rng(seed), (2, 3, 7, 6))
    y = intmath.max_pool2d(q, (kernel, kernel), (stride, stride), (padding, padding), (dilation, dilation), -128)
    expected = torch.nn.functional.max_pool2d(torch.from_numpy(q).double(), kernel, stride, padding, dilation).numpy()
    assert (y == expected).all()


def test_global_average_is_a_sum():
    q = np.arange(12, dtype=np.int32).reshape(1, 2, 2, 3)
    assert intmath.global_average(q).tolist() == [[[[15]], [[51]]]]
