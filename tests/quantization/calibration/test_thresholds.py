"""Histograms that stream and thresholds that can be worked out on paper."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from mirabelle.base.errors import InputError
from mirabelle.quantization.calibration.histograms import BINS, Histogram
from mirabelle.quantization.calibration.thresholds import (
    RANGES,
    THRESHOLDS,
    _least_divergence,
    absmax,
    entropy,
    gauss,
    gauss_range,
    laplace,
    laplace_range,
    mse,
    mse_range,
    percentile,
    percentile_range,
    rows_absmax,
    rows_mse,
)

VALUES = arrays(np.float32, st.integers(1, 60), elements=st.floats(-1000, 1000, width=32))
LEVELS = [1, 7, 63, 127, 255]


def histogram(values) -> Histogram:
    h = Histogram()
    h.add(torch.as_tensor(np.asarray(values, np.float32)))
    return h


def same(a: Histogram, b: Histogram) -> bool:
    return (a.reach, a.low, a.high) == (b.reach, b.low, b.high) and bool(
        (a.counts == b.counts).all()
    )


# --- the histogram
# --------------------------------------------------------------------------------------------------


def test_counts_by_hand():
    h = histogram([0.0, 0.5, -0.5, 0.25, 0.9])
    width = 1 / BINS
    assert h.reach == 1.0 and h.total == 5 and (h.low, h.high) == (-0.5, np.float32(0.9))
    assert {int(i): int(h.counts[i]) for i in np.flatnonzero(h.counts)} == {
        BINS // 2: 1,
        BINS: 1,
        BINS + BINS // 4: 1,
        BINS + BINS // 2: 1,
        BINS + int(0.9 / width): 1,
    }


def test_doubling_is_exact_where_a_value_lies_on_an_edge():
    streamed = histogram([1.0, -1.0, 0.5])
    streamed.add(torch.tensor([5.0]))
    assert same(streamed, histogram([1.0, -1.0, 0.5, 5.0]))
    assert streamed.reach == 8.0


@settings(deadline=None, max_examples=150)
@given(values=VALUES, cuts=st.lists(st.integers(0, 60), max_size=5), seed=st.integers(0, 10))
def test_streaming_is_one_shot_whatever_the_batches_and_their_order(values, cuts, seed):
    pieces = [
        p
        for p in np.split(
            np.random.default_rng(seed).permutation(values),
            sorted(min(c, len(values)) for c in cuts),
        )
        if len(p)
    ]
    streamed = Histogram()
    for piece in pieces:
        streamed.add(torch.from_numpy(piece))
    assert same(streamed, histogram(values))
    assert streamed.total == len(values) and streamed.maximum == np.abs(values).max()


@settings(deadline=None, max_examples=50)
@given(values=VALUES)
def test_each_value_is_in_its_bin(values):
    h = histogram(values)
    if h.reach:
        expected = np.floor(values.astype(np.float64) * BINS / h.reach).astype(int) + BINS
        assert (h.counts == np.bincount(expected, minlength=2 * BINS)).all()
        assert h.absolute()[1].sum() == len(values)


@pytest.mark.parametrize("value", [1e-45, 1e-38, 3.4e38])
def test_the_ends_of_float32(value):
    h = histogram([value, -value, 0.0])
    assert h.total == 3 and np.count_nonzero(h.counts) in (2, 3) and 0 < h.maximum < h.reach


def test_memory_does_not_grow():
    sizes = []
    for batches in (1, 100):
        h = Histogram()
        for i in range(batches):
            h.add(torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(i)))
        assert h.total == batches * 64 * 32
        sizes.append(
            {k: v.nbytes if isinstance(v, np.ndarray) else type(v) for k, v in vars(h).items()}
        )
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_values_name_the_place(bad):
    h = histogram([1.0])
    with pytest.raises(InputError, match=r"layer3 \(add\) holds NaN or infinite"):
        h.add(torch.tensor([0.0, bad]), "layer3 (add)")
    assert h.total == 1


def test_nothing_and_zeros():
    h = Histogram()
    h.add(torch.zeros(0))
    assert h.total == 0
    h.add(torch.zeros(4))
    assert (h.total, h.maximum, h.signed) == (4, 0.0, False)
    h.add(torch.tensor([-2.0]))
    assert (h.total, h.maximum, h.signed, h.counts[BINS]) == (5, 2.0, True, 4)


def test_summary_counts_everything():
    summary = histogram(np.linspace(-1, 3, 1000)).summary(bins=8)
    assert sum(summary["counts"]) == 1000 and (summary["low"], summary["high"]) == (-1.0, 3.0)
    assert all(120 <= c <= 130 for c in summary["counts"])
    assert sum(histogram([0.0]).summary()["counts"]) == 1


# --- by hand
# --------------------------------------------------------------------------------------------------


def test_absmax_is_the_largest():
    assert absmax(histogram([0.5, -3.0, 2.0]), 127) == 3.0


def test_percentile_is_the_upper_edge_of_the_bin_that_holds_it():
    # 99 values in the bin of 0.25 (reach 2, bins 2 / 2048 wide), one at 1.5.
    h = histogram([0.25] * 99 + [1.5])
    assert percentile(h, 127, share=0.99) == 0.25 + 2 / BINS
    assert percentile(h, 127, share=0.991) == 1.5
    assert percentile(h, 127) == 1.5


def test_mse_keeps_a_lone_large_value_or_clips_it():
    # 1000 values of 1 and one of 3 with one level. A threshold t >= 3 turns the ones (below half a
    # step of 1.5) into zeros: error 1000. t in [1, 2) keeps them within t^2 / 12 each and clips the
    # 3: 1000 t^2 / 12 + (3 - t)^2, least at the smallest t that holds the bin of 1.
    assert mse(histogram([1.0] * 1000 + [3.0]), 1) == pytest.approx(1.0, rel=0.02)
    # With 255 levels steps are so small that clipping one value costs more than all rounding: (3 -
    # t)^2 against 1000 * (3 / 255)^2 / 12 = 0.01.
    assert mse(histogram([1.0] * 1000 + [3.0]), 255) == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("levels", [7, 127, 255])
@pytest.mark.parametrize("kind", ["normal", "laplace", "rectified", "outlier"])
def test_mse_is_as_good_as_a_search_over_the_data(levels, kind):
    rng = np.random.default_rng(0)
    x = {
        "normal": rng.normal(size=20000),
        "laplace": rng.laplace(size=20000),
        "rectified": np.maximum(rng.normal(size=20000), 0),
        "outlier": np.append(rng.normal(size=20000), 40.0),
    }[kind].astype(np.float32)

    def error(threshold: float) -> float:
        step = threshold / levels
        return float(np.square(np.clip(np.rint(x / step), -levels, levels) * step - x).sum())

    least = min(error(t) for t in np.abs(x).max() * np.geomspace(1 / 64, 1, 400))
    found = error(mse(histogram(x), levels))
    assert found <= 1.05 * least
    if levels == 7:
        assert found < 0.9 * error(np.abs(x).max())


def test_entropy_clips_a_lone_value_far_out():
    x = np.random.default_rng(0).laplace(size=100000)
    assert entropy(histogram(np.append(x, 200.0)), 127) < 40
    assert entropy(histogram(np.linspace(-1, 1, 100001)), 127) > 0.95, (
        "a flat distribution has nothing to clip"
    )


@pytest.mark.parametrize("kind", ["background", "spikes", "rectified"])
def test_entropy_does_not_collapse(kind):
    rng = np.random.default_rng(1)
    x = {
        "background": np.concatenate([np.full(90000, -0.81), rng.uniform(-0.8, 2.0, 10000)]),
        "spikes": rng.choice([0.01, 0.5, 1.0, 4.0], 50000),
        "rectified": np.concatenate([np.zeros(95000), rng.exponential(size=5000)]),
    }[kind]
    for levels in (127, 255):
        threshold = entropy(histogram(x), levels)
        assert (np.abs(x) > threshold).mean() <= 0.001
        assert threshold >= np.quantile(np.abs(x), 0.999)


# Banner et al. 2019: the optimal clipping values in units of b and of σ for 2, 3 and 4 bits, which
# are 2, 4 and 8 levels on either side.
@pytest.mark.parametrize(
    ("levels", "by_b", "by_sigma"), [(2, 2.83, 1.71), (4, 3.89, 2.15), (8, 5.03, 2.55)]
)
def test_closed_forms_give_the_papers_values(levels, by_b, by_sigma):
    # Values of ±1 only: b = 1 and σ = 1 to half a bin. A value far out makes room and weighs
    # nothing beside so many.
    h = histogram([1.0] * 500 + [-1.0] * 500)
    h.low, h.high = -50.0, 50.0
    assert laplace(h, levels) == pytest.approx(by_b, rel=0.005)
    assert gauss(h, levels) == pytest.approx(by_sigma, rel=0.005)


@pytest.mark.parametrize("levels", [3, 15, 127])
@pytest.mark.parametrize(
    ("rule", "draw"),
    [(laplace, np.random.default_rng(3).laplace), (gauss, np.random.default_rng(4).normal)],
)
@pytest.mark.parametrize("rectified", [False, True])
def test_closed_forms_are_best_for_their_distribution(rule, draw, levels, rectified):
    x = draw(size=200000).astype(np.float32)
    x = np.maximum(x, 0) if rectified else x

    def error(threshold: float) -> float:
        step = threshold / levels
        return float(np.square(np.clip(np.rint(x / step), -levels, levels) * step - x).sum())

    least = min(error(t) for t in np.abs(x).max() * np.geomspace(1 / 16, 1, 200))
    assert error(rule(histogram(x), levels)) <= 1.15 * least


def test_ranges_by_hand():
    # 998 values of 0.25, one of -1 and one of 1.5; reach 2, bins 2 / 2048 wide. Leaving out a
    # thousandth on each side leaves the bin of 0.25, and zero.
    h = histogram([0.25] * 998 + [-1.0, 1.5])
    assert percentile_range(h, 255, share=0.998) == (0.0, 0.25 + 2 / BINS)
    assert percentile_range(h, 255) == (-1.0, 1.5)
    # Mean 0.5 of 0 and 1 in equal parts: both deviations are 0.5. The ends are cut at what was
    # seen.
    half = histogram([0.0] * 500 + [1.0] * 500)
    assert laplace_range(half, 255) == (0.0, 1.0) and gauss_range(half, 255) == (0.0, 1.0)
    half.low, half.high = -50.0, 50.0
    assert laplace_range(half, 16) == pytest.approx((0.5 - 5.03 / 2, 0.5 + 5.03 / 2), rel=0.01)
    assert gauss_range(half, 16) == pytest.approx((0.5 - 2.55 / 2, 0.5 + 2.55 / 2), rel=0.01)


@pytest.mark.parametrize("steps", [15, 255])
def test_an_affine_grid_pays_where_one_side_is_short(steps):
    x = torch.nn.functional.hardswish(
        2 * torch.randn(50000, generator=torch.Generator().manual_seed(0))
    ).numpy()
    low, high = mse_range(histogram(x), steps)
    threshold = mse(histogram(x), steps // 2)

    def error(low: float, high: float, steps: int) -> float:
        step = (high - low) / steps
        zero = round(-low / step)
        return float(
            np.square((np.clip(np.rint(x / step) + zero, 0, steps) - zero) * step - x).sum()
        )

    found = error(low, high, steps)
    assert found < 0.5 * error(-threshold, threshold, 2 * (steps // 2))
    assert found < 1.1 * min(
        error(a, b, steps)
        for a in np.linspace(-0.4, -0.05, 15)
        for b in x.max() * np.geomspace(0.2, 1, 60)
    )


def test_rows_are_searched_exactly():
    # One level: a row of ones and a 3. A step of 1 leaves an error of (3 - 1)^2 = 4; one of 3 makes
    # the ones zeros: 4 again at four ones, 8 at eight.
    rows = torch.tensor([[1.0, 1, 1, 1, 1, 1, 1, 1, 3.0], [0.0] * 9])
    found = rows_mse(rows, 1)
    # Between these, t: 8 (t - 1)^2 + (3 - t)^2 is least at t = 11 / 9, where it is 3.56.
    assert float(found[0]) == pytest.approx(11 / 9, rel=0.03) and float(found[1]) == 0
    assert rows_absmax(rows, 1).tolist() == [3, 0]


@pytest.mark.parametrize("name", RANGES)
@settings(deadline=None, max_examples=25)
@given(values=VALUES, steps=st.sampled_from([3, 15, 255]), power=st.integers(-8, 8))
def test_contract_ranges(name, values, steps, power):
    h = histogram(values)
    if 0 < h.maximum < 1e-20:
        return
    low, high = RANGES[name](h, steps)
    assert h.low <= low <= 0 <= high <= h.high
    assert (low < high) == (h.maximum > 0)
    scaled = RANGES[name](histogram(values * np.float32(2.0**power)), steps)
    assert scaled == (low * 2.0**power, high * 2.0**power)


def test_every_rule_has_both_forms():
    assert list(RANGES) == list(THRESHOLDS)


# --- every rule
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", THRESHOLDS)
@settings(deadline=None, max_examples=25)
@given(values=VALUES, levels=st.sampled_from(LEVELS), power=st.integers(-8, 8))
def test_contract_range_and_scale(name, values, levels, power):
    choose = THRESHOLDS[name]
    h = histogram(values)
    if 0 < h.maximum < 1e-20:
        return
    threshold = choose(h, levels)
    assert threshold == 0 if h.maximum == 0 else 0 < threshold <= h.maximum
    assert choose(histogram(values * np.float32(2.0**power)), levels) == threshold * 2.0**power
    # Bins are half open, so that a value on an edge changes its bin with its sign: the odd factor
    # takes values off the edges.
    values = values * np.float32(0.7368421)
    assert choose(histogram(-values), levels) == pytest.approx(
        choose(histogram(values), levels), rel=4 / levels if levels > 7 else 1.0
    )


@pytest.mark.parametrize("name", THRESHOLDS)
def test_contract_zeros_give_zero(name):
    assert THRESHOLDS[name](histogram(np.zeros(10)), 127) == 0.0


def test_entropy_looks_no_further_in_than_at_a_thousandth():
    """Of 2000 equal bins the first 1998 hold 0.999; every seventh end from there on is tried."""
    assert _least_divergence(np.ones(2000), 2000, 15) == 1998
