"""What sparse layers are fitted to, and the lengths of filters, against the network before."""

import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.checks import clone
from mirabelle.base.data import Batch
from mirabelle.fitting.batchnorm import reestimate_batchnorm
from mirabelle.fitting.gram import RIDGE, ridge, solve_on_support
from mirabelle.sparsity import share_of_zeros
from mirabelle.sparsity.filter_norms import as_long_as
from tests.sparsity.nets import calibration, net


def test_conjugate_gradients_solve_each_output_on_its_own_support():
    torch.manual_seed(0)
    rows, target = torch.randn(60, 7, dtype=torch.float64), torch.randn(60, 5, dtype=torch.float64)
    gram, cross = rows.T @ rows, rows.T @ target
    support = torch.rand(7, 5) < 0.5
    support[:, 3] = False  # an output that reads nothing
    weights = torch.randn(7, 5, dtype=torch.float64) * support
    found = solve_on_support(gram, cross, weights, support, 60)
    expected = weights.clone()
    h = gram + ridge(gram, 60)
    for o in range(5):
        s = support[:, o].nonzero()[:, 0]
        if len(s):
            expected[s, o] += torch.linalg.solve(h[s][:, s], (cross - gram @ weights)[s, o])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not bool(found[~support].any())


def test_reconstruction_undoes_what_can_be_undone():
    """Two inputs that are always equal: the weight that is left takes over what the other gave, but
    for the ridge.
    """
    net = nn.Sequential(nn.Linear(2, 1))
    net[0].weight.data, net[0].bias.data = torch.tensor([[3.0, 1.0]]), torch.tensor([0.5])
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(0)).expand(64, 2).contiguous()
    sparse = mb.sparsify(net, sparsity=0.5, data=[x], repair="least-squares")
    assert sparse[0].weight[0, 1] == 0 and abs(sparse[0].weight[0, 0].item() - 4) < RIDGE
    torch.testing.assert_close(sparse(x), net(x), rtol=0, atol=RIDGE * float(x.abs().max()))


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
def test_reconstruction_lessens_the_error(criterion):
    batches = calibration(count=6)
    original = reestimate_batchnorm(net(), batches)  # statistics as training would have left them
    errors = {}
    for repair, rounds in ((None, 1), ("least-squares", 1), ("least-squares", 3)):
        sparse = mb.sparsify(
            original,
            sparsity=0.6,
            criterion=criterion,
            allocation="uniform",
            data=batches,
            repair=repair,
            rounds=rounds,
        )
        zeros = [v["zeros"] for v in share_of_zeros(sparse).values()]
        with torch.no_grad():
            errors[repair, rounds] = sum(
                float((sparse(x) - original(x)).square().sum()) for x, _ in batches
            )
        assert sum(zeros) == round(0.6 * sum(v["size"] for v in share_of_zeros(sparse).values()))
    assert (
        errors["least-squares", 1] < 0.8 * errors[None, 1]
        and errors["least-squares", 3] < 1.1 * errors["least-squares", 1]
    )


def test_filters_before_a_norm_get_the_length_that_they_had():
    torch.manual_seed(0)
    original = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1)
    ).eval()
    (
        original[1].running_mean.uniform_(-1, 1),
        original[1].running_var.uniform_(0.1, 2),
        original[1].weight.data.uniform_(0.5, 2),
    )
    longer = clone(original)
    longer[0].weight.data[:, 0] = 0  # what is left grows
    longer[0].weight.data.mul_(
        torch.tensor([20.0, 3.0, 0.0, 0.5]).view(-1, 1, 1, 1)
    )  # the third filter is all zeros
    x = torch.randn(4, 2, 6, 6)
    found = as_long_as(longer, original, Batch((x[:1],), {}, None))
    wanted = original[0].weight[:, 1].flatten(1).norm(dim=1)
    torch.testing.assert_close(found[0].weight.flatten(1).norm(dim=1)[[0, 1, 3]], wanted[[0, 1, 3]])
    assert not bool(found[0].weight[2].any()) and torch.equal(
        found[0].weight == 0, longer[0].weight == 0
    )
    assert torch.equal(found[3].weight, original[3].weight), "no norm behind it"
    torch.testing.assert_close(found(x), longer(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.train()(x), longer.train()(x), rtol=0, atol=0.02
    )  # epsilon is made up for at the running variance, not at a batch's


def test_a_norm_over_other_channels_than_the_filters_is_left_alone():
    torch.manual_seed(0)
    original = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4)
    ).eval()  # of (N, 4, 3): the norm's channels are the positions
    longer = clone(original)
    longer[0].weight.data.mul_(5)
    found = as_long_as(longer, original, Batch((torch.randn(1, 4, 3),), {}, None))
    assert all(
        torch.equal(a, b)
        for a, b in zip(found.state_dict().values(), longer.state_dict().values(), strict=True)
    )


def test_lengths_are_even_after_least_squares():
    batches = calibration(count=6)
    original = reestimate_batchnorm(net(), batches)
    sparse = mb.sparsify(
        original,
        sparsity=0.9,
        allocation="uniform",
        data=iter(batches),
        samples=1000,
        repair="least-squares",
    )
    kept = original.conv.weight * (sparse.conv.weight != 0)
    torch.testing.assert_close(
        sparse.conv.weight.flatten(1).norm(dim=1), kept.flatten(1).norm(dim=1)
    )


def test_bn_repair_changes_statistics_only():
    sparse = mb.sparsify(
        net(), sparsity=0.6, data=calibration(), criterion="magnitude", repair="bn"
    )
    plain = mb.sparsify(net(), sparsity=0.6, repair=None)
    for name, value in sparse.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]) != (
            "running" in name or "num_batches" in name
        )
