"""Folding, fake quantisers against torch, ONNX and the papers, and `mb.quantize` on sound and
unsound input.
"""

import copy
import sys

import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from onnx.reference import ReferenceEvaluator
from torch import nn

import mirabelle as mb
from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.graph.capture import capture, inputs_in_order, operator
from mirabelle.onnx_files.qdq import META
from mirabelle.quantization import TARGETS, THRESHOLDS, quantization, quantize, rebuild
from mirabelle.quantization.forms.qdq import with_integers
from mirabelle.quantization.simulation.folding import fold_batchnorm
from mirabelle.quantization.simulation.graph import captured as captured_network
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer, WeightQuantizer
from tests.quantized_networks import NETWORKS, Network, batches, build, conv, head


@pytest.mark.parametrize("fixed", [False, True])
def test_calibration_in_pieces(fixed, monkeypatch):
    """Large batches are taken apart, and what is found is the same; where the network takes no
    other batch they stay whole.
    """
    seen = []
    module = Network(
        lambda n, x: head(n, F.relu(n.a(x)).view(len(x) if fixed else x.shape[0], 8, 14, 14)),
        a=conv(3, 8),
        fc=nn.Linear(8, 5),
    ).eval()
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = []
    for numbers in (2**19, 2 * x[0].numel()):
        monkeypatch.setattr(sys.modules["mirabelle.quantization.prepared"], "PIECE", numbers)
        monkeypatch.setattr(
            sys.modules["mirabelle.quantization.calibration.observation"],
            "inputs_in_order",
            lambda g, b: (seen.append(b.size), inputs_in_order(g, b))[1],
        )
        q = quantize(
            module, [(x, {"labels": None})], repair="bias"
        )  # labels are not read, and need not be such as can be taken apart
        found.append((seen[:], {n: float(a.scale.detach()) for n, a in activations(q).items()}))
        seen.clear()
    assert found[0][0] == [8] and found[1][0] == ([8] if fixed else [2, 2, 2, 2])
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)


def test_even_paddings_become_the_convolutions_own():
    """Uneven ones cannot."""
    network, x = build("padded"), batches("padded", 1)[0]
    found = captured_network(network, Batch((x,), {}, None))
    assert sum("pad" in operator(n) for n in found.graph.nodes) == 1
    assert next(n.args[4] for n in found.graph.nodes if operator(n) == "conv2d") == [3, 2], (
        "rows have two zeros more on each side, columns one"
    )
    with torch.no_grad():
        assert torch.allclose(found(x), network(x), atol=1e-6)


def test_what_writes_over_a_layer_or_a_sum_gives_a_new_value():
    """Over what is read nowhere else: other values are written over as the network says."""

    def forward(n, x):
        y, z = n.a(x), n.b(x)
        F.relu6(y, inplace=True)
        F.hardswish(z, inplace=True)
        w = n.c(x)
        w += z  # neither is read again
        F.relu_(w)
        early, late = n.d(x), n.e(x)
        late += early
        late.mul_(2)
        early.neg_()  # read above
        twice = early.view(early.shape)
        twice.add_(1)
        return head(n, y + w + late + early)

    module = Network(forward, **{name: conv(3, 8) for name in "abcde"}, fc=nn.Linear(8, 5)).eval()
    x = batches(count=1)[0]
    q = quantize(module, [x], bits=16)
    names = [operator(n) for n in q.graph.nodes if n.op == "call_function"]
    assert (
        {"relu", "hardswish", "add", "mul"} <= {*names}
        and {"hardtanh", "relu6"} & {*names}
        and "neg_" in names
        and "hardswish_" not in names
    )
    assert relative(module(x), q(x)) < 1e-3


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().norm() / a.detach().norm())


def activations(q: nn.Module) -> dict[str, ActivationQuantizer]:
    return {
        n.removeprefix("quantizers."): m
        for n, m in q.named_modules()
        if isinstance(m, ActivationQuantizer)
    }


def weights(q: nn.Module) -> dict[str, WeightQuantizer]:
    return {
        n.removeprefix("quantizers."): m
        for n, m in q.named_modules()
        if isinstance(m, WeightQuantizer)
    }


