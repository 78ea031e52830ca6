"""Histograms that stream and thresholds that can be worked out on paper."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from mirabelle.errors import InputError
from mirabelle.quantize.observe import BINS, Histogram
from mirabelle.quantize.thresholds import THRESHOLDS, absmax, entropy, mse, percentile

VALUES = arrays(np.float32, st.integers(1, 60), elements=st.floats(-1000, 1000, width=32))
LEVELS = [1, 7, 63, 127, 255]


def histogram(values) -> Histogram:
    h = Histogram()
    h.add(torch.as_tensor(np.asarray(values, np.float32)))
    return h


def same(a: Histogram, b: Histogram) -> bool:
    return (a.reach, a.low, a.high) == (b.reach, b.low, b.high) and bool((a.counts == b.counts).all())


# --- the histogram --------------------------------------------------------------------------------------------------------------------


def test_counts_by_hand():
    h = histogram([0.0, 0.5, -0.5, 0.25, 0.9])
    width = 1 / BINS
    assert h.reach == 1.0 and h.total == 5 and (h.low, h.high) == (-0.5, np.float32(0.9))
    assert {int(i): int(h.counts[i]) for i in np.flatnonzero(h.counts)} == {
        BINS // 2: 1, BINS: 1, BINS + BINS // 4: 1, BINS + BINS // 2: 1, BINS + int(0.9 / width): 1,
    }  # fmt: skip


def test_doubling_is_exact_where_a_value_lies_on_an_edge():
    streamed = histogram([1.0, -1.0, 0.5])
    streamed.add(torch.tensor([5.0]))
    assert same(streamed, histogram([1.0, -1.0, 0.5, 5.0]))
    assert streamed.reach == 8.0


@settings(deadline=None, max_examples=150)
@given(values=VALUES, cuts=st.lists(st.integers(0, 60), max_size=5), seed=st.integers(0, 10))
def test_streaming_is_one_shot_whatever_the_batches_and_their_order(values, cuts, seed):
    pieces = [p for p in np.split(np.random.default_rng(seed).permutation(values), sorted(min(c, len(values)) for c in cuts)) if len(p)]
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
        sizes.append({k: v.nbytes if isinstance(v, np.ndarray) else type(v) for k, v in vars(h).items()})
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


# --- by hand --------------------------------------------------------------------------------------------------------------------------


def test_absmax_is_the_largest():
    assert absmax(histogram([0.5, -3.0, 2.0]), 127) == 3.0


def test_percentile_is_the_upper_edge_of_the_bin_that_holds_it():
    # 99 values in the bin of 0.25 (reach 2, bins 2 / 2048 wide), one at 1.5.
    h = histogram([0.25] * 99 + [1.5])
    assert percentile(h, 127, share=0.99) == 0.25 + 2 / BINS
    assert percentile(h, 127, share=0.991) == 1.5
    assert percentile(h, 127) == 1.5


def test_mse_keeps_a_lone_large_value_or_clips_it():
    # 1000 values of 1 and one of 3 with one level. A threshold t >= 3 turns the ones (below half a step of 1.5) into zeros: error 1000.
    # t in [1, 2) keeps them within t^2 / 12 each and clips the 3: 1000 t^2 / 12 + (3 - t)^2, least at the smallest t that holds the bin of 1.
    assert mse(histogram([1.0] * 1000 + [3.0]), 1) == pytest.approx(1.0, rel=0.02)
    # With 255 levels steps are so small that clipping one value costs more than all rounding: (3 - t)^2 against 1000 * (3 / 255)^2 / 12 = 0.01.
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
    assert entropy(histogram(np.linspace(-1, 1, 100001)), 127) > 0.95, "a flat distribution has nothing to clip"


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


# --- every rule -----------------------------------------------------------------------------------------------------------------------


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
    assert choose(histogram(-values), levels) == pytest.approx(threshold, rel=4 / levels if levels > 7 else 1.0)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_contract_zeros_give_zero(name):
    assert THRESHOLDS[name](histogram(np.zeros(10)), 127) == 0.0
