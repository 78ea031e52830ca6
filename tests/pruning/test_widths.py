"""Cuts whose widths are given."""

import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.channels.skipping import skipped_blocks
from mirabelle.pipeline.recipe import parse
from tests.pruning.test_depth import network

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    convs = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(128, 2)).eval()


def test_the_channels_with_the_largest_scores_stay():
    """By the norm of filters, which are made 1 to 8 long: the last three stay."""
    model = plain()
    for i in range(8):
        model[0].weight.data[i] = float(i + 1)
    small = mb.prune(model, X, widths={"0": 3}, criterion="l2")
    assert small[0].out_channels == 3 and small[2].in_channels == 3
    assert torch.equal(small[0].weight, model[0].weight[5:])
    assert small[2].out_channels == 8, "groups without a width keep all"
    assert model[0].out_channels == 8


def test_what_a_budget_chose_is_chosen_by_its_widths():
    model = plain()
    chosen = mb.prune(model, X, macs=0.5, data=[X], align=2)
    widths = {"0": chosen[0].out_channels, "2": chosen[2].out_channels}
    again = mb.prune(model, X, widths=widths, data=[X])
    with torch.no_grad():
        torch.testing.assert_close(again(X), chosen(X))


def test_blocks_go_too():
    model = network(1e-3)
    small = mb.prune(model, X, widths={}, skip=["2.b.0"], data=[X])
    assert skipped_blocks(small) == ("2",)
    whole = mb.prune(model, X, widths={}, data=[X])
    with torch.no_grad():
        torch.testing.assert_close(whole(X), model(X))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"widths": {"1": 3}}, "no group of channels.*mb.explain"),
        ({"widths": {"0": 9}}, "it has 8"),
        ({"widths": {"0": 0}}, "at least one stays"),
        ({"widths": {"0": 3}, "macs": 0.5}, "exactly one"),
        ({"widths": {"0": 3}, "rounds": 2}, "rounds="),
        ({"macs": 0.5, "skip": ["2.b.0"]}, "widths="),
    ],
)
def test_widths_that_cannot_be(options, word):
    with pytest.raises(InputError, match=word):
        mb.prune(plain(), X, **options)


def test_a_recipe_has_them():
    content = {"version": 1, "model": "a:b", "data": "a:c"}
    steps = [{"prune": {"widths": {"layer1.0.conv1": 16}, "skip": ["layer1.0.conv2"]}}]
    step = parse({**content, "steps": steps}, "r.yaml").steps[0]
    assert step.options["widths"] == {"layer1.0.conv1": 16}
    with pytest.raises(InputError, match="widths"):
        parse({**content, "steps": [{"prune": {"widths": {"a": "b"}}}]}, "r.yaml")