def small(**options) -> Network:
    torch.manual_seed(0)
    return Network(
        lambda n, x: head(n, F.relu(n.a(x))), a=conv(3, 8, **options), fc=nn.Linear(8, 5)
    ).eval()


# --- folding
# --------------------------------------------------------------------------------------------------


def folded(network: nn.Module, x: torch.Tensor):
    captured = capture(network, Batch((x,), {}, None))
    return captured, fold_batchnorm(captured)


def norms(graph_module) -> int:
    return sum(operator(n) == "batch_norm" for n in graph_module.graph.nodes)


def test_fold_by_hand():
    """w = 3, b = 1, mean 5, var 4 (eps 0), gamma 6, beta 7: w' = 3 * 6 / 2 = 9, b' = (1 - 5) * 6 /
    2 + 7 = -5.
    """
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)).eval()
    values = {
        "0.weight": 3,
        "0.bias": 1,
        "1.weight": 6,
        "1.bias": 7,
        "1.running_mean": 5,
        "1.running_var": 4,
        "1.num_batches_tracked": 1,
    }
    network.load_state_dict(
        {k: torch.full_like(network.state_dict()[k], v) for k, v in values.items()}
    )
    graph, left = folded(network, torch.ones(2, 1, 2, 2))
    assert left == [] and norms(graph) == 0
    assert {k: v.item() for k, v in graph.state_dict().items()} == {"0.weight": 9.0, "0.bias": -5.0}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["conv", "grouped", "linear", "conv1d"])
def test_fold_keeps_the_output(kind, bias, affine):
    torch.manual_seed(1)
    layer, norm, x = {
        "conv": (
            nn.Conv2d(4, 6, 3, bias=bias),
            nn.BatchNorm2d(6, affine=affine),
            torch.randn(4, 4, 7, 7),
        ),
        "grouped": (
            nn.Conv2d(4, 6, 3, groups=2, bias=bias),
            nn.BatchNorm2d(6, affine=affine),
            torch.randn(4, 4, 7, 7),
        ),
        "linear": (nn.Linear(4, 6, bias=bias), nn.BatchNorm1d(6, affine=affine), torch.randn(4, 4)),
        "conv1d": (
            nn.Conv1d(4, 6, 3, bias=bias),
            nn.BatchNorm1d(6, affine=affine),
            torch.randn(4, 4, 7),
        ),
    }[kind]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    if affine:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    network = nn.Sequential(layer, norm).eval()
    graph, left = folded(network, x)
    assert left == [] and norms(graph) == 0 and set(graph.state_dict()) == {"0.weight", "0.bias"}
    assert torch.allclose(graph(x), network(x), rtol=1e-5, atol=1e-5)


