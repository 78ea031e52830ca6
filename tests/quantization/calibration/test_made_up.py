"""Calibration on made-up pictures: BatchNorm's moments come back, and ends that nobody saw."""

import numpy as np
import pytest
import torch
from torch import nn

import mirabelle as mb
from examples import shapes
from mirabelle.base.data import as_batch
from mirabelle.graph.capture import operator
from mirabelle.quantization import quantization
from mirabelle.quantization.calibration.histograms import Histogram
from mirabelle.quantization.calibration.made_up import ROOM, correct
from mirabelle.quantization.calibration.observation import PixelByPixel
from mirabelle.quantization.simulation.graph import captured
from mirabelle.quantization.simulation.notes import correction_of, histograms_of
from mirabelle.verification import sqnr


class Norms(nn.Module):
    """A folded BatchNorm, and one behind a ReLU that stays."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        self.first, self.second = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x):
        return self.b(self.second(self.first(self.a(x)).relu())).mean((2, 3))


def trained():
    torch.manual_seed(0)
    network = Norms()
    for norm in (network.first, network.second):
        nn.init.uniform_(norm.weight, -2, 2)
        nn.init.normal_(norm.bias)
        norm.momentum = None
    network(torch.randn(64, 3, 12, 12))
    return network.eval()


class Kept(PixelByPixel):
    def run_node(self, n):
        self.values[n] = super().run_node(n)
        return self.values[n]


def moments(graph, x):
    """(mean, deviation) of the channels of every node with a correction, in order."""
    run = Kept(graph)
    run.values = {}
    with torch.no_grad():
        run.on(as_batch(x))
    found = [v for n, v in run.values.items() if correction_of(n)]
    return [(v.mean((0, 2, 3)), v.std((0, 2, 3), correction=0)) for v in found]


def test_batchnorm_gives_its_own_moments_again():
    network, other = trained(), 3 * torch.rand(8, 3, 12, 12) + 1
    graph = captured(network, as_batch(other))
    before = {k: v.clone() for k, v in graph.state_dict().items()}
    correct(graph, [as_batch(other[:3]), as_batch(other[3:])])
    found = moments(graph, other)
    assert len(found) == 2  # one folded, one not
    for (mean, deviation), norm in zip(found, (network.first, network.second), strict=True):
        assert torch.allclose(mean, norm.bias, atol=1e-4)
        assert torch.allclose(deviation, norm.weight.abs(), atol=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in graph.state_dict().items())
    with torch.no_grad():  # what runs the network itself knows nothing of it
        assert torch.allclose(graph(other), network(other), atol=1e-5)


def test_channels_that_do_not_move_stay_finite():
    network = trained()
    still = torch.ones(4, 3, 12, 12)
    graph = captured(network, as_batch(still))
    correct(graph, [as_batch(still)])
    for node in graph.graph.nodes:
        if (note := correction_of(node)) is not None:
            assert note.factor.isfinite().all() and note.shift.isfinite().all()
            assert float(note.factor.abs().max()) <= 8


def test_a_correction_follows_channels_that_are_rescaled():
    note = next(n for n in map(correction_of, _corrected().graph.nodes) if n)
    factors, value = torch.linspace(0.5, 3, 6), torch.randn(2, 6, 4, 4)
    shape = (1, -1, 1, 1)
    expected = note(value) / factors.view(shape)
    assert torch.allclose(note.over(factors)(value / factors.view(shape)), expected, atol=1e-5)


def _corrected():
    x = torch.rand(8, 3, 12, 12)
    graph = captured(trained(), as_batch(x))
    correct(graph, [as_batch(x)])
    return graph


def test_stretched_by_hand():
    histogram = Histogram(axis=1)
    histogram.add(torch.tensor([[-1.0, 3.0], [0.5, 2.0]]))
    assert histogram.reach == 4
    histogram.stretch(1.5)
    assert (histogram.low, histogram.high, histogram.reach) == (-1.5, 4.5, 8)
    assert histogram.channels is not None
    low, high = (c.tolist() for c in histogram.channels)
    assert (low, high) == ([-1.5, 3], [0.75, 4.5]) and histogram.total == 4


@pytest.fixture(scope="module")
def without_data():
    network, images = shapes.network(), shapes.draw(5, 256)[0]
    return network, images, mb.quantize(network, inputs=torch.zeros(1, 3, 24, 24), target="x86")


def test_ends_that_no_batchnorm_tells(without_data):
    """The input to its ends, and what is averaged over space with room."""
    network, images, q = without_data
    graph, rules, seen = captured(network, as_batch(images[:2])), quantization(q).rules, {}
    for node in graph.graph.nodes:
        seen[operator(node) or node.op] = node.name
    assert rules[seen["placeholder"]] == rules[seen["mean"]] == "absmax"
    pooled = histograms_of(q)[seen["mean"]]
    assert pooled.channels is not None
    counted = (np.arange(len(pooled.counts)) + 1) * 2 * pooled.reach / len(pooled.counts)
    top = counted[np.flatnonzero(pooled.counts)[-1]] - pooled.reach  # of what was really seen
    assert pooled.high == pytest.approx(ROOM * top, rel=0.02)


def test_integers_without_data_are_near_those_with_data(without_data):
    """On test pictures that neither saw; without the corrections it was 2.4 dB below."""
    network, images, q = without_data
    data = shapes.data()["calibration"]
    other = mb.quantize(network, data, target="x86")
    with torch.no_grad():
        exact = network(images).numpy()
        found, best = (sqnr(exact, n(images).numpy()) for n in (q, other))
    assert found > best - 1
