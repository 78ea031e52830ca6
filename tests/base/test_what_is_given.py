"""Arguments of every kind: what the user's functions get is theirs to write into, and what is no
number or path is said.
"""

import numpy as np
import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import InputError


def test_losses_and_metrics_that_write_into_what_they_get():
    """Targets are the user's: a loss that writes into them trains on what was given, and a metric
    that does scores that.
    """
    x = [torch.randn(16, 6) for _ in range(4)]
    y = [torch.randint(0, 3, (16,)) for _ in range(4)]
    before = [t.clone() for t in y]
    torch.manual_seed(0)
    network = nn.Linear(6, 3)

    def plain(output, target):
        return nn.functional.cross_entropy(output, (target + 1) % 3)

    def writing(output, target):
        return nn.functional.cross_entropy(output, target.add_(1).remainder_(3))

    def step(network, batch):
        batch.args[0].mul_(2)
        return writing(network(batch.args[0]), batch.target)

    def doubled(network, batch):
        return plain(network(2 * batch.args[0]), batch.target)

    data = list(zip(x, y, strict=True))
    for options, twin in (
        ({"loss": writing}, {"loss": plain}),
        ({"loss": None, "step": step}, {"loss": None, "step": doubled}),
    ):
        found, wanted = (mb.fit(network, data, steps=3, lr=0.01, **o) for o in (options, twin))
        assert torch.equal(found.weight, wanted.weight)

    class Right:
        def __init__(self):
            self.right = self.n = 0

        def update(self, output, target):
            self.right += int((output.argmax(1) == target).sum())
            self.n += len(target)
            output.zero_()
            target.zero_()

        def compute(self):
            return self.right / self.n

    def scored(output, target):
        right = (output.argmax(1) == target).float()
        target.zero_()
        return right

    exact = mb.measure(network, data, "top1", runs=1).score
    for metric in (scored, Right):
        found = mb.measure(network, data, metric, runs=1).score
        assert found.value == pytest.approx(exact.value) and found.low > 0
    assert all(torch.equal(a, b) for a, b in zip(y, before, strict=True))


def test_a_loss_without_a_gradient_is_said_before_training():
    data = [(torch.randn(16, 6), torch.randint(0, 3, (16,))) for _ in range(4)]
    for options in ({}, {"lr": 0.01}):
        with pytest.raises(InputError, match="has no gradient for the network's weights"):
            mb.fit(nn.Linear(6, 3), data, lambda o, t: (o > 0).sum(), steps=2, **options)


def test_numbers_of_numpy_are_numbers():
    network, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(32, 6)
    options = {"macs": 0.5, "align": 1, "data": [x], "samples": 8, "depth": False}
    given = {
        "macs": np.float64(0.5),
        "align": np.int32(1),
        "samples": np.int64(8),
        "depth": np.bool_(False),
    }
    plain, same = (mb.prune(network, x[:2], **{**options, **more}) for more in ({}, given))
    assert torch.equal(plain[0].weight, same[0].weight)
    with pytest.raises(InputError, match="samples is 0"):
        mb.prune(network, x[:2], **{**options, "samples": np.int64(0)})


@pytest.mark.parametrize("folder", [None, 3, b"out", ["out"]])
def test_what_is_no_path_is_said(folder):
    network, x = nn.Linear(6, 3), torch.randn(2, 6)
    for call in (
        lambda: mb.save(network, folder),
        lambda: mb.load(folder, network),
        lambda: mb.export(network, folder, inputs=x),
    ):
        with pytest.raises(InputError, match="folder is a .*; expected a path"):
            call()


def test_quantized_networks_are_not_cut():
    """Their scales are those of the weights as they were: what came out was noise, without a word
    (five times the variance of the outputs, where the float network lost a twelfth).
    """
    x = torch.randn(32, 6)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    q = mb.quantize(network, [x])
    for verb, call in (
        ("prune", lambda: mb.prune(q, x[:2], macs=0.5, data=[x])),
        ("sparsify", lambda: mb.sparsify(q, sparsity=0.5)),
        ("factorize", lambda: mb.factorize(q, x[:2], macs=0.5)),
        ("compress", lambda: mb.compress(q, [x], macs=0.5, minutes=1)),
    ):
        with pytest.raises(InputError, match=f"{verb} the float network, then quantize"):
            call()


def test_another_network_than_the_cut_one_does_not_come_back():
    x = torch.randn(32, 6)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    for other in (nn.Linear(6, 3), network):
        with pytest.raises(InputError, match="train returned another network"):
            mb.prune(network, x[:2], macs=0.5, data=[x], train=lambda small, o=other: o)
    assert mb.prune(network, x[:2], macs=0.5, data=[x], train=lambda small: small)[0].out_features
