"""What a histogram knows besides its counts: channels, means, stretched ends, thinned samples."""

import math

import numpy as np
import pytest
import torch

from mirabelle.quantization.calibration import histograms
from mirabelle.quantization.calibration.histograms import BINS, Histogram


def filled(values, **options) -> Histogram:
    h = Histogram(**options)
    for batch in values:
        h.add(batch)
    return h


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("last", [False, True])
def test_channels_by_hand(axis, last):
    """Wherever they lie in memory, over batches of two sizes."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(n, 3, 4, 5, generator=generator) for n in (2, 3)]
    if last:
        given = [b.to(memory_format=torch.channels_last) for b in given]
    h = filled(given, axis=axis)
    whole = torch.cat(given).movedim(axis, 0).flatten(1)
    assert h.channels is not None and h.means is not None
    low, high = h.channels
    assert low.tolist() == whole.amin(1).tolist() and high.tolist() == whole.amax(1).tolist()
    assert h.means == pytest.approx(whole.double().mean(1).numpy(), abs=1e-6)
    assert (h.low, h.high) == (float(whole.min()), float(whole.max()))
    assert h.total == whole.numel() and h.summed == whole.shape[1]
    plain = filled(given)
    assert plain.channels is None and plain.means is None and plain.summed == 0
    assert (plain.counts == h.counts).all() and (plain.low, plain.high) == (h.low, h.high)


def test_rectified_channels_begin_at_zero():
    h = filled([torch.rand(2, 3, 4) + 1.0], axis=1, rectified=True)
    assert h.channels is not None and h.channels[0].tolist() == [0.0] * 3
    assert h.low == 0.0 and h.channels[1].min() > 1.0
    assert Histogram(axis=1).means is None


def test_stretching_moves_the_ends_and_no_value():
    values = torch.tensor([[-0.5, 0.25], [0.75, 0.9]])
    h, plain = filled([values], axis=1), filled([values])
    h.stretch(3.0)
    assert (h.low, h.high) == (-1.5, pytest.approx(2.7)) and h.reach == 4.0
    assert h.channels is not None
    assert h.channels[0].tolist() == [-1.5, 0.75]
    assert h.channels[1].tolist() == pytest.approx([2.25, 2.7])
    place = np.repeat(np.flatnonzero(h.counts), h.counts[h.counts > 0])
    old = np.repeat(np.flatnonzero(plain.counts), plain.counts[plain.counts > 0])
    assert (place == (old - BINS) // 4 + BINS).all()  # of bins four times as wide
    plain.stretch(1.0)
    assert (plain.low, plain.high, plain.reach) == (-0.5, np.float32(0.9), 1.0)
    half = filled([torch.tensor([0.5])])
    half.stretch(2.0)  # the end is at the reach: bins are half open
    assert (half.high, half.reach) == (1.0, 2.0)
    zeros = filled([torch.zeros(2, 3)])
    zeros.stretch(2.0)
    assert (zeros.reach, zeros.maximum) == (0.0, 0.0)


def test_a_reach_is_the_power_of_two_above():
    for value, reach in ((0.9, 1.0), (1.0, 2.0), (3.0, 4.0), (2.0**-120, 2.0**-100)):
        assert filled([torch.tensor([value])]).reach == reach
    zeros = filled([torch.zeros(5), torch.tensor([1.0])])
    assert zeros.counts[BINS] == 5 and zeros.counts[BINS + BINS // 2] == 1


@pytest.mark.parametrize("each", [1, 7, 100, 101, 240, 1000])
def test_thinned_samples_keep_every_kth_value(each, monkeypatch):
    """k is the least that leaves at most so many, and has no divisor in common with the size."""
    monkeypatch.setattr(histograms, "COUNTED", 50)
    step = max(1, math.ceil(each / 50))
    while math.gcd(step, each) > 1 and step > 1:
        step += 1
    values = torch.arange(3 * each, dtype=torch.float32).view(3, each)
    found = histograms._thinned(values)
    assert found.tolist() == values[:, ::step].flatten().tolist()
    assert histograms._thinned(torch.tensor(4.0)).tolist() == [4.0]
    h = filled([values + 0.5])
    assert h.high == 3 * each - 0.5 and h.total == found.numel()  # extremes are those of all


def test_summaries_count_each_bin_where_its_center_falls():
    """Of reach 1: values in the middle of the first and the last tenth, and one in the middle."""
    h = filled([torch.tensor([-0.45, -0.45, 0.05, 0.45])])
    h.low, h.high = -0.5, 0.5
    summary = h.summary(bins=10)
    assert (summary["low"], summary["high"]) == (-0.5, 0.5)
    assert summary["counts"] == [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    narrow = filled([torch.full((3,), 0.25)])
    narrow.low = 0.25
    flat = narrow.summary(bins=4)
    assert (flat["low"], flat["high"], flat["counts"]) == (-0.25, 0.75, [0, 0, 3, 0])
    centers, counts = h.absolute()
    assert len(centers) == BINS and counts.sum() == 4 and h.reach == 0.5
    assert (centers[0], centers[-1]) == (0.25 / BINS, 0.5 - 0.25 / BINS)
    assert h.signed and not filled([torch.ones(2)]).signed


def test_nothing_is_counted_of_nothing():
    h = filled([torch.zeros(0, 3), torch.ones(1, 3, requires_grad=True)], axis=1)
    assert h.total == 3 and h.summed == 1 and h.channels is not None
