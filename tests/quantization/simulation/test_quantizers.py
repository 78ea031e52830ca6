"""Fake quantizers against torch, ONNX and numbers worked out by hand."""

import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from onnx.reference import ReferenceEvaluator

from mirabelle.quantization.simulation.quantizers import ActivationQuantizer, WeightQuantizer

GRIDS = [(0, 0, 255), (128, 0, 255), (0, -128, 127), (-128, -128, 127), (0, 0, 15), (0, -2, 1)]


def probes(scale: float, low: int, high: int, zero_point: int) -> torch.Tensor:
    """Grid points, half-way points, points about them, and points beyond both ends."""
    steps = torch.arange(2 * (low - zero_point) - 6, 2 * (high - zero_point) + 7) / 2
    return torch.cat([steps, steps + 0.01, steps - 0.01]) * scale


@pytest.mark.parametrize("zero_point, low, high", GRIDS)
@pytest.mark.parametrize("scale", [0.25, 0.0371])
def test_activations_equal_torch(scale, zero_point, low, high):
    x = probes(scale, low, high, zero_point)
    got = ActivationQuantizer(scale, zero_point, low, high)(x)
    expected = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
    halves = (
        x / scale - torch.floor(x / scale) - 0.5
    ).abs() < 1e-4  # torch multiplies by 1 / scale: exact halves are its own affair
    keep = torch.ones_like(halves) if scale == 0.25 else ~halves
    assert torch.allclose(got[keep], expected[keep], rtol=1e-6, atol=0)
    assert got.detach().min() == (low - zero_point) * np.float32(scale) and got.detach().max() == (
        high - zero_point
    ) * np.float32(scale)


@pytest.mark.parametrize("zero_point, low, high", GRIDS[:4])
@pytest.mark.parametrize("scale", [0.25, 0.0371, 1 / 3])
def test_activations_equal_onnx(scale, zero_point, low, high):
    kind = onnx.TensorProto.UINT8 if low == 0 else onnx.TensorProto.INT8
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "g",
        [value("x", 1, None)],
        [value("y", 1, None)],
        [
            onnx.helper.make_tensor("s", 1, [], [scale]),
            onnx.helper.make_tensor("z", kind, [], [zero_point]),
        ],
    )
    x = probes(scale, low, high, zero_point)
    expected = ReferenceEvaluator(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    ).run(None, {"x": x.numpy()})[0]
    assert (ActivationQuantizer(scale, zero_point, low, high)(x).detach().numpy() == expected).all()


def test_half_way_points_round_to_even():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert ActivationQuantizer(1.0, 0, -128, 127)(x).tolist() == [-2, -2, 0, 0, 2, 2]
    assert WeightQuantizer(torch.ones(1), 0, 127)(x[None]).tolist() == [[-2, -2, 0, 0, 2, 2]]


@pytest.mark.parametrize("levels", [1, 63, 127])
def test_weights_equal_torch_and_their_integers(levels):
    torch.manual_seed(0)
    w, scale = torch.randn(5, 3, 2, 2), torch.tensor([0.01, 0.1, 0.5, 1.0, 0.003])
    quantizer = WeightQuantizer(scale, 0, levels)
    expected = torch.fake_quantize_per_channel_affine(w, scale, torch.zeros(5), 0, -levels, levels)
    assert torch.allclose(quantizer(w), expected, rtol=1e-6, atol=1e-9)
    integers = quantizer.integers(w)
    assert integers.dtype == torch.int8 and int(integers.abs().max()) == levels
    assert torch.equal(integers * scale.view(-1, 1, 1, 1), quantizer(w).detach())


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), grid=st.sampled_from(GRIDS), scale=st.floats(0.01, 1))
def test_gradients_of_activations(seed, grid, scale):
    """Esser et al. 2020: d x^ / d s = round(x/s) - x/s inside, the end's level outside; times 1 /
    sqrt(N Q), N features a sample.
    """
    zero_point, low, high = grid
    n, p = low - zero_point, high - zero_point
    x = (
        torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)) * scale * p
    ).requires_grad_()
    upstream = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed + 1))
    quantizer = ActivationQuantizer(scale, zero_point, low, high)
    (quantizer(x) * upstream).sum().backward()
    v = x.detach().double() / np.float32(scale)
    inside = (v > n) & (v < p)
    by_scale = torch.where(inside, v.round() - v, v.clamp(n, p))
    # log_ratio's gradient is that of LSQ over the scale, so that a small step of gradient descent
    # moves the scale by LSQ's.
    lsq = float((by_scale * upstream).sum()) / (7 * p) ** 0.5
    assert float(quantizer.log_ratio.grad) * scale == pytest.approx(lsq, rel=1e-3, abs=1e-3)
    with torch.no_grad():
        quantizer.log_ratio -= 1e-4 * quantizer.log_ratio.grad * scale**2
    assert scale - float(quantizer.scale.detach()) == pytest.approx(
        1e-4 * lsq * scale**2, rel=0.02, abs=1e-6
    )
    assert torch.allclose(x.grad, upstream * inside, atol=1e-6)


def test_gradients_of_weights():
    torch.manual_seed(0)
    w, scale = torch.randn(4, 6, requires_grad=True), torch.tensor([0.1, 0.2, 0.5, 1.0])
    quantizer = WeightQuantizer(scale, 0, 3)
    upstream = torch.randn(4, 6)
    (quantizer(w) * upstream).sum().backward()
    v = w.detach() / scale[:, None]
    inside = v.abs() < 3
    expected = (torch.where(inside, v.round() - v, v.clamp(-3, 3)) * upstream).sum(1) / (
        6 * 3
    ) ** 0.5
    assert torch.allclose(quantizer.log_ratio.grad * scale, expected, atol=1e-5)
    assert torch.allclose(w.grad, upstream * inside)


def test_autocast_does_not_degrade():
    x = torch.randn(4, 1000)
    a, w = ActivationQuantizer(0.013, 128, 0, 255), WeightQuantizer(torch.full((4,), 0.013), 0, 127)
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            torch.equal(a(x), ActivationQuantizer(0.013, 128, 0, 255)(x))
            and a(x).dtype == torch.float32
        )
        inside = w(x)
    assert torch.equal(inside, w(x))
