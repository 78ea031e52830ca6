"""Channels that can be rescaled, equalized, enlarged and smoothed, against numbers by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mirabelle.base.data import Batch
from mirabelle.quantization import quantize
from mirabelle.quantization.repairs.equalization import scalable
from mirabelle.quantization.repairs.scaling import equalize, equalize_activations, smooth_quant
from mirabelle.quantization.simulation.graph import captured
from tests.quantization.repairs.networks import (
    TOKENS,
    as_batches,
    attention,
    relative,
    through_relu6,
    two_layers,
)
from tests.quantized_networks import NETWORKS, Network, batches, build


@pytest.mark.parametrize("name", [*NETWORKS, "attention"])
def test_rescaled_networks_give_the_same(name):
    model, x = (
        (attention(), TOKENS[0]) if name == "attention" else (build(name), batches(name, 1, 4)[0])
    )
    network = captured(model, Batch((x,), {}, None))
    found = scalable(network.graph)
    with torch.no_grad():
        before = model(x)
        for i, channels in enumerate(found):
            channels.scale(
                network,
                torch.rand(channels.count, generator=torch.Generator().manual_seed(i)) * 4 + 0.2,
            )
        assert torch.allclose(network(x), before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))


FOUND = {  # the weights that make, and those that read
    "residual": [({"c1"}, {"c2"}), ({"c0", "c2"}, {"c1", "fc"})],
    "grouped": [({"a"}, {"b"}), ({"b"}, {"fc"})],
    "sequential": [({"0"}, {"4.0"}), ({"4.0"}, {"7"}), ({"7"}, {"9"})],
    "conv1d": [({"a"}, {"b"}), ({"b"}, {"fc"})],
    "depthwise": [],  # ReLU6
    "hardswish": [],
    "tied": [],
    "used_twice": [],
    "concatenation": [({"b"}, {"fc"})],
    "two_readers": [({"a", "b"}, {"fc"})],
}


@pytest.mark.parametrize("name", FOUND)
def test_channels_are_found(name):
    network = captured(build(name), Batch((batches(name, 1, 2)[0],), {}, None))
    found = [
        (
            {m.parameter.rpartition(".")[0] for m in c.makers},
            {r.parameter.rpartition(".")[0] for r in c.readers},
        )
        for c in scalable(network.graph)
    ]
    assert found == FOUND[name]


def test_what_reads_a_normalization_is_found():
    found = scalable(captured(attention(), Batch((TOKENS[0],), {}, None)).graph)
    assert [({m.parameter for m in c.makers}, {r.parameter for r in c.readers}) for c in found] == [
        ({"ln1.weight", "ln1.bias"}, {"qkv.weight"}),
        ({"ln2.weight", "ln2.bias"}, {"fc1.weight"}),
    ]


def test_equalization_by_hand():
    # Ranges made (8, 0.5) and read (2, 2): factors sqrt(8 / 2) = 2 and sqrt(0.5 / 2) = 0.5, after
    # which both sides are 4 and 1.
    network = captured(
        two_layers([[8.0], [0.5]], [[2.0, -2.0]]), Batch((torch.ones(2, 1),), {}, None)
    )
    equalize(network, network, [])
    assert network.get_parameter("a.weight").flatten().tolist() == [4.0, 1.0]
    assert network.get_parameter("a.bias").tolist() == [0.5, 4.0]
    assert network.get_parameter("b.weight").flatten().tolist() == [4.0, -1.0]


def test_dead_channels_keep_their_scale():
    network = captured(
        two_layers([[0.0], [0.5]], [[2.0, 0.0]]), Batch((torch.ones(2, 1),), {}, None)
    )
    equalize(network, network, [])
    assert network.get_parameter("a.weight").flatten().tolist() == [
        0.0,
        0.5,
    ] and network.get_parameter("b.weight").flatten().tolist() == [2.0, 0.0]


@pytest.mark.parametrize("name", ["residual", "grouped", "conv1d"])
def test_equalization_makes_both_sides_equal(name):
    model, x = build(name), batches(name, 1, 4)[0]
    network = captured(model, Batch((x,), {}, None))
    equalize(network, network, [])
    with torch.no_grad():
        assert relative(model(x), network(x)) < 1e-5
    for channels in scalable(network.graph):
        assert torch.allclose(channels.made_range(network), channels.read_range(network), rtol=0.01)


def test_equalization_saves_a_network_with_unequal_channels():
    model, x = build("residual"), batches(count=2)
    with torch.no_grad():
        factors = torch.logspace(-1.5, 1.5, 16)
        for channels in scalable(captured(model, as_batches(x)[0]).graph):
            assert channels.count == 16
        (
            model.bn1.weight.mul_(factors),
            model.bn1.bias.mul_(factors),
            model.c2.weight.div_(factors.view(1, -1, 1, 1)),
        )
        plain, repaired = (
            relative(model(x[0]), quantize(model, x, per_channel=False, repair=r)(x[0]))
            for r in (None, "equalize")
        )
    assert repaired < 0.5 * plain


def test_enlarging_by_hand_where_channels_are_mixed():
    # At 1 the channels reach 9 and 2.25: the second is multiplied by sqrt(9 / 2.25) = 2.
    network = captured(
        two_layers([[8.0], [0.25]], [[2.0, -2.0]]), Batch((torch.ones(2, 1),), {}, None)
    )
    equalize_activations(
        network,
        network,
        [Batch((torch.ones(1, 1),), {}, None), Batch((torch.ones(2, 1),), {}, None)],
    )
    assert network.get_parameter("a.weight").flatten().tolist() == [8.0, 0.5]
    assert network.get_parameter("a.bias").tolist() == [1.0, 4.0]
    assert network.get_parameter("b.weight").flatten().tolist() == [2.0, -1.0]


def test_enlarging_leaves_room_for_what_was_not_seen():
    """The second channel reaches 1.25 and 2.25, of a deviation of 0.5: ten times as many samples
    are expected to reach 2.25 + 0.5 sqrt(6) / pi ln(10) = 3.148.
    """
    network = captured(
        two_layers([[8.0], [2.0]], [[2.0, -2.0]]), Batch((torch.ones(2, 1),), {}, None)
    )
    bias = network.get_parameter("a.bias").tolist()
    x = torch.tensor([[0.5], [1.0]])
    most = 8 * 1.0 + bias[0]
    reached = 2 * 1.0 + bias[1] + 0.5 * math.sqrt(6) / math.pi * math.log(10)
    equalize_activations(network, network, [Batch((x,), {}, None)])
    factor = math.sqrt(most / reached)
    assert network.get_parameter("a.weight").flatten().tolist() == pytest.approx([8.0, 2 * factor])


def test_enlarging_by_hand_through_relu6_to_a_depthwise_layer():
    seen = Batch((torch.ones(1, 1, 2, 2),), {}, None)
    network = captured(through_relu6(), seen)
    assert [c.count for c in scalable(network.graph, clipped=True)] == [2] and scalable(
        network.graph
    ) == []
    equalize_activations(network, network, [seen])
    # The second channel is enlarged by 4 / 0.5, and the depthwise filter divided by it.
    assert network.get_parameter("a.weight").flatten().tolist() == [4.0, 4.0]
    assert network.get_parameter("b.weight").flatten().tolist() == [1.0, 0.375]
    model = through_relu6()
    with torch.no_grad():
        for value in (0.0, 0.7, 1.0, 1.5):
            x = torch.full((1, 1, 2, 2), value)
            assert torch.allclose(network(x), model(x)), (
                "nothing is clipped that was not before, up to 1.5 times what was seen"
            )
        # At 3 the second channel is 1.5 in the network as it was; enlarged it would be 12, and the
        # clip is at 6.
        assert torch.allclose(network(torch.full((1, 1, 2, 2), 3.0)), torch.tensor([[6.0, 2.25]]))


@pytest.mark.parametrize("target, ratio", [("x86-vnni", 0.4), ("x86", 0.5)])
def test_enlarging_saves_a_depthwise_network_with_unequal_channels(target, ratio):
    torch.manual_seed(0)
    network = Network(
        lambda n, x: n.c(F.relu6(n.b(F.relu6(n.a(x))))).mean((2, 3)),
        a=nn.Conv2d(4, 32, 1),
        b=nn.Conv2d(32, 32, 3, groups=32),
        c=nn.Conv2d(32, 8, 1),
    ).eval()
    x = [torch.randn(8, 4, 10, 10) for _ in range(2)]
    with torch.no_grad():
        factors = torch.logspace(-2, 0, 32)
        (
            network.a.weight.mul_(factors.view(-1, 1, 1, 1)),
            network.a.bias.mul_(factors),
            network.b.weight.div_(factors.view(-1, 1, 1, 1)),
        )
        plain, enlarged = (
            relative(
                network(x[0]), quantize(network, x, repair=r, target=target, threshold="mse")(x[0])
            )
            for r in (None, "equalize-activations")
        )
    assert enlarged < ratio * plain


def test_smoothing_by_hand():
    # Channels reach 16 and 1, weights that read them 1 and 4: s = sqrt(16 / 1) = 4 and sqrt(1 / 4)
    # = 0.5.
    network = Network(lambda n, x: n.b(n.a(x)), a=nn.LayerNorm(2), b=nn.Linear(2, 3)).eval()
    x = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # its own normalized form
    with torch.no_grad():
        network.a.weight.copy_(torch.tensor([16.0, 1.0])), network.a.eps
        network.b.weight.copy_(torch.tensor([[1.0, 4.0], [-0.5, -1.0], [0.25, 0.0]]))
    network.a.eps = 0.0
    graph = captured(network, Batch((x,), {}, None))
    smooth_quant(graph, graph, [Batch((x,), {}, None)])
    assert graph.get_parameter("a.weight").tolist() == pytest.approx([4.0, 2.0])
    assert graph.get_parameter("b.weight").tolist() == [
        pytest.approx(r) for r in ([4.0, 2.0], [-2.0, -0.5], [1.0, 0.0])
    ]
    with torch.no_grad():
        assert torch.allclose(graph(x), network(x), atol=1e-5)


def test_smoothing_saves_a_transformer_with_large_channels():
    model = attention()
    with torch.no_grad():
        want = model(TOKENS[2])
        plain, repaired = (
            relative(want, quantize(model, TOKENS[:2], threshold="absmax", repair=r)(TOKENS[2]))
            for r in (None, "smooth-quant")
        )
    assert repaired < 0.7 * plain


@pytest.mark.parametrize(
    ("norm", "count"),
    [
        (lambda x: torch.layer_norm(x, (6,)), 0),
        (nn.LayerNorm(6, elementwise_affine=False), 0),
        (nn.LayerNorm(6, bias=False), 1),
        (nn.LayerNorm(6), 1),
    ],
)
def test_a_normalization_without_a_scale_is_not_rescaled(norm, count):
    """An addition makes its channels those of the layer on the other side, which alone would be
    divided.
    """
    torch.manual_seed(0)
    layers = {"a": nn.Linear(4, 6), "b": nn.Linear(4, 6), "fc": nn.Linear(6, 3)}
    layers |= {"norm": norm} if isinstance(norm, nn.Module) else {}
    model = Network(
        lambda s, x: s.fc(torch.relu(getattr(s, "norm", norm)(s.a(x)) + s.b(x))), **layers
    ).eval()
    x = torch.randn(5, 4)
    network = captured(model, Batch((x,), {}, None))
    found = scalable(network.graph)
    assert len(found) == count
    for channels in found:
        channels.scale(network, torch.rand(channels.count) * 4 + 0.2)
    equalize(network, network, [Batch((x,), {}, None)])
    torch.testing.assert_close(network(x), model(x))
