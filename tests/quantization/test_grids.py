"""The grids that quantize chooses: targets, thresholds, bits, affine ones."""

import pytest
import torch

from mirabelle.base.errors import InputError
from mirabelle.quantization import TARGETS, THRESHOLDS, quantization, quantize, rebuild
from mirabelle.quantization.forms.qdq import with_integers
from tests.quantization.observed import activations, relative, small, weights
from tests.quantized_networks import batches, build


def test_a_scale_is_the_threshold_by_the_levels():
    x = torch.rand(32, 3, 8, 8) + 0.01
    x[0, 0, 0, 0] = 2.0
    q = quantize(small(), [x], threshold="absmax", target="x86-vnni")
    assert float(activations(q)["x"].scale.detach()) == pytest.approx(2 / 255)
    signed = quantize(small(), [-x], threshold="absmax", target="x86-vnni", symmetric=True)
    assert float(activations(signed)["x"].scale.detach()) == pytest.approx(2 / 127)
    negative = activations(quantize(small(), [-x], threshold="absmax", target="x86-vnni"))["x"]
    assert float(negative.scale.detach()) == pytest.approx(2 / 255) and negative.zero_point == 255
    half = quantize(small(), [x], threshold=lambda h, levels: h.maximum / 2, target="x86-vnni")
    assert (
        float(activations(half)["x"].scale.detach()) == pytest.approx(1 / 255)
        and quantization(half).threshold == "<lambda>"
    )


GRID_OF = {  # target: (limits of the dtype, zero points of signed and rectified, largest weight)
    "x86": ((0, 255), 128, 0, 127),
    "x86-vnni": ((0, 255), 128, 0, 127),
    "arm": ((-128, 127), 0, -128, 127),
    "openvino": ((0, 255), 128, 0, 127),
    "tensorrt": ((-128, 127), 0, 0, 127),
    "symmetric": ((-128, 127), 0, 0, 127),
}


@pytest.mark.parametrize("target", TARGETS)
def test_contract_targets(target):
    limits, signed, rectified, largest = GRID_OF[target]
    network, x = build("residual"), batches(size=8)
    q = quantize(network, x, target=target, symmetric=True)
    found = activations(q)
    assert {(a.low, a.high) for a in found.values()} == {limits}
    assert found["x"].zero_point == signed and found["relu"].zero_point == rectified
    integers = {
        n: w.integers(q.get_parameter(n.replace("_weight", ".weight")))
        for n, w in weights(q).items()
    }
    assert all(
        largest // 2 <= int(i.abs().max()) <= largest
        and (TARGETS[target].pairs or int(i.abs().max()) == largest)
        for i in integers.values()
    )
    with torch.no_grad():
        assert relative(network(x[0]), q(x[0])) < 0.04


@pytest.mark.parametrize("target", TARGETS)
def test_zero_points_where_they_cost_no_time(target):
    network, x = build("residual"), [b + 0.5 for b in batches(size=8)]
    found = quantize(network, x, target=target)
    free = TARGETS[target].zero_points
    assert quantization(found).symmetric is not free
    assert (activations(found)["x"].zero_point != GRID_OF[target][1]) == free
    own = quantize(network, x, target=target, threshold=lambda h, levels: h.maximum)
    assert quantization(own).symmetric is True


def test_auto_is_safe_on_this_machine():
    q = quantize(small(), batches())
    assert bool(quantization(q).pair_sums) == (quantization(q).target == "x86")
    assert quantization(q).target in TARGETS


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_contract_thresholds(threshold):
    network, x = build("residual"), batches(count=2)
    q = quantize(network, x, threshold=threshold, weight_threshold=threshold)
    with torch.no_grad():
        assert relative(network(x[0]), q(x[0])) < 0.1
    assert quantization(q).threshold == threshold


