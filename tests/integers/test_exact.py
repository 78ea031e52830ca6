"""Integer arithmetic against Python's own integers and fractions, place by place."""

import math
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mirabelle.integers import arithmetic


def halves_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


@settings(deadline=None, max_examples=200)
@given(value=st.integers(-(2**61), 2**61), shift=st.integers(0, 62))
def test_shifting_rounds_halves_upwards(value, shift):
    found = arithmetic.shifted(np.array([value], np.int64), np.array([shift]))
    assert int(found[0]) == halves_up(Fraction(value, 2**shift))


def test_shifts_go_with_their_places():
    values, shifts = np.array([5, 5, 5, -5], np.int64), np.array([0, 1, 2, 1])
    assert arithmetic.shifted(values, shifts).tolist() == [5, 3, 1, -2]


@pytest.mark.parametrize("bits", [3, 22, 31])
@pytest.mark.parametrize("power", range(-8, 3))
def test_factors_of_two_are_exact(bits, power):
    multiplier, shift = arithmetic.fixed_point(2.0**power, bits)
    assert Fraction(int(multiplier), 2 ** int(shift)) == Fraction(2) ** power
    assert multiplier == 2 ** (bits - 1) and multiplier.dtype == shift.dtype == np.int64


def test_the_largest_and_the_smallest_factor():
    """2^-32 is 2^30 / 2^62, the last shift; what is smaller turns every int32 into zero."""
    assert [int(v) for v in arithmetic.fixed_point(2.0**-32)] == [2**30, 62]
    assert [int(v) for v in arithmetic.fixed_point(2.0**-33)] == [0, 0]
    assert [int(v) for v in arithmetic.fixed_point(2.0**30)] == [2**30, 0]
    assert [int(v) for v in arithmetic.fixed_point(2.0**31 - 1)] == [2**31 - 1, 0]
    with pytest.raises(ValueError, match="does not fit 31 bits"):
        arithmetic.fixed_point(np.array([1.0, 2.0**31]))
    with pytest.raises(ValueError, match="positive"):
        arithmetic.fixed_point(np.array([1.0, 0.0]))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    units=st.tuples(*[st.floats(1e-3, 3.0)] * 2),
    zero_point=st.integers(-9, 9),
)
def test_sums_of_several_grids(seed, units, zero_point):
    """Each part to steps of 1 / 256, halves upwards; then their sum to whole ones."""
    rng = np.random.default_rng(seed)
    parts = [rng.integers(-4000, 4000, 20) for _ in units]
    found = arithmetic.sum_fixed(list(zip(parts, units, strict=True)), 0.7, zero_point, -128, 127)
    for i, value in enumerate(found.tolist()):
        total = 0
        for part, unit in zip(parts, units, strict=True):
            multiplier, shift = arithmetic.fixed_point(unit / 0.7 * 256)
            total += halves_up(Fraction(int(part[i]) * int(multiplier), 2 ** int(shift)))
        assert value == min(127, max(-128, halves_up(Fraction(total, 256)) + zero_point))
    assert found.dtype == np.int32


def test_a_sum_of_grids_by_hand():
    """3 * 0.5 + 10 * 0.25 = 4, and 2 * 0.5 + 6 * 0.25 = 2.5, whose half goes up."""
    parts = [(np.array([3, 2]), 0.5), (np.array([10, 6]), np.array([0.25, 0.25]))]
    assert arithmetic.sum_fixed(parts, 1.0, 0, -128, 127).tolist() == [4, 3]
    assert arithmetic.sum_fixed(parts, 1.0, 5, 0, 8).tolist() == [8, 8]
    # 0.00195 is less than half of 1 / 256, so three hundred of them come to nothing.
    assert arithmetic.sum_fixed([(np.array([1]), 0.00195)] * 300, 1.0, 0, -8, 8).tolist() == [0]


def test_the_multipliers_of_an_addition():
    """Of 3 / 4 and 1 / 3 to 22 bits: 3145728 and 1398101 of 2^22; the sum is rounded once."""
    a, b = np.array([255, -255, 1, 0]), np.array([255, -255, 1, 3])
    found = arithmetic.add_fixed(a, 0.75, b, 1 / 3, 1.0, 2, -300, 300)
    exact = [
        halves_up(Fraction(int(p) * 3145728 + int(q) * 1398101, 2**22)) + 2
        for p, q in zip(a, b, strict=True)
    ]
    assert found.tolist() == exact == [278, -274, 3, 3]
    assert arithmetic.add_fixed(a, 0.75, b, 1 / 3, 1.0, 2, -5, 5).tolist() == [5, -5, 3, 3]


