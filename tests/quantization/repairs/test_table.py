"""Corrections of biases by hand, and what every repair promises."""

import copy
import math

import pytest
import torch

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.quantization import quantization, quantize, rebuild
from mirabelle.quantization.repairs import rounding
from mirabelle.quantization.repairs.biases import clipped_normal, correct_bias_analytically
from mirabelle.quantization.repairs.side_by_side import side_by_side
from mirabelle.quantization.repairs.table import REPAIRS, check_repairs
from mirabelle.quantization.simulation.graph import captured
from mirabelle.quantization.simulation.quantizers import WeightQuantizer
from tests.quantization.repairs.networks import as_batches, behind_batchnorm, relative
from tests.quantized_networks import batches, build


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


def test_the_analytic_correction_by_hand():
    model, data = (
        behind_batchnorm(),
        [torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(1))],
    )
    q, repaired = (quantize(model, data, weight_bits=2, repair=r) for r in (None, "bias-analytic"))
    quantizer = q.get_submodule("quantizers.b_weight")
    weight = q.get_parameter("b.weight")
    assert isinstance(quantizer, WeightQuantizer)
    error = (quantizer(weight) - weight).detach()[:, :, 0, 0]
    # E[ReLU] of N(1, 0.5^2): 1 * Phi(2) + 0.5 * phi(2); of N(0, 2^2): 2 / sqrt(2 pi).
    expected = torch.tensor([0.97725 + 0.5 * 0.05399, 2 / math.sqrt(2 * math.pi)])
    assert torch.allclose(
        q.get_parameter("b.bias") - repaired.get_parameter("b.bias"), error @ expected, atol=1e-4
    )
    with torch.no_grad():  # the data is what BatchNorm says it is
        means = [(model(data[0]) - n(data[0])).mean((0, 2, 3)).abs().max() for n in (q, repaired)]
    assert means[1] < 0.25 * means[0]


def test_the_analytic_correction_leaves_alone_what_it_knows_nothing_of():
    model, data = build("mean"), batches(count=1)
    q, repaired = (quantize(model, data, weight_bits=3, repair=r) for r in (None, "bias-analytic"))
    assert all(torch.equal(a, repaired.state_dict()[n]) for n, a in q.state_dict().items())


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
        (["bias", "auto"], "'auto' chooses repairs and stands alone"),
    ):
        with pytest.raises(InputError, match=said):
            check_repairs(given)


def test_unused_analytic_correction():
    network = captured(build("residual"), Batch((batches(count=1)[0],), {}, None))
    correct_bias_analytically(network, network, [])  # nothing is quantized: nothing to correct
