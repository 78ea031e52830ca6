"""Repairs: each against numbers worked out by hand, and that those which rescale leave the float
network's output alone.
"""

import copy
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.quantization import quantization, quantize, rebuild
from mirabelle.quantization.repairs import rounding
from mirabelle.quantization.repairs.equalization import scalable
from mirabelle.quantization.repairs.rounding import gather
from mirabelle.quantization.repairs.side_by_side import side_by_side
from mirabelle.quantization.repairs.table import (
    REPAIRS,
    check_repairs,
    clipped_normal,
    correct_bias_analytically,
    equalize,
    equalize_activations,
    smooth_quant,
)
from mirabelle.quantization.search.repairs import combinations
from mirabelle.quantization.simulation.graph import captured
from mirabelle.quantization.simulation.quantizers import WeightQuantizer
from tests.quantized_networks import NETWORKS, Network, batches, build, conv


def as_batches(data) -> list[Batch]:
    return [Batch((x,), {}, None) for x in data]


def relative(a, b) -> float:
    return float((a - b).norm() / a.norm())


class Attention(nn.Module):
    """A block of a transformer: attention and an MLP behind LayerNorm, with residuals."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.ln1, self.qkv, self.proj = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.ln2, self.fc1, self.fc2 = (
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = (
            self.qkv(self.ln1(x))
            .reshape(n, length, 3, 2, width // 2)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        x = x + self.proj(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        )
        return x + self.fc2(F.gelu(self.fc1(self.ln2(x))))


def attention() -> nn.Module:
    torch.manual_seed(0)
    network = Attention().eval()
    with torch.no_grad():
        for norm in (network.ln1, network.ln2):  # a few channels far larger than the others
            norm.weight[3], norm.weight[7], norm.bias[5] = 40.0, 25.0, -30.0
    return network


TOKENS = [torch.randn(8, 10, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]


# --- which channels can be rescaled
# --------------------------------------------------------------------------------------------------


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


def test_what_reads_a_normalisation_is_found():
    found = scalable(captured(attention(), Batch((TOKENS[0],), {}, None)).graph)
    assert [({m.parameter for m in c.makers}, {r.parameter for r in c.readers}) for c in found] == [
        ({"ln1.weight", "ln1.bias"}, {"qkv.weight"}),
        ({"ln2.weight", "ln2.bias"}, {"fc1.weight"}),
    ]


# --- cross-layer equalisation
# --------------------------------------------------------------------------------------------------


def two_layers(first: list, second: list) -> nn.Module:
    network = Network(lambda n, x: n.b(F.relu(n.a(x))), a=nn.Linear(1, 2), b=nn.Linear(2, 1)).eval()
    with torch.no_grad():
        network.a.weight.copy_(torch.tensor(first))
        network.a.bias.copy_(torch.tensor([1.0, 2.0]))
        network.b.weight.copy_(torch.tensor(second))
    return network


def test_equalisation_by_hand():
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
def test_equalisation_makes_both_sides_equal(name):
    model, x = build(name), batches(name, 1, 4)[0]
    network = captured(model, Batch((x,), {}, None))
    equalize(network, network, [])
    with torch.no_grad():
        assert relative(model(x), network(x)) < 1e-5
    for channels in scalable(network.graph):
        assert torch.allclose(channels.made_range(network), channels.read_range(network), rtol=0.01)


def test_equalisation_saves_a_network_with_unequal_channels():
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
        plain, mended = (
            relative(model(x[0]), quantize(model, x, per_channel=False, repair=r)(x[0]))
            for r in (None, "equalize")
        )
    assert mended < 0.5 * plain


# --- channels enlarged to the largest of their tensor
# ---------------------------------------------------------------------------------------


def test_enlarging_by_hand_where_channels_are_mixed():
    # At 1 the channels reach 9 and 2.25: the second is multiplied by sqrt(9 / 2.25) = 2.
    network = captured(
        two_layers([[8.0], [0.25]], [[2.0, -2.0]]), Batch((torch.ones(2, 1),), {}, None)
    )
    equalize_activations(
        network,
        network,
        [Batch((torch.tensor([[0.5]]),), {}, None), Batch((torch.ones(2, 1),), {}, None)],
    )
    assert network.get_parameter("a.weight").flatten().tolist() == [8.0, 0.5]
    assert network.get_parameter("a.bias").tolist() == [1.0, 4.0]
    assert network.get_parameter("b.weight").flatten().tolist() == [2.0, -1.0]


def through_relu6() -> nn.Module:
    """Channels of 4 and 0.5 at an input of 1, ReLU6, a depthwise layer."""
    network = Network(
        lambda n, x: n.b(F.relu6(n.a(x))).mean((2, 3)),
        a=nn.Conv2d(1, 2, 1),
        b=nn.Conv2d(2, 2, 1, groups=2),
    ).eval()
    with torch.no_grad():
        network.a.weight.copy_(torch.tensor([4.0, 0.5]).view(2, 1, 1, 1)), network.a.bias.zero_()
        network.b.weight.copy_(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)), network.b.bias.zero_()
    return network


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


def test_enlarging_saves_a_depthwise_network_with_unequal_channels():
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
        plain, mended = (
            relative(network(x[0]), quantize(network, x, repair=r)(x[0]))
            for r in (None, "equalize-activations")
        )
    assert mended < 0.4 * plain


# --- SmoothQuant
# --------------------------------------------------------------------------------------------------


def test_smoothing_by_hand():
    # Channels reach 16 and 1, weights that read them 1 and 4: s = sqrt(16 / 1) = 4 and sqrt(1 / 4)
    # = 0.5.
    network = Network(lambda n, x: n.b(n.a(x)), a=nn.LayerNorm(2), b=nn.Linear(2, 3)).eval()
    x = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # its own normalised form
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
        plain, mended = (
            relative(want, quantize(model, TOKENS[:2], threshold="absmax", repair=r)(TOKENS[2]))
            for r in (None, "smooth-quant")
        )
    assert mended < 0.7 * plain


# --- bias correction
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "deviation", "low", "high"),
    [
        (0.5, 1.0, 0.0, math.inf),
        (-1.0, 2.0, 0.0, 6.0),
        (3.0, 0.1, 0.0, math.inf),
        (1.0, 3.0, -1.0, 1.0),
    ],
)
def test_a_clipped_normal(mean, deviation, low, high):
    x = (
        torch.randn(1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        * deviation
        + mean
    ).clamp(low, high)
    found = clipped_normal(torch.tensor([mean]), torch.tensor([deviation**2]), low, high)
    assert float(found[0]) == pytest.approx(float(x.mean()), abs=0.01) and float(
        found[1]
    ) == pytest.approx(float(x.var()), abs=0.02)


def test_a_clipped_normal_by_hand():
    # A standard normal through ReLU: mean 1 / sqrt(2 pi), second moment 1 / 2.
    mean, variance = clipped_normal(torch.zeros(1), torch.ones(1), 0.0, math.inf)
    assert float(mean) == pytest.approx(1 / math.sqrt(2 * math.pi)) and float(
        variance
    ) == pytest.approx(0.5 - 1 / (2 * math.pi))


def behind_batchnorm() -> nn.Module:
    """A convolution and BatchNorm whose channels are normal with mean 1, 0 and deviation 0.5, 2;
    then ReLU and a 1x1 convolution.
    """
    torch.manual_seed(0)
    network = Network(
        lambda n, x: n.b(F.relu(n.bn(n.a(x)))),
        a=conv(4, 2, 1, bias=False),
        bn=nn.BatchNorm2d(2),
        b=conv(2, 3, 1),
    ).eval()
    with torch.no_grad():
        network.a.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]]).view(2, 4, 1, 1))
        (
            network.bn.weight.copy_(torch.tensor([0.5, -2.0])),
            network.bn.bias.copy_(torch.tensor([1.0, 0.0])),
        )
    return network


def test_the_analytic_correction_by_hand():
    model, data = (
        behind_batchnorm(),
        [torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(1))],
    )
    q, mended = (quantize(model, data, weight_bits=2, repair=r) for r in (None, "bias-analytic"))
    quantizer = q.get_submodule("quantizers.b_weight")
    weight = q.get_parameter("b.weight")
    assert isinstance(quantizer, WeightQuantizer)
    error = (quantizer(weight) - weight).detach()[:, :, 0, 0]
    # E[ReLU] of N(1, 0.5^2): 1 * Phi(2) + 0.5 * phi(2); of N(0, 2^2): 2 / sqrt(2 pi).
    expected = torch.tensor([0.97725 + 0.5 * 0.05399, 2 / math.sqrt(2 * math.pi)])
    assert torch.allclose(
        q.get_parameter("b.bias") - mended.get_parameter("b.bias"), error @ expected, atol=1e-4
    )
    with torch.no_grad():  # the data is what BatchNorm says it is
        means = [(model(data[0]) - n(data[0])).mean((0, 2, 3)).abs().max() for n in (q, mended)]
    assert means[1] < 0.25 * means[0]


def test_the_analytic_correction_leaves_alone_what_it_knows_nothing_of():
    model, data = build("mean"), batches(count=1)
    q, mended = (quantize(model, data, weight_bits=3, repair=r) for r in (None, "bias-analytic"))
    assert all(torch.equal(a, mended.state_dict()[n]) for n, a in q.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [
        "residual",
        "depthwise",
        "sequential",
        "conv1d",
        "tokens",
        "squeeze_excite",
        "residual_in_place",
    ],
)
def test_the_empirical_correction_takes_the_mean_error_away(name):
    model, data = build(name), batches(name, 3)
    q = quantize(model, data, weight_bits=3, repair="bias", target="x86-vnni")
    for layer in side_by_side(q, captured(model, as_batches(data)[0]), as_batches(data), ""):
        dim = layer.targets[0].ndim - 1 if "linear" in str(layer.node.target) else 1
        if len(layer.node.args) < 3 or layer.node.args[2] is None:
            continue
        wanted, given = (
            torch.cat(list(v)).movedim(dim, 0).flatten(1) for v in (layer.targets, layer.outputs())
        )
        assert float((wanted - given).mean(1).abs().max()) < 1e-4 * float(wanted.abs().max()), (
            layer.node
        )


def test_side_by_side_is_what_the_networks_compute():
    model, data = build("residual"), batches(count=2)
    q, reference = quantize(model, data), captured(model, as_batches(data)[0])
    seen = {}
    hooks = [
        m.register_forward_hook(lambda m, i, o, n=n: seen.setdefault(n, []).append(o))
        for n, m in q.named_modules()
        if n.endswith("quantizers.relu_1")
    ]
    with torch.no_grad():
        outputs = [(q(x), reference(x)) for x in data]
    for hook in hooks:
        hook.remove()
    layers = {str(layer.node): layer for layer in side_by_side(q, reference, as_batches(data), "")}
    assert list(layers) == ["conv2d", "conv2d_1", "conv2d_2", "linear"]
    assert all(
        torch.allclose(a, b) for a, b in zip(layers["conv2d_2"].inputs, seen["quantizers.relu_1"])
    )
    assert all(
        torch.allclose(y, o[0], atol=1e-6) for y, o in zip(layers["linear"].outputs(), outputs)
    )
    assert all(
        torch.allclose(t, o[1], atol=1e-6) for t, o in zip(layers["linear"].targets, outputs)
    )


# --- learned rounding
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual_in_place", "grouped", "conv1d", "sequential", "tokens"])
def test_rows_are_what_layers_read(name):
    """The product of the rows with the weights is the layer's output: strides, padding, dilation
    and groups are right.
    """
    model, data = build(name), batches(name, 2, 4)
    q = quantize(model, data, target="x86-vnni")
    for layer in side_by_side(q, captured(model, as_batches(data)[0]), as_batches(data), ""):
        weight = layer.network.get_submodule(str(layer.node.args[1].target))(
            layer.network.get_parameter(str(layer.node.args[1].args[0].target))
        )
        bias = layer.node.args[2] if len(layer.node.args) > 2 else None
        groups = layer.node.args[6] if len(layer.node.args) > 6 else 1
        layer.targets[:] = list(layer.outputs())  # so that rows and targets must agree
        rows, targets = gather(layer)
        assert rows.shape[1] == groups
        made = torch.einsum(
            "rgk,gok->rgo", rows, weight.reshape(groups, len(weight) // groups, -1)
        ).flatten(1)
        made = made if bias is None else made + layer.network.get_parameter(str(bias.target))
        assert torch.allclose(made, targets, atol=1e-5)


def test_rounding_is_learned_by_hand():
    # Both inputs are always equal, so only the sum of the weights matters: 0.35 + 0.45 = 0.8 of a
    # step is 1, not the 0 of rounding each to the nearest.
    network = nn.Sequential(nn.Linear(3, 1, bias=False)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[0.35, 0.45, 7.0]]))  # the step is 1 with 7 levels
    x = torch.rand(512, 1, generator=torch.Generator().manual_seed(0))
    data = [torch.cat([x, x, 1e-3 * x], 1)]
    nearest, learned = (
        quantize(network, data, weight_bits=4, target="x86-vnni", repair=r, threshold="absmax")
        for r in (None, "learned-rounding")
    )
    steps = [
        q.get_submodule("quantizers._0_weight").integers(q.get_parameter("0.weight"))[0].tolist()
        for q in (nearest, learned)
    ]
    assert steps[0] == [0, 0, 7]
    assert sum(steps[1][:2]) == 1 and steps[1][2] == 7


def smooth(x):
    """Neighbouring pixels are alike, as in images: errors of weights can make up for one another
    only where inputs depend on one another.
    """
    return torch.nn.functional.interpolate(x[:, :, :4, :4], size=x.shape[2:], mode="bilinear")


@pytest.mark.parametrize("name", ["residual", "grouped"])
def test_learned_rounding_beats_the_nearest(name, monkeypatch):
    monkeypatch.setattr(rounding, "STEPS", 300)
    model, data = build(name), [smooth(x) for x in batches(name, 6)]
    options = {"weight_bits": 3, "weight_threshold": "mse", "target": "x86-vnni"}
    q, learned = (quantize(model, data, repair=r, **options) for r in (None, "learned-rounding"))
    x = smooth(batches(name, 1, 64, seed=9)[0])
    with torch.no_grad():
        assert relative(model(x), learned(x)) < 0.85 * relative(model(x), q(x))
    for quantizer, parameter in (
        (m, n) for n, m in learned.named_modules() if isinstance(m, WeightQuantizer)
    ):
        node = next(n for n in learned.graph.nodes if n.target == parameter)
        weight, float_weight = (
            learned.get_parameter(str(node.args[0].target)),
            captured(model, as_batches(data)[0]).get_parameter(str(node.args[0].target)),
        )
        with torch.no_grad():
            assert torch.allclose(quantizer(weight), weight, atol=1e-6), (
                "weights are values of their grid"
            )
            scale = quantizer.scale.view(-1, *[1] * (weight.ndim - 1))
            assert (
                float(
                    (
                        (
                            weight
                            - float_weight.clamp(
                                -quantizer.levels * scale, quantizer.levels * scale
                            )
                        ).abs()
                        / scale
                    ).max()
                )
                <= 1.001
            )


# --- every repair
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REPAIRS)
def test_contract_repairs(name, monkeypatch):
    """A repaired network is as near as one that was not, at the least nearly; the model and the
    data stay as they are; it can be built again.
    """
    monkeypatch.setattr(rounding, "STEPS", 60)
    model, data = build("residual"), batches(count=3)
    before, inputs = copy.deepcopy(model.state_dict()), [x.clone() for x in data]
    q = quantize(model, data, repair=name)
    assert quantization(q).repair == (name,)
    with torch.no_grad():
        assert relative(model(data[0]), q(data[0])) < 0.06
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and all(
        torch.equal(a, b) for a, b in zip(data, inputs)
    )
    again = rebuild(model, quantization(q).to_dict())
    again.load_state_dict(q.state_dict())
    assert torch.equal(again(data[0]), q(data[0]))
    streamed = quantize(model, (x for x in data), repair=name)
    assert quantization(streamed).samples == quantization(q).samples and torch.equal(
        streamed(data[0]), q(data[0])
    )


def test_repairs_are_applied_in_a_sound_order():
    assert check_repairs(["bias", "equalize", "equalize-activations"]) == [
        "equalize-activations",
        "equalize",
        "bias",
    ]
    assert (
        check_repairs(None) == []
        and check_repairs("bias") == ["bias"]
        and check_repairs("auto") == check_repairs(["auto"]) == ["auto"]
    )
    for given, said in (
        ("bais", "did you mean 'bias'"),
        (["bias", 3], "repair names 3"),
        (["bias", "auto"], "'auto' chooses among all repairs and stands alone"),
    ):
        with pytest.raises(InputError, match=said):
            check_repairs(given)


def test_unused_analytic_correction():
    network = captured(build("residual"), Batch((batches(count=1)[0],), {}, None))
    correct_bias_analytically(network, network, [])  # nothing is quantised: nothing to correct


# --- repairs chosen by trying
# --------------------------------------------------------------------------------------------------


def test_combinations_are_those_that_can_change_the_network():
    cnn, transformer = (
        captured(n, Batch((x,), {}, None))
        for n, x in ((build("residual"), batches()[0]), (attention(), TOKENS[0]))
    )
    for network in (cnn, transformer):
        assert combinations(network)[0] == () and all(
            check_repairs(c) == list(c) for c in combinations(network)
        )
    assert ("bias-analytic",) in combinations(cnn) and not any(
        "smooth-quant" in c for c in combinations(cnn)
    )
    assert ("smooth-quant", "bias") in combinations(transformer) and not any(
        "bias-analytic" in c for c in combinations(transformer)
    )


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
    q = quantize(network, data, repair="auto", samples=96)
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
    observe = sys.modules["mirabelle.quantization.api"].observe
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

    monkeypatch.setattr(sys.modules["mirabelle.quantization.api"], "observe", observed)
    monkeypatch.setattr(sys.modules[combinations.__module__], "noise", noise)
    quantize(build("residual"), data, repair="auto", samples=64)
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
    assert quantization(quantize(network, data, repair="auto")).repair == wanted


def test_automatic_repairs_come_no_further_than_none():
    network, data = attention(), TOKENS
    q, plain = (quantize(network, data, repair=r, target="x86-vnni") for r in ("auto", None))
    x = torch.cat(TOKENS)
    with torch.no_grad():
        assert relative(network(x), q(x)) < relative(network(x), plain(x))
    assert "smooth-quant" in quantization(q).repair


def test_automatic_repairs_with_one_batch_and_with_an_iterator():
    network, data = build("residual"), batches(count=1)
    assert quantization(quantize(network, iter(data), repair="auto")).samples == len(data[0])
