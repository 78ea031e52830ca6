"""Whole blocks pruned beside channels: dead ones first, budgets, and the best of all choices."""

import itertools

import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError
from mirabelle.channels.explain import explain
from mirabelle.channels.groups import analyze
from mirabelle.channels.skipping import skip, skipped_blocks
from mirabelle.graph.open_graph import open_graph
from mirabelle.graph.structure import Skipped
from mirabelle.measurement.macs import count_macs, count_parameters
from mirabelle.pruning.allocation import Macs, lost_with, widths_of
from mirabelle.pruning.depth import block_losses, costs_without, known_blocks, to_skip
from tests.channels.test_blocks import Basic
from tests.modules import Head, conv_bn, image, stir

DATA = [image(8, seed=i) for i in range(2)]
X = image()


def network(dead: float | None = 0.0) -> nn.Module:
    """Two blocks, the first of which gives `dead` times what it gave; None leaves it as it is."""
    torch.manual_seed(0)
    model = stir(nn.Sequential(conv_bn(3, 8), nn.ReLU(), Basic(), Basic(), Head(8))).eval()
    if dead is not None:
        model[2].b[1].weight.data *= dead
        model[2].b[1].bias.data *= dead
        model[2].b[1].running_mean.data *= dead
    return model


@pytest.mark.parametrize("budget", ["macs", "params"])
def test_a_dead_block_goes_first(budget):
    model = network()
    small = mb.prune(model, X, data=DATA, depth=True, align=2, **{budget: 0.6})
    assert skipped_blocks(small) == ("2",) and isinstance(small[2], Skipped)
    with torch.no_grad():  # it was enough, so that nothing else has changed
        torch.testing.assert_close(small(X), model(X), rtol=1e-4, atol=1e-5)
    assert len(model[2].a[0].weight) == 8


def test_channels_go_where_blocks_are_not_enough(tmp_path):
    model = network(1e-3)
    small = mb.prune(model, X, data=DATA, depth=True, align=2, macs=0.3)
    assert isinstance(small[2], Skipped) and len(small[3].a[0].weight) < 8
    assert 0.2 < count_macs(small, X) / count_macs(model, X) <= 0.3
    mb.save(small, tmp_path)
    back = mb.load(tmp_path, network(None))
    with torch.no_grad():
        assert torch.equal(back(X), small.eval()(X))
    integers = mb.quantize(small, DATA)
    mb.save(integers, tmp_path / "integers")
    back = mb.load(tmp_path / "integers", network(None))
    with torch.no_grad():
        assert torch.equal(back(X), integers.eval()(X))


def test_losses_of_blocks_are_measured():
    model = network(None)
    coupling = analyze(model, as_batch(X))
    found = block_losses(model, open_graph(model, coupling.inputs), DATA, ["2.b.0"])
    x = torch.cat(DATA)
    with torch.no_grad():
        y, z = model(x), skip(model, as_batch(X), ["2.b.0"])(x)
    error = (y - z).square().sum() / (y - y.mean(0)).square().sum()
    assert found["2.b.0"] == pytest.approx(float(error), rel=1e-4)


@pytest.mark.parametrize("by_params", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_the_best_of_all_choices(by_params, share):
    """Blocks and widths together lose at most 2 % more than the best of all choices."""
    model = network(None)
    coupling = analyze(model, as_batch(X))
    found = known_blocks(coupling, ())
    generator = torch.Generator().manual_seed(3)
    scores = {g.name: torch.rand(g.channels, generator=generator) for g in coupling.groups}
    losses = {"2.b.0": 1.5, "3.b.0": 4.0}
    trained = [n for n, _ in model.named_parameters()]
    cost = (lambda kept: coupling.parameters(kept, trained)) if by_params else Macs(coupling)
    cost_of = costs_without(coupling, cost, trained)
    budget = share * cost({})
    names = to_skip(coupling, found, losses, scores, cost_of, budget, 2, 0.1)
    widths = {g.name: widths_of(g, 2, 0.1) for g in coupling.groups}
    lost = {n: lost_with(scores[n], w) for n, w in widths.items()}
    best: dict[frozenset, float] = {}
    for count in range(3):
        for gone in itertools.combinations(found, count):
            price = cost_of(gone)
            fits = [
                sum(lost[n][e] for n, e in zip(widths, entries, strict=True))
                for entries in itertools.product(*(range(len(w)) for w in widths.values()))
                if price({n: int(widths[n][e]) for n, e in zip(widths, entries, strict=True)})
                <= budget
            ]
            if fits:
                key = frozenset(b.name for b in gone)
                best[key] = min(fits) + sum(losses[b.name] for b in gone)
    assert best[frozenset(names)] <= 1.02 * min(best.values())


def test_costs_without_blocks_are_those_of_the_network_without_them():
    model = network(None)
    coupling = analyze(model, as_batch(X))
    trained = [n for n, _ in model.named_parameters()]
    small = skip(model, as_batch(X), ["2.b.0"])
    gone = [b for b in known_blocks(coupling, ()) if b.name == "2.b.0"]
    for cost, count in (
        (Macs(coupling), count_macs(small, X)),
        (lambda kept: coupling.parameters(kept, trained), count_parameters(small)),
    ):
        assert costs_without(coupling, cost, trained)(gone)({}) == count


def test_in_rounds_and_from_a_checkpoint(tmp_path):
    options = {"data": DATA, "depth": True, "align": 2, "macs": 0.3, "rounds": 2}
    first = mb.prune(network(1e-3), X, checkpoint=tmp_path, **options)
    again = mb.prune(network(1e-3), X, checkpoint=tmp_path, **options)
    assert skipped_blocks(first) == skipped_blocks(again) == ("2",)
    with torch.no_grad():
        assert torch.equal(first(X), again(X))


def test_refusals_and_keep():
    for options in ({}, {"data": DATA, "criterion": "l1"}):
        with pytest.raises(InputError, match="depth=True compares blocks with channels"):
            mb.prune(network(), X, macs=0.6, depth=True, **options)
    with pytest.raises(InputError, match="all blocks skipped"):
        mb.prune(network(), X, macs=0.01, depth=True, data=DATA)
    options = {"macs": 0.6, "depth": True, "align": 2, "data": DATA}
    kept = mb.prune(network(), X, keep=["2.b", "3.relu"], **options)
    assert "2" not in skipped_blocks(kept) and "2.b.0" in explain(kept, X).blocks
