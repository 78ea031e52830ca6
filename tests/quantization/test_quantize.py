"""`mb.quantize` on sound and unsound input, and what becomes of its network."""

import copy
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.graph.capture import inputs_in_order
from mirabelle.onnx_files.qdq import META
from mirabelle.quantization import TARGETS, quantization, quantize, rebuild
from mirabelle.quantization.forms.qdq import with_integers
from tests.quantization.observed import activations, relative, small, weights
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
            module, [(x, {"labels": None})], repair="bias", threshold="mse"
        )  # labels are not read, and need not be such as can be taken apart
        found.append((seen[:], {n: float(a.scale.detach()) for n, a in activations(q).items()}))
        seen.clear()
    assert found[0][0] == [8] and found[1][0] == ([8] if fixed else [2, 2, 2, 2])
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_simulated_closely_and_what_stays_in_float_is_named(name):
    network, data = build(name), batches(name)
    before = copy.deepcopy(network.state_dict())
    q = quantize(network, data, samples=64)
    x = batches(name, 1, seed=9)[0]
    with torch.no_grad():
        assert relative(network(x), q(x)) < 0.06
        # Kernels sum in other orders, and a value may be rounded to the step beside.
        assert relative(q(x)[:3], q(x[:3])) < 0.005, "any batch size"
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
    q = quantize(network, batches(), target="x86-vnni", weight_threshold="absmax", repair=None)
    scales = weights(q)["a_weight"].scale
    assert torch.allclose(scales, network.a.weight.abs().amax((1, 2, 3)) / 127)
    found = activations(q)
    assert {n: (a.low, a.zero_point, a.high) for n, a in found.items()} == {
        "x": (0, 128, 255),
        "relu": (0, 0, 255),
        "adaptive_avg_pool2d": (0, 0, 255),
    }


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
    with pytest.raises(InputError, match="nothing to quantize"):
        quantize(network, x, keep=["c0", "c1", "c2", "fc"])


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
    q = quantize(network, [x], threshold="absmax", repair=None)
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
    "nan data": (small, [NAN], {}, "batch 0 of the calibration set is nan"),
    "empty": (small, [], {}, "calibration set yielded no batch"),
    "exhausted": (small, iter([]), {}, "calibration set yielded no batch"),
    "shape": (small, [torch.randn(4, 1, 8, 8)], {}, r"\(4, 1, 8, 8\)"),
    "not data": (small, ["image.png"], {}, "batch 0 of the calibration set is a str"),
    "bits": (small, batches(), {"bits": 1}, "bits is 1; expected an integer between 2 and 16"),
    "many bits": (small, batches(), {"bits": 17}, "bits is 17"),
    "samples": (small, batches(), {"samples": 0}, "samples is 0; expected a positive integer"),
    "samples of nan": (small, batches(), {"samples": float("nan")}, "samples is nan; expected"),
    "half a bit": (small, batches(), {"bits": 8.5}, "bits is 8.5; expected an integer"),
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
        "nothing to quantize",
    ),
    "not a network": (lambda: 3, batches(), {}, "is a int"),
    "twice": (lambda: quantize(small(), batches()), batches(), {}, "quantized already"),
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


def test_nothing_of_torchs_is_warned_about():
    """Users have no filter for what it says of its own outdated descriptions of outputs."""

    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return {"maps": self.b(self.a(x).relu())}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(Maps().eval(), [torch.randn(4, 3, 8, 8)], repair=["equalize"])
