"""Allocations against hand counts and exhaustive search."""

import itertools

import networks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError
from mirabelle.channels.groups import Group, Slot, analyze
from mirabelle.measurement import count_macs, count_parameters
from mirabelle.pruning import prune
from mirabelle.pruning.allocation import (
    ALLOCATIONS,
    Macs,
    aligned,
    check_feasible,
    cost_curve,
    step,
)
from mirabelle.pruning.latency import LatencyModel
from tests.modules import Head, Net, conv_bn, image
from tests.networks import make


def test_aligned_is_nearest():
    group = Group("g", 30, ())
    assert [aligned(n, group, 8, 0.1) for n in (30, 29, 28, 27, 26, 21, 20, 19, 5, 0)] == [
        30,
        30,
        30,
        24,
        24,
        24,
        24,
        16,
        8,
        8,
    ]
    assert all(aligned(n, Group("g", 5, ()), 8, 0.1) == 5 for n in range(6))
    assert [aligned(n, group, 1, 0.1) for n in (0, 1, 3, 17)] == [3, 3, 3, 17]


def test_heads_are_aligned_by_the_channels_that_they_are():
    """A head of 16 channels is two blocks of 8 by itself, one of 4 half a block."""
    index = torch.arange(12 * 16).view(12, 16)
    assert [
        step(Group("heads", 12, (Slot("qkv.weight", 0, "out", i),)), 8)
        for i in (index, index[:, :4], index[:, :3], index[:, :1])
    ] == [1, 2, 8, 8]
    heads = Group(
        "heads",
        12,
        (Slot("qkv.weight", 0, "out", index), Slot("bias_table", 1, "along", index[:, :1])),
    )
    assert [aligned(n, heads, 8, 0.1) for n in (12, 11, 7, 1, 0)] == [12, 11, 7, 1, 1]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    channels=st.integers(1, 100),
    align=st.sampled_from([1, 4, 8, 16]),
    least=st.floats(0.01, 1),
    count=st.integers(0, 100),
)
def test_aligned_counts(channels, align, least, count):
    group = Group("g", channels, ())
    found = aligned(min(count, channels), group, align, least)
    assert found == channels or found % align == 0
    assert max(1, round(least * channels)) <= found <= channels
    assert found <= aligned(min(count + 1, channels), group, align, least)
    if found not in (channels, aligned(0, group, align, least)):
        assert abs(found - min(count, channels)) <= align / 2


WIDE = analyze(networks.BottleneckNet(16, (1, 2, 1, 1)), as_batch(image(size=32)))


@pytest.mark.parametrize("name", ALLOCATIONS)
@settings(deadline=None, derandomize=True, max_examples=8)
@given(
    fraction=st.floats(0.15, 1),
    align=st.sampled_from([1, 8]),
    seed=st.integers(0, 9),
    what=st.sampled_from(["macs", "params"]),
)
def test_contract_of_allocations(name, fraction, align, seed, what):
    cost = (
        WIDE.macs
        if what == "macs"
        else lambda kept: WIDE.parameters(kept, [n for n in WIDE.shapes if "running" not in n])
    )
    generator = torch.Generator().manual_seed(seed)
    scores = {
        g.name: torch.rand(g.channels, generator=generator) * (1 + i)
        for i, g in enumerate(WIDE.groups)
    }
    whole = cost({})
    try:
        check_feasible(WIDE, cost, fraction * whole, whole, align, 0.1, what)
    except InputError:
        assert align == 8  # 0.1 of 16 channels is 8 then
        return
    kept = ALLOCATIONS[name](WIDE, scores, cost, fraction * whole, align, 0.1)
    assert kept.keys() == {g.name for g in WIDE.groups}
    for group in WIDE.groups:
        count = kept[group.name]
        assert max(1, round(0.1 * group.channels)) <= count <= group.channels
        assert count == group.channels or count % align == 0
    assert cost(kept) <= fraction * whole
    if align == 1:
        assert cost(kept) >= (fraction - 0.02) * whole
    assert fraction < 1 or all(kept[g.name] == g.channels for g in WIDE.groups)
    more = ALLOCATIONS[name](WIDE, scores, cost, min(1.0, fraction + 0.1) * whole, align, 0.1)
    assert cost(more) >= cost(kept)


def test_a_global_order_takes_the_worst_channels():
    model, x = make("plain", torch.float32)
    coupling = analyze(model, as_batch(x))
    a, b = coupling.groups
    scores = {a.name: torch.arange(8.0) + 100, b.name: torch.arange(12.0)}
    kept = ALLOCATIONS["global"](coupling, scores, coupling.macs, 0.7 * coupling.macs(), 1, 0.1)
    assert kept[a.name] == 8 and kept[b.name] == max(
        n for n in range(13) if coupling.macs({b.name: n}) <= 0.7 * coupling.macs()
    )
    shares = ALLOCATIONS["uniform"](coupling, scores, coupling.macs, 0.5 * coupling.macs(), 1, 0.1)
    assert abs(shares[a.name] / 8 - shares[b.name] / 12) < 0.2