class OwnBias(nn.Module):
    """A layer without a bias argument, in a module that has another tensor of that name."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.randn(6))
        self.norm = nn.BatchNorm2d(6)
        self.norm.running_mean.normal_()

    def forward(self, x):
        return self.norm(F.conv2d(x, self.weight)) * self.bias.view(-1, 1, 1)


UNFOLDABLE = {
    "used twice": lambda: Network(
        lambda n, x: n.bn(n.c(n.c(x))), c=conv(3, 3), bn=nn.BatchNorm2d(3)
    ),
    "read twice": lambda: Network(
        lambda n, x: (lambda y: n.bn(y) + y)(n.c(x)), c=conv(3, 6), bn=nn.BatchNorm2d(6)
    ),
    "after a concatenation": lambda: Network(
        lambda n, x: n.bn(torch.cat([n.c(x), n.d(x)], 1)),
        c=conv(3, 3),
        d=conv(3, 3),
        bn=nn.BatchNorm2d(6),
    ),
    "batch statistics": lambda: Network(
        lambda n, x: n.bn(n.c(x)), c=conv(3, 6), bn=nn.BatchNorm2d(6, track_running_stats=False)
    ),
    "other channels": lambda: Network(
        lambda n, x: n.bn(n.l(x.flatten(2))), l=nn.Linear(64, 3), bn=nn.BatchNorm1d(3)
    ),
    "first": lambda: Network(lambda n, x: n.c(n.bn(x)), c=conv(3, 6), bn=nn.BatchNorm2d(3)),
}


@pytest.mark.parametrize("name", UNFOLDABLE)
def test_what_must_not_fold_stays(name):
    torch.manual_seed(2)
    network, x = UNFOLDABLE[name]().eval(), torch.randn(2, 3, 8, 8)
    if network.bn.running_mean is not None:
        network.bn.running_mean.normal_()
        network.bn.weight.data.uniform_(0.5, 2)
    graph, left = folded(network, x)
    assert len(left) == norms(graph) == 1
    assert torch.allclose(graph(x), network(x), atol=1e-5)


def test_fold_leaves_other_tensors_called_bias_alone():
    torch.manual_seed(3)
    network, x = OwnBias().eval(), torch.randn(2, 3, 8, 8)
    graph, left = folded(network, x)
    assert left == [] and torch.allclose(graph(x), network(x), atol=1e-4)


# --- the fake quantisers
# --------------------------------------------------------------------------------------------------

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


# --- quantize
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_simulated_closely_and_what_stays_in_float_is_named(name):
    network, data = build(name), batches(name)
    before = copy.deepcopy(network.state_dict())
    q = quantize(network, data, samples=64)
    x = batches(name, 1, seed=9)[0]
    with torch.no_grad():
        assert relative(network(x), q(x)) < 0.06
        assert torch.allclose(q(x[:3]), q(x)[:3], atol=1e-5), "any batch size"
    described = quantization(q)
    assert set(described.float_operators) == NETWORKS[name][1]
    assert described.samples == 64
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items()), (
        "the input is not changed"
    )
    kept = {
        n
        for n in q.state_dict()
        if not (n.startswith("quantizers.") and n.endswith(("start", "log_ratio", "offset")))
    }
    biases = {
        f"{n}.bias" for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))
    }
    assert kept <= set(before) | biases, "parameters keep their paths"


def test_weights_are_per_channel_and_rectified_activations_unsigned():
    network = small()
    with torch.no_grad():
        network.a.weight[0] *= 100
    q = quantize(network, batches(), target="x86-vnni", weight_threshold="absmax")
    scales = weights(q)["a_weight"].scale
    assert torch.allclose(scales, network.a.weight.abs().amax((1, 2, 3)) / 127)
    found = activations(q)
    assert {n: (a.low, a.zero_point, a.high) for n, a in found.items()} == {
        "x": (0, 128, 255),
        "relu": (0, 0, 255),
        "adaptive_avg_pool2d": (0, 0, 255),
    }


def test_a_scale_is_the_threshold_by_the_levels():
    x = torch.rand(32, 3, 8, 8) + 0.01
    x[0, 0, 0, 0] = 2.0
    q = quantize(small(), [x], threshold="absmax", target="x86-vnni")
    assert float(activations(q)["x"].scale.detach()) == pytest.approx(2 / 255)
    signed = quantize(small(), [-x], threshold="absmax", target="x86-vnni")
    assert float(activations(signed)["x"].scale.detach()) == pytest.approx(2 / 127)
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
    q = quantize(network, x, target=target)
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


def test_layers_that_are_kept_stay_in_float():
    network, x = build("residual"), batches(count=2)
    q = quantize(network, x, keep=["c1", "fc.weight"])
    described = quantization(q)
    assert set(weights(q)) == {"c0_weight", "c2_weight"} and described.keep == ("c1", "fc.weight")
    assert described.float_operators == {"conv2d": 1, "linear": 1, "relu": 1}
    with torch.no_grad():
        assert relative(network(x[0]), q(x[0])) < 0.03
    again = rebuild(network, described.to_dict())
    again.load_state_dict(q.state_dict())
    assert torch.equal(again(x[0]), q(x[0]))
    with pytest.raises(
        InputError, match=r"keep names 'bn1', which is no convolution or linear layer.*c0, c1"
    ):
        quantize(network, x, keep="bn1")
    with pytest.raises(InputError, match="nothing to quantise"):
        quantize(network, x, keep=["c0", "c1", "c2", "fc"])


def test_one_step_for_a_whole_weight():
    network, x = build("residual"), batches(count=2)
    q = quantize(network, x, per_channel=False, target="x86-vnni")
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
        weight.centred(q.get_parameter("a.weight")) * weight.scale.detach().view(-1, 1, 1, 1),
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
    with pytest.raises(InputError, match=r"has 16; quantise the network with bits=8"):
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


def test_loaders_of_every_kind():
    network, x = small(), batches(count=2)
    scale = float(activations(quantize(network, x))["x"].scale.detach())
    labels = torch.zeros(16, dtype=torch.int64)
    for data in (
        [(b, labels) for b in x],
        [b.numpy() for b in x],
        [{"x": b} for b in x],
        (b for b in x),
    ):
        q = quantize(network, data)
        assert float(activations(q)["x"].scale.detach()) == scale and quantization(q).samples == 32


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 4), conv(3, 4)

    def forward(self, a, b):
        return self.a(a) - 2 * self.b(b)


@pytest.mark.parametrize("named", [True, False])
def test_several_inputs(named):
    torch.manual_seed(0)
    network, data = (
        Two(),
        [(torch.randn(8, 3, 8, 8), 10 * torch.randn(8, 3, 8, 8)) for _ in range(4)],
    )
    loader = (
        [{"b": b, "a": a} if i % 2 else {"a": a, "b": b} for i, (a, b) in enumerate(data)]
        if named
        else [((a, b), None) for a, b in data]
    )
    q = quantize(network, loader)
    a, b = data[0]
    with torch.no_grad():
        out = q(a=a, b=b) if named else q(a, b)
        assert relative(network(a, b), out) < 0.03
    scales = {n: float(m.scale.detach()) for n, m in activations(q).items()}
    assert 5 < scales["b"] / scales["a"] < 20
    again = rebuild(network, quantization(q).to_dict())
    again.load_state_dict(q.state_dict())
    with torch.no_grad():
        assert torch.equal(again(a=a, b=b) if named else again(a, b), out)


def test_samples_limit_the_calibration():
    quiet, loud = torch.rand(16, 3, 8, 8), 100 * torch.rand(16, 3, 8, 8)
    q = quantize(small(), [quiet, loud], samples=16, threshold="absmax", target="x86-vnni")
    assert quantization(q).samples == 16 and float(activations(q)["x"].scale.detach()) <= 1 / 255
    assert quantization(quantize(small(), [quiet, loud], samples=10**6)).samples == 32


def test_fixed_batch_works_for_that_batch():
    torch.manual_seed(0)
    network = Network(
        lambda n, x: n.fc(F.relu(n.a(x)).view(8, -1)), a=conv(3, 4), fc=nn.Linear(4 * 36, 5)
    ).eval()
    data = [torch.randn(8, 3, 8, 8) for _ in range(3)]
    q = quantize(network, data)
    with torch.no_grad():
        assert relative(network(data[0]), q(data[0])) < 0.03
    with pytest.raises(
        InputError, match=r"does not run on a calibration batch of shape \(3, 3, 8, 8\)"
    ):
        quantize(network, [*data, torch.randn(3, 3, 8, 8)])


def test_all_zero_layer_and_dead_channel():
    network = small()
    with torch.no_grad():
        network.a.weight[:4] = 0
        network.a.bias[:4] = torch.tensor([0.0, 0.5, 3e4, -3e4])
        network.a.weight[4] *= 1e-9
        network.fc.weight.zero_()
        network.fc.bias.copy_(torch.tensor([1e6, -1e6, 0, 1, 2]))
    x = batches()[0]
    q = quantize(network, [x], threshold="absmax")
    with torch.no_grad():
        assert torch.allclose(q(x), network(x))
    stored = with_integers(q)[0].meta[META].stored
    for name, exact in {"conv2d_bias": network.a.bias, "linear_bias": network.fc.bias}.items():
        integers, scales = stored[name].integers, stored[name].scales
        assert integers.dtype == np.int32 and np.abs(integers.astype(np.int64)).max() <= 2**30 + 128
        assert np.allclose(integers * scales, exact.detach(), rtol=1e-5, atol=1e-4)


def test_zero_activations():
    network = small()
    with torch.no_grad():
        network.a.weight.zero_(), network.a.bias.fill_(-1)
    q = quantize(network, [torch.zeros(4, 3, 8, 8)])
    assert torch.allclose(q(torch.zeros(4, 3, 8, 8)), network(torch.zeros(4, 3, 8, 8)), atol=1e-6)


def _with_nan() -> nn.Module:
    network = small()
    network.a.weight.data[0, 0, 0, 0] = float("nan")
    return network


NAN = torch.full((4, 3, 8, 8), float("nan"))
BAD = {
    "nan weight": (_with_nan, batches(), {}, "a.weight holds 1 of 216"),
    "nan data": (small, [NAN], {}, "input x holds NaN"),
    "empty": (small, [], {}, "calibration set yielded no batch"),
    "exhausted": (small, iter([]), {}, "calibration set yielded no batch"),
    "shape": (small, [torch.randn(4, 1, 8, 8)], {}, r"\(4, 1, 8, 8\)"),
    "not data": (small, ["image.png"], {}, "batch 0 of the calibration set is a str"),
    "bits": (small, batches(), {"bits": 1}, "bits is 1; expected an integer between 2 and 16"),
    "many bits": (small, batches(), {"bits": 17}, "bits is 17"),
    "samples": (small, batches(), {"samples": 0}, "samples is 0; expected a positive integer"),
    "threshold": (small, batches(), {"threshold": "msee"}, "did you mean 'mse'"),
    "target": (small, batches(), {"target": "x68"}, "did you mean 'x86'"),
    "affine rule": (
        small,
        batches(),
        {"symmetric": False, "threshold": lambda h, steps: 1.0},
        r"gave 1.0; for affine grids it gives \(low, high\)",
    ),
    "affine range": (
        small,
        batches(),
        {"symmetric": False, "threshold": lambda h, steps: (1.0, 2.0)},
        "expected low <= 0 <= high",
    ),
    "affine target": (
        small,
        batches(),
        {"symmetric": False, "target": "symmetric"},
        "kernels without zero points",
    ),
    "rule": (small, batches(), {"threshold": lambda h, levels: float("nan")}, "gave nan"),
    "nothing": (
        lambda: nn.Sequential(nn.ReLU(), nn.Flatten()),
        batches(),
        {},
        "nothing to quantise",
    ),
    "not a network": (lambda: 3, batches(), {}, "is a int"),
    "twice": (lambda: quantize(small(), batches()), batches(), {}, "quantised already"),
    "taken name": (
        lambda: Network(
            lambda n, quantizers: n.quantizers.conv2d(quantizers),
            quantizers=nn.ModuleDict({"x": conv(3, 3), "conv2d": conv(3, 3)}),
        ),
        batches(),
        {},
        "of its own",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_unsound_input(name):
    make, data, options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        quantize(make(), data, **options)


def test_the_result_is_a_network_like_any_other():
    network, x = build("sequential").train(), batches(count=2)
    q = quantize(network, x)
    assert network.training and not q.training
    copied = copy.deepcopy(q)
    assert quantization(copied) == quantization(q) and torch.equal(copied(x[0]), q(x[0]))
    with torch.no_grad():
        next(copied.parameters()).add_(1)
    assert not torch.equal(copied(x[0]), q(x[0]))
    q.train()
    assert q.training and q.eval() is q and not q.training
    assert "scale=" in repr(q) and str(quantization(q).to_dict()["target"]) in TARGETS
    assert quantization(network) is None and quantization(3) is None


def test_rebuilt_from_its_description():
    network, x = build("residual_in_place"), batches(count=2)
    q = quantize(network, x)
    again = rebuild(network, quantization(q).to_dict())
    again.load_state_dict(q.state_dict())
    assert torch.equal(again(x[0]), q(x[0])) and quantization(again) == quantization(q)
    with pytest.raises(InputError, match="other layers"):
        rebuild(build("residual"), quantization(q).to_dict())


def test_training_lowers_the_loss_and_the_steps_learn():
    torch.manual_seed(0)
    y = torch.arange(128) % 4
    x = torch.randn(128, 3, 16, 16) + 0.3 * torch.randn(4, 3, 1, 1)[y]
    loader = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 128, 32)]
    q = quantize(build("residual"), loader, bits=3)
    with torch.no_grad():
        before = F.cross_entropy(q(x), y)
    trained = mb.fit(q, loader, epochs=12, lr=1e-2)
    with torch.no_grad():
        after = F.cross_entropy(trained(x), y)
    assert after < 0.8 * before
    moved = [
        n
        for n, m in activations(trained).items()
        if float(m.scale.detach()) != float(activations(q)[n].scale.detach())
    ]
    assert len(moved) == len(activations(q))
    assert quantization(trained) == quantization(q)
