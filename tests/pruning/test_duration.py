"""What is said of how long a cut will take."""

import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base import progress
from mirabelle.base.data import example_inputs
from mirabelle.channels.groups import analyze
from mirabelle.pruning import duration
from mirabelle.pruning.api import settings_of


class Slow(nn.Module):
    """One that takes a millisecond for each sample, by the clock of the tests."""

    now = 0.0

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, x):
        if not torch.compiler.is_compiling():
            Slow.now += 0.001 * len(x)
        return self.layers(x)


class Unsized:
    def __iter__(self):
        return iter(DATA)


DATA = [torch.randn(32, 8, generator=torch.Generator().manual_seed(0)) for _ in range(4)]


def _foretold(model, data, **options):
    coupling = analyze(model, example_inputs(torch.zeros(2, 8)))
    settings = settings_of(macs=0.5, data=data, **options)
    return duration.foretold(model, coupling, settings)


def test_it_grows_with_the_samples_that_are_read(monkeypatch):
    monkeypatch.setattr(duration.time, "perf_counter", lambda: Slow.now)
    passes = duration.PASSES * 0.001
    assert _foretold(Slow(), DATA) == pytest.approx(passes * 128)
    assert _foretold(Slow(), DATA, samples=40) == pytest.approx(passes * 40)
    # of a length that nobody knows: as many as are asked for
    assert _foretold(Slow(), Unsized()) == pytest.approx(passes * 512)


def test_wide_layers_take_longer():
    narrow, wide = (nn.Sequential(nn.Linear(8, n), nn.ReLU(), nn.Linear(n, 3)) for n in (64, 4096))
    assert _foretold(wide, DATA) > 20 * _foretold(narrow, DATA)


@pytest.mark.parametrize(("terminal", "said"), [(True, True), (False, False)])
def test_who_watches_is_told_before_the_long_part(monkeypatch, terminal, said):
    monkeypatch.setattr(progress, "watched", lambda: terminal)
    monkeypatch.setattr(duration, "watched", lambda: terminal)
    monkeypatch.setattr(duration, "foretold", lambda *_: 125.0)
    with progress.console.capture() as shown:
        mb.prune(Slow(), torch.zeros(1, 8), macs=0.5, data=DATA, samples=8)
    text = "scoring and fitting 1 layers on up to 8 samples will take about 2 min"
    assert (text in shown.get()) == said
