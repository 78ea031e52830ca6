"""Channels in a graph that takes any batch are those in the example's own graph."""

from __future__ import annotations

import pytest
import torch

import mirabelle as mb
from mirabelle.base.data import as_batch, example_inputs
from mirabelle.channels.groups import analyze
from mirabelle.graph import capture
from tests.networks import NETWORKS, make


def _facts(coupling):
    groups = {
        frozenset((s.parameter, s.dim, s.role, tuple(s.index.flatten().tolist())) for s in g.slots)
        for g in coupling.groups
    }
    costs = sorted((c.weight, c.macs) for c in coupling.costs)
    return groups, costs, coupling.shapes, coupling.rest


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_groups_and_costs_are_the_same(name):
    model, x = make(name)
    inputs = example_inputs(x)
    closed, opened = analyze(model, inputs), analyze(model, inputs, any_batch=True)
    assert _facts(opened) == _facts(closed)
    assert closed.captured is None and opened.captured.graph_module is opened.graph_module


def test_of_an_example_of_one_sample_costs_are_of_one():
    model, x = make("one sample")
    coupling = analyze(model, as_batch(x), any_batch=True)
    assert len(x) == 1 and coupling.samples == 2  # torch.export takes one for the only size
    assert sum(c.macs for c in coupling.costs) + coupling.rest == mb.measure(model, inputs=x).macs


def test_a_cut_with_data_captures_once(monkeypatch):
    taken = []
    program = capture.program
    monkeypatch.setattr(capture, "program", lambda *a, **k: taken.append(1) or program(*a, **k))
    model, x = make("residual", torch.float32)
    data = [torch.randn(16, *x.shape[1:])]
    mb.prune(model, x, macs=0.6, align=1, data=data)
    assert len(taken) == 1
