"""What groups, costs and examples are made of, number by number."""

import torch
from torch import nn

from mirabelle.base.data import as_batch
from mirabelle.channels.groups import Coupling, _few, analyze
from mirabelle.measurement import count_macs
from tests.modules import Head, Net, conv_bn, image
from tests.networks import make


def test_costs_name_their_nodes_weights_and_sides():
    """8x8 pixels: 27 * 8 and 72 * 4 products each; then 16 pixels a channel into three outputs."""
    model = Net(
        lambda s, x: s.fc(torch.relu(s.b(s.a(x)))[:, :, ::2, ::2].flatten(1)),
        a=conv_bn(3, 8),
        b=nn.Conv2d(8, 4, 3, padding=1, bias=False),
        fc=nn.Linear(64, 3),
    )
    coupling = analyze(model, as_batch(image(4)))
    assert [(c.weight, c.macs) for c in coupling.costs] == [
        ("a.0.weight", 64 * 27 * 8),
        ("b.weight", 64 * 72 * 4),
        ("fc.weight", 64 * 3),
    ]
    sides = [[(s.size, dict(s.groups), s.summed) for s in c.sides] for c in coupling.costs]
    assert sides == [
        [(8, {"a.0": 1}, False)],
        [(4, {"b": 1}, False), (8, {"a.0": 1}, True)],
        [(64, {"b": 16}, True)],
    ]
    assert all(type(n) is int for c in coupling.costs for s in c.sides for n in s.groups.values())
    assert len({c.node for c in coupling.costs}) == 3 and all(c.node for c in coupling.costs)
    assert coupling.along == {"a.0": [0, 1], "b": [1, 2]}
    assert coupling.macs({"b": 3}) == 64 * (27 * 8 + 72 * 3) + 48 * 3
    assert coupling.rest == 0 and type(coupling.macs()) is int
    assert coupling.parameters({"b": 3}, ["fc.weight", "b.weight"]) == 48 * 3 + 72 * 3
    assert coupling.parameters({}, ["b.weight"]) == 72 * 4


def test_an_empty_coupling_costs_nothing():
    assert Coupling([], [], [], {}, {}).macs() == 0
    assert Coupling([], [], [], {}, {}).parameters({}, []) == 0


def test_a_coupling_is_printed_without_tensors_and_graphs():
    model, x = make("plain", torch.float32)
    text = repr(analyze(model, as_batch(x)))
    assert "groups=" in text and "rest=" in text
    assert not any(f"{name}=" in text for name in ("shapes", "inputs", "flow", "graph_module"))


def test_a_layer_without_anything_beside_it_is_a_group():
    """Neither a bias nor BatchNorm: its channels are made and read, and that is all."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 2, 3, bias=False))
    (group,) = analyze(model, as_batch(image())).groups
    assert {(s.parameter, s.role) for s in group.slots} == {("0.weight", "out"), ("2.weight", "in")}
    assert [s.module for s in group.slots] == ["0", "2"] and group.with_role("along") == []


class Table(nn.Module):
    """A learned picture in place of an image, which a layer reads; and a layer that nobody reads
    channel by channel.
    """

    def __init__(self):
        super().__init__()
        self.picture = nn.Parameter(torch.randn(1, 6, 8, 8))
        self.read, self.spread = nn.Conv2d(6, 4, 3), nn.Conv2d(3, 5, 1)
        self.head = Head(4)

    def forward(self, x):
        pixels = self.spread(x).sum(1, keepdim=True)
        return self.head(self.read(self.picture * pixels))


def test_channels_that_are_not_made_or_not_read_are_said():
    found = analyze(Table().eval(), as_batch(image()))
    reasons = {(f.parameter, f.role): f.reason for f in found.frozen}
    assert reasons["read.weight", "in"] == "no layer makes these channels"
    assert reasons["spread.weight", "out"] == "no layer reads these channels"
    assert reasons["spread.weight", "in"] == "the network's own input"
    assert {(f.parameter, f.dim): f.count for f in found.frozen} == {
        ("spread.weight", 1): 3,
        ("spread.weight", 0): 5,
        ("read.weight", 1): 6,
        ("head.fc.weight", 0): 3,
    }
    assert {g.name: g.channels for g in found.groups}["read"] == 4


class Flagged(nn.Module):
    """With fewer than five samples it does something else to those whose first number is large."""

    def forward(self, x):
        large = x[:, :1] > 5
        return x if len(x) >= 5 else torch.where(large, torch.zeros_like(x), x)


def flagged(place: int | None, count: int = 5) -> torch.Tensor:
    x = torch.zeros(count, 2)
    if place is not None:
        x[place] = 9.0
    return x


def test_an_example_is_whole_where_its_ends_alone_are_something_else():
    for place, size in ((None, 2), (0, 5), (1, 5), (2, 2), (3, 5), (4, 5)):
        batch = as_batch(flagged(place))
        found = _few(Flagged(), batch)
        assert found.size == size, place
        assert (found is batch) == (size == 5)
    two = as_batch(flagged(None, 2))
    assert _few(Flagged(), two) is two


def test_two_samples_of_up_to_a_million_numbers():
    model = Net(lambda s, x: x.sum(1))
    assert _few(model, as_batch(torch.zeros(3, 1_000_000))).size == 2
    assert _few(model, as_batch(torch.zeros(3, 1_000_001))).size == 1


def test_an_example_that_cannot_be_divided_stays_whole():
    model = Net(lambda s, x: s.fc(x.view(4, 6)), fc=nn.Linear(6, 2))
    batch = as_batch(torch.randn(4, 6))
    assert _few(model, batch) is batch
    coupling = analyze(model, batch)
    assert count_macs(model, batch) == coupling.macs() == 12