def test_one_step_for_a_whole_weight():
    network, x = build("residual"), batches(count=2)
    q = quantize(network, x, per_channel=False, target="x86-vnni", repair=None)
    found = weights(q)["fc_weight"].scale
    assert found.shape == (1,) and float(found.detach()) == pytest.approx(
        float(network.fc.weight.detach().abs().max()) / 127
    )
    with torch.no_grad():
        assert relative(network(x[0]), q(x[0])) < 0.06
    again = rebuild(network, quantization(q).to_dict())
    again.load_state_dict(q.state_dict())
    assert torch.equal(again(x[0]), q(x[0]))


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_affine_grids(threshold):
    network, x = build("hardswish"), batches(count=2)
    q = quantize(
        network,
        x,
        threshold=threshold,
        weight_threshold=threshold,
        symmetric=False,
        weight_symmetric=False,
        target="x86-vnni",
    )
    described = quantization(q)
    assert not described.symmetric and not described.weight_symmetric
    with torch.no_grad():
        assert relative(network(x[0]), q(x[0])) < 0.1
    found = activations(q)["hardswish"]
    low, high = (
        (e - found.zero_point) * float(found.scale.detach()) for e in (found.low, found.high)
    )
    assert -0.5 < low < -0.2 and high > 0.5, "-0.375 is the least that hardswish gives"
    again = rebuild(network, described.to_dict())
    again.load_state_dict(q.state_dict())
    assert torch.equal(again(x[0]), q(x[0]))


def test_an_affine_grid_by_hand():
    x = torch.rand(32, 3, 8, 8)
    x[0, 0, 0, :2] = torch.tensor([3.0, -1.0])
    network = small()
    with torch.no_grad():
        network.a.weight[0] = 0
        network.a.weight[0, 0, 0, :2] = torch.tensor([-0.5, 1.5])
    q = quantize(
        network,
        [x],
        threshold="absmax",
        weight_threshold="absmax",
        symmetric=False,
        weight_symmetric=False,
        target="x86-vnni",
    )
    found, weight = activations(q)["x"], weights(q)["a_weight"]
    assert (
        float(found.scale.detach()) == pytest.approx(4 / 255) and found.zero_point == 64
    )  # round(1 / (4 / 255)) = round(63.75)
    assert (
        float(weight.scale[0].detach()) == pytest.approx(2 / 255) and int(weight.offset[0]) == -64
    )  # -128 + 63.75
    stored = weight.integers(q.get_parameter("a.weight"))
    assert (int(stored[0].min()), int(stored[0].max())) == (-128, 127) and int(
        stored[0, 1, 0, 0]
    ) == -64
    assert torch.equal(
        weight.centered(q.get_parameter("a.weight")) * weight.scale.detach().view(-1, 1, 1, 1),
        weight(q.get_parameter("a.weight")).detach(),
    )


def test_sixteen_bits_are_nearly_float():
    network, x = build("residual"), batches(count=2)
    q = quantize(network, x, bits=16, target="x86-vnni", threshold="absmax")
    with torch.no_grad():
        assert relative(network(x[0]), q(x[0])) < 1e-4
    assert weights(q)["fc_weight"].integers(q.get_parameter("fc.weight")).dtype == torch.int16
    mixed = quantize(network, x, bits=16, weight_bits=8, target="x86-vnni")
    assert (quantization(mixed).bits, quantization(mixed).weight_bits) == (16, 8)
    with pytest.raises(InputError, match=r"has 16; quantize the network with bits=8"):
        with_integers(q)


def test_fewer_bits_are_coarser():
    network, x = build("residual"), batches(count=2)
    errors = []
    for bits in range(2, 9):
        q = quantize(network, x, bits=bits, target="x86-vnni")
        described = quantization(q)
        assert (described.bits, described.weight_bits) == (bits, bits)
        assert all(m.high - m.low == 2**bits - 1 for m in activations(q).values())
        assert all(m.levels == 2 ** (bits - 1) - 1 for m in weights(q).values())
        relu = next(n for n in q.graph.nodes if str(n.target) == "quantizers.relu")
        seen = {}
        hook = q.get_submodule(str(relu.target)).register_forward_hook(
            lambda m, i, o, seen=seen: seen.update(o=o)
        )
        with torch.no_grad():
            errors.append(relative(network(x[0]), q(x[0])))
        hook.remove()
        assert len(seen["o"].unique()) <= 2**bits
    assert errors[0] > 4 * errors[2] > 16 * errors[6]
