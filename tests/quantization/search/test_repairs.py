"""Repairs that are chosen by trying them; those that suit a network."""

import math
import sys

import torch

from mirabelle.base.data import Batch
from mirabelle.quantization import quantization, quantize
from mirabelle.quantization.repairs.table import check_repairs, suitable
from mirabelle.quantization.search.repairs import combinations
from mirabelle.quantization.simulation.graph import captured
from tests.quantization.repairs.networks import TOKENS, attention, relative
from tests.quantized_networks import batches, build


def test_combinations_are_those_that_can_change_the_network():
    cnn, transformer = (
        captured(n, Batch((x,), {}, None))
        for n, x in ((build("residual"), batches()[0]), (attention(), TOKENS[0]))
    )
    for network in (cnn, transformer):
        assert combinations(network)[0] == () and all(
            check_repairs(c) == list(c) for c in combinations(network)
        )
    assert ("bias-means",) in combinations(cnn)
    assert not any("smooth-quant" in c for c in combinations(cnn))
    assert ("smooth-quant", "bias") in combinations(transformer)
    assert ("smooth-quant", "smooth-inputs", "bias") in combinations(transformer)


def test_the_repairs_that_come_nearest_on_samples_held_out_are_taken(monkeypatch):
    """Six batches of 16: the last two, a quarter and more, are compared, and the result is
    calibrated on all.
    """
    network, data = build("residual"), batches(count=6, size=16)
    seen = []

    def noise(attempted, few, wanted):
        described = quantization(attempted)
        seen.append((described.repair, described.samples, sum(b.size for b in few)))
        return 1.0 if described.repair == ("equalize-activations", "bias") else 2.0

    monkeypatch.setattr(sys.modules[combinations.__module__], "noise", noise)
    q = quantize(network, data, repair="search", samples=96)
    assert (
        quantization(q).repair == ("equalize-activations", "bias") and quantization(q).samples == 96
    )
    assert {s[1:] for s in seen} == {(64, 32)} and len(seen) == len(
        combinations(captured(network, Batch((data[0],), {}, None)))
    )


class _Shuffled:
    """Other batches first with each pass."""

    def __init__(self, data):
        self.data, self.passes = data, 0

    def __iter__(self):
        self.passes += 1
        return iter(
            self.data[self.passes % len(self.data) :] + self.data[: self.passes % len(self.data)]
        )


def test_what_repairs_are_judged_by_calibrated_none_of_them(monkeypatch):
    data, calibrated, judged = _Shuffled(batches(count=4, size=16)), [], []
    observe = sys.modules["mirabelle.quantization.prepared"].observe
    firsts = {float(b.flatten()[0]): i for i, b in enumerate(data.data)}

    def observed(network, sites, stream, *rest):
        stream = list(stream)
        calibrated.append(
            {firsts[v] for b in stream if (v := float(b.tensors[0].flatten()[0])) in firsts}
        )
        return observe(network, sites, iter(stream), *rest)

    def noise(attempted, few, wanted):
        judged.append({firsts[float(b.tensors[0].flatten()[0])] for b in few})
        return 1.0

    monkeypatch.setattr(sys.modules["mirabelle.quantization.prepared"], "observe", observed)
    monkeypatch.setattr(sys.modules[combinations.__module__], "noise", noise)
    quantize(build("residual"), data, repair="search", samples=64)
    assert len(judged) == len(calibrated) - 1 > 1 and data.passes == 1
    assert (
        all(len(c) == 3 and len(j) == 1 and not c & j for c, j in zip(calibrated, judged))
        and len(calibrated[-1]) == 4
    )


def test_repairs_that_break_the_outputs_are_not_taken(monkeypatch):
    errors = iter([math.nan, 2.0, 1.0, math.nan, *[3.0] * 20])
    monkeypatch.setattr(sys.modules[combinations.__module__], "noise", lambda *_: next(errors))
    network, data = build("residual"), batches(count=2)
    wanted = combinations(captured(network, Batch((data[0],), {}, None)))[2]
    assert quantization(quantize(network, data, repair="search")).repair == wanted


def test_what_suits_a_network_is_taken_without_being_asked():
    network, data = attention(), TOKENS
    captured_one = captured(network, Batch((data[0],), {}, None))
    assert suitable(captured_one) == ["smooth-quant", "smooth-inputs", "bias-means"]
    q, plain = (
        quantize(network, data, target="x86-vnni", **o)
        for o in ({}, {"repair": None, "threshold": "mse"})
    )
    assert quantization(q).repair == ("smooth-quant", "smooth-inputs", "bias-means")
    x = torch.cat(TOKENS)
    with torch.no_grad():
        assert relative(network(x), q(x)) < relative(network(x), plain(x))
    cnn = captured(build("depthwise"), Batch((batches()[0],), {}, None))
    assert suitable(cnn) == ["equalize-activations", "bias-means"]


def test_automatic_repairs_come_no_further_than_none():
    network, data = attention(), TOKENS
    q, plain = (quantize(network, data, repair=r, target="x86-vnni") for r in ("search", None))
    x = torch.cat(TOKENS)
    with torch.no_grad():
        assert relative(network(x), q(x)) < relative(network(x), plain(x))
    assert "smooth-quant" in quantization(q).repair


def test_automatic_repairs_with_one_batch_and_with_an_iterator():
    network, data = build("residual"), batches(count=1)
    assert quantization(quantize(network, iter(data), repair="search")).samples == len(data[0])
