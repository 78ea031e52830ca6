"""Learned rounding, against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from mirabelle.quantization import quantize
from mirabelle.quantization.repairs import rounding
from mirabelle.quantization.repairs.rounding import gather
from mirabelle.quantization.repairs.side_by_side import side_by_side
from mirabelle.quantization.simulation.graph import captured
from mirabelle.quantization.simulation.quantizers import WeightQuantizer
from tests.quantization.repairs.networks import as_batches, relative
from tests.quantized_networks import batches, build


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
    """Neighboring pixels are alike, as in images: errors of weights can make up for one another
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
