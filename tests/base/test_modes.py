"""Verbs inside of a caller's `no_grad`, `inference_mode` and `autocast`."""

import pytest
import torch

import mirabelle as mb
from tests.tiny import data, model

EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TRAIN = list(data()[0])[:4]
VERBS = {
    "prune": lambda net: mb.prune(net, EXAMPLE, macs=0.5, align=2, data=TRAIN, samples=64),
    "prune by gradients": lambda net: mb.prune(
        net, EXAMPLE, macs=0.5, align=2, data=TRAIN, criterion="taylor", samples=64
    ),
    "sparsify": lambda net: mb.sparsify(net, sparsity=0.5, data=TRAIN, samples=64),
    "factorize": lambda net: mb.factorize(net, EXAMPLE, macs=0.8, data=TRAIN, samples=64),
    "fit": lambda net: mb.fit(net, TRAIN, steps=3, lr=1e-3),
    "distill": lambda net: mb.distill(net, model(1), TRAIN, steps=3, lr=1e-3),
    "quantize": lambda net: mb.quantize(net, TRAIN, samples=64),
}
MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def weights(network):
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


@pytest.fixture(scope="module")
def usual():
    return {name: weights(verb(model())) for name, verb in VERBS.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("verb", VERBS)
def test_what_comes_out_does_not_depend_on_the_callers_mode(usual, verb, mode):
    with MODES[mode]():
        before = (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
        )
        found = VERBS[verb](model())
        assert before == (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
        )
    for name, tensor in weights(found).items():
        assert torch.equal(tensor, usual[verb][name]), name
    assert not any(t.is_inference() for t in found.state_dict().values())


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("steps", [1, 4])
def test_mixed_precision_inside_of_autocast_trains_on_the_weights_of_each_step(enabled, steps):
    """Torch keeps weights that it has converted until the outermost autocast ends."""

    def train():
        return weights(mb.fit(model(), TRAIN, steps=steps, lr=1e-3, precision="bfloat16"))

    alone = train()
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        inside = train()
    assert all(torch.equal(inside[name], tensor) for name, tensor in alone.items())


@pytest.mark.parametrize("verb", VERBS)
def test_networks_that_were_made_in_inference_mode(usual, verb):
    with torch.inference_mode():
        network = model()
        for p in network.parameters():
            p.mul_(1.0)
    for name, tensor in weights(VERBS[verb](network)).items():
        assert torch.equal(tensor, usual[verb][name]), name
    assert all(p.is_inference() for p in network.parameters())


def test_such_a_network_is_measured_and_exported(tmp_path):
    with torch.inference_mode():
        network = model().eval()
    file = mb.export(network, tmp_path, inputs=EXAMPLE)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(file(EXAMPLE.numpy())), network(EXAMPLE), rtol=1e-4, atol=1e-5
        )
    assert mb.measure(network, list(data()[2])[:2], runs=2).score is not None
    assert mb.explain(network, EXAMPLE)


def test_a_loss_sees_float32_whatever_the_precision():
    seen = []

    def loss(output, target):
        seen.append(output.dtype)
        return torch.nn.functional.cross_entropy(output, target)

    mb.fit(model(), TRAIN, loss, steps=1, lr=1e-3, precision="bfloat16")
    assert set(seen) == {torch.float32}