def importance(scores: dict, kept: dict) -> float:
    return sum(
        float(scores[name].sort(descending=True).values[:count].sum())
        for name, count in kept.items()
    )


def by_parameters(coupling):
    return lambda kept: coupling.parameters(kept, coupling.shapes)


def in_blocks(coupling):
    """Kernels that write a block of channels as a whole, and hardly sum over more than there is."""
    layers = np.array([[0.01, cost.macs / coupling.macs(), 0.01] for cost in coupling.costs])
    return LatencyModel(layers, np.array([0.02, 0.02]), coupling, 2, (1.0, 0.25))


@pytest.mark.parametrize("costly", [Macs, by_parameters, in_blocks])
@pytest.mark.parametrize("network", ["residual", "dense", "bottlenecks"])
def test_what_a_group_costs_at_each_of_its_widths(network, costly):
    model, x = make(network, torch.float32)
    coupling = analyze(model, as_batch(x))
    cost = costly(coupling)
    half = {g.name: -(-g.channels // 2) for g in coupling.groups}
    for g in coupling.groups:
        curve = cost_curve(coupling, cost, half, g.name, np.arange(1, g.channels + 1))
        expected = np.array([cost({**half, g.name: width}) for width in range(1, g.channels + 1)])
        assert curve - curve[-1] == pytest.approx(expected - expected[-1], abs=1e-9 * cost({}))


@pytest.mark.parametrize("costly", [Macs, by_parameters, in_blocks])
@pytest.mark.parametrize("network", ["plain", "dense"])
def test_the_knapsack_is_close_to_the_best_of_all_widths(network, costly):
    """Against every combination of widths, for random scores and budgets: never 2 % worse, and no
    worse than sorting by worth.
    """
    model, x = make(network, torch.float32)
    coupling = analyze(model, as_batch(x))
    cost = costly(coupling)
    names = [g.name for g in coupling.groups]
    every = [
        dict(zip(names, widths))
        for widths in itertools.product(*(range(1, g.channels + 1) for g in coupling.groups))
    ]
    costs = [cost(kept) for kept in every]
    exact = 0
    for seed, fraction in itertools.product(range(5), (0.3, 0.5, 0.7)):
        generator = torch.Generator().manual_seed(seed)
        scores = {
            g.name: torch.rand(g.channels, generator=generator) * (1 + i)
            for i, g in enumerate(coupling.groups)
        }
        budget = fraction * cost({})
        best = max(importance(scores, kept) for kept, taken in zip(every, costs) if taken <= budget)
        found = {
            a: ALLOCATIONS[a](coupling, scores, cost, budget, 1, 0.01)
            for a in ("knapsack", "worth")
        }
        assert cost(found["knapsack"]) <= budget
        assert importance(scores, found["knapsack"]) >= max(
            0.98 * best, importance(scores, found["worth"])
        )
        exact += importance(scores, found["knapsack"]) >= best - 1e-5
    assert exact >= 8


def test_budgets_that_cannot_be_reached():
    model, x = make("plain", torch.float32)
    with pytest.raises(
        InputError, match=r"macs=0.01 cannot be reached.*align=8.*0\.\d+ of the macs stay.*least"
    ):
        prune(model, x, macs=0.01, criterion="l1")


@pytest.mark.parametrize(
    "network", ["residual", "dense", "bottlenecks", "u-net", "shared by siblings", "tied weights"]
)
@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.5}])
def test_budgets_bind(network, budget):
    model, x = make(network, torch.float32)
    small = prune(model, x, **budget, criterion="l1", align=1)
    count = (lambda m: count_macs(m, x)) if "macs" in budget else count_parameters
    assert 0.35 * count(model) < count(small) <= 0.5 * count(model)


def test_alignment_and_keep():
    model = Net(
        lambda s, x: s.head(s.c(torch.relu(s.b(torch.relu(s.a(x)))))),
        a=conv_bn(3, 32),
        b=conv_bn(32, 30),
        c=conv_bn(30, 48),
        head=Head(48),
    )
    small = prune(model, image(), macs=0.4, criterion="l2")
    assert all(n % 8 == 0 for n in (small.a[0].out_channels, small.c[0].out_channels)) and small.b[
        0
    ].out_channels in (8, 16, 24, 30)
    kept = prune(model, image(), macs=0.6, criterion="l2", keep=["b.0"])
    assert kept.b[0].weight.shape == model.b[0].weight.shape and kept.c[0].out_channels < 48