@pytest.mark.parametrize("depth", [1, 5, 254, 255, 256, 257, 258, 1000])
@pytest.mark.parametrize("largest", [1, 255, 256, 257, 2**12])
def test_products_of_every_length(depth, largest):
    """Where one piece ends and the next begins, and on both sides of where float64 takes over."""
    rows, columns = np.full((2, depth), largest), np.full((depth, 3), -largest)
    rows[1] = np.arange(depth) % 3 - 1
    found = arithmetic.product(rows, columns)
    assert found.dtype == np.int64 and (found == rows @ columns).all()


def test_products_of_nothing_and_of_zeros():
    assert arithmetic.product(np.zeros((2, 5), int), np.ones((5, 1), int)).tolist() == [[0], [0]]
    assert arithmetic.product(np.zeros((2, 0), int), np.ones((0, 1), int)).tolist() == [[0], [0]]
    assert arithmetic.checked(np.zeros((0, 3), np.int64)).shape == (0, 3)


def test_what_is_not_said_is_one_step_and_no_padding():
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 9, (1, 2, 4, 4)), rng.integers(-9, 9, (3, 2, 2, 2))
    found = arithmetic.conv2d(x, w)
    for o, i, j in np.ndindex(3, 3, 3):
        assert found[0, o, i, j] == (x[0, :, i : i + 2, j : j + 2] * w[o]).sum()
    assert arithmetic.dequantize(np.array([3, -2]), 0.5).tolist() == [1.5, -1.0]
    assert arithmetic.relu(np.array([-3, 2])).tolist() == [0, 2]
    per_channel = arithmetic.dequantize(np.array([[4], [6]]), np.array([[0.5], [2.0]]), 2)
    assert per_channel.tolist() == [[1.0], [8.0]] and per_channel.dtype == np.float32


@pytest.mark.parametrize("groups, inputs", [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_grouped_filters_are_columns(groups, inputs):
    weight = np.random.default_rng(1).integers(-9, 9, (groups * 2, inputs, 2, 3))
    columns = arithmetic.filters(weight, groups)
    assert columns.shape == (groups, 6 * inputs, 2)
    for g, o, c, i, j in np.ndindex(groups, 2, inputs, 2, 3):
        assert columns[g, (i * 3 + j) * inputs + c, o] == weight[g * 2 + o, c, i, j]
    if groups == 1:
        assert (arithmetic.filters(weight) == columns).all()


@pytest.mark.parametrize("shape", [(3, 1, 2, 2), (1, 1, 2, 2), (4, 1, 1, 1)])
def test_depthwise_in_64_bits_does_not_wrap(shape):
    """Where each channel has its own filter, and one product alone leaves 32 bits."""
    x, w = np.full((1, shape[0], 3, 3), 2**30), np.full(shape, 2**3)
    found = arithmetic.conv2d(x, w, groups=shape[0], bits=64)
    assert found.dtype == np.int64 and (found == 2**33 * shape[2] * shape[3]).all()
    bias = np.arange(shape[0])
    again = arithmetic.conv2d(x, w, bias, groups=shape[0], bits=64) - found
    assert (again == bias[:, None, None]).all()
    linear = arithmetic.linear(np.array([[2**30]]), np.array([[2**3]]), bits=64)
    assert linear.dtype == np.int64 and linear.tolist() == [[2**33]]


def test_rounding_is_to_even_in_floats_and_upwards_without_them():
    half = [(np.array([1, 3, -1]), 0.5)]
    assert arithmetic.concatenate(half, 0, 1.0, 0, -9, 9).tolist() == [0, 2, 0]
    assert arithmetic.concatenate(half, 0, 1.0, 0, -9, 9, fixed=True).tolist() == [1, 2, 0]
    assert arithmetic.rescale(np.array([1, 3, -1]), 0.5, 2.0).tolist() == [0.25, 0.75, -0.25]


def test_outside_the_image_stands_the_lowest_of_the_grid():
    q = np.full((1, 1, 2, 2), -7)
    found = arithmetic.max_pool2d(q, (3, 3), (2, 2), (1, 1), (1, 1), -5)
    assert found.tolist() == [[[[-5]]]]


def test_sums_over_windows_are_checked():
    q = np.full((1, 1, 2, 2), 2**30, np.int32)
    with pytest.raises(OverflowError):
        arithmetic.sum_pool2d(q, (2, 2), (1, 1), (0, 0))
    assert arithmetic.sum_pool2d(q // 2 - 1, (2, 2), (1, 1), (0, 0)).item() == 2**31 - 4
    assert arithmetic.global_average(np.full((2, 1, 1, 3), 2)).tolist() == [[[[6]]], [[[6]]]]


def test_an_addition_is_fused():
    """In float32 step by step 3 * 0.1 - 0.3 leaves a rest; fused, what is left of 0.1's rounding:
    float32(0.1) is above 0.1 by 1.49e-9.
    """
    found = arithmetic._fused(np.array([3]), np.float32(0.1), np.float64(-0.3))
    assert found.dtype == np.float32 and float(found[0]) == pytest.approx(3 * 1.490116e-9, rel=1e-4)
