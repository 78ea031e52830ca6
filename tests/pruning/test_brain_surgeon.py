"""Brain surgeon's costs and its trial, against least squares and numbers by hand."""

import pytest
import torch
from torch import nn

from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError
from mirabelle.channels.groups import Group, Slot, analyze
from mirabelle.fitting.gram import RIDGE, Gram, gram_matrices
from mirabelle.pruning import prune
from mirabelle.pruning.brain_surgeon import Reader
from mirabelle.pruning.criteria import CRITERIA
from mirabelle.pruning.stats import Stats, collect
from tests.modules import Head, Net, image
from tests.networks import make
from tests.pruning.labeled import labeled


def test_brain_surgeon_by_hand():
    # Apart, each costs w²(h + r) of the energy 4 + 9; the cheaper one goes first. r is RIDGE times
    # the mean of 4, 1 and the constant's 1.
    r = 2 * RIDGE
    torch.testing.assert_close(
        read_by_a_linear_layer([1.0, 3.0], [[4.0, 0.0], [0.0, 1.0]]),
        torch.tensor([(4 + r) / 13, 9 * (1 + r) / 13]).double(),
        rtol=1e-5,
        atol=0,
    )
    # Together: energy 1 + 2 * 0.5 + 1. Without the first, 1 + r - 0.5² / (1 + r) is lost and the
    # second takes 0.5 / (1 + r) more; then that is lost.
    h = 1 + RIDGE
    torch.testing.assert_close(
        read_by_a_linear_layer([1.0, 1.0], [[1.0, 0.5], [0.5, 1.0]]),
        torch.tensor([(h - 0.25 / h) / 3, (1 + 0.5 / h) ** 2 * h / 3]).double(),
        rtol=1e-5,
        atol=0,
    )
    # One twice another: the first of them costs nothing, and then what is left is worth all of
    # both.
    first, second, third = read_by_a_linear_layer(
        [1.0, 1.0, 2.0], [[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 1.0]]
    ).tolist()
    assert first < 0.01 and abs(second - 9 / 13) < 0.02 and abs(third - 4 / 13) < 0.02


def test_brain_surgeon_costs_are_errors_of_least_squares():
    """Each cost, at each stage of the removal, is how much the error of the best weights without
    the channel grows.
    """
    generator = torch.Generator().manual_seed(0)
    n, block, outputs = 5, 4, 3
    a = (
        torch.randn(200, n * block, generator=generator).double()
        @ torch.randn(n * block, n * block, generator=generator).double()
    )
    w = torch.randn(outputs, n * block, generator=generator).double()
    reader = Reader(torch.linalg.inv(a.T @ a), w, block)

    def error(present: list[int]) -> float:
        left = a.view(200, n, block)[:, present].reshape(200, -1)
        y = a @ w.T
        return float((y - left @ torch.linalg.lstsq(left, y).solution).square().sum())

    present = list(range(n))
    while len(present) > 1:
        expected = [error([p for p in present if p != c]) - error(present) for c in present]
        costs = reader.costs()
        torch.testing.assert_close(costs, torch.tensor(expected).double(), rtol=1e-6, atol=1e-6)
        worst = int(costs.argmin())
        reader.remove(
            torch.tensor([worst]), torch.tensor([i for i in range(len(present)) if i != worst])
        )
        del present[worst]


def test_brain_surgeon_finds_what_others_can_stand_in_for():
    """Channel 3 of a repeats channel 1: one of the two goes first, although every weight is as
    large as the others.
    """
    model = Net(
        lambda s, x: s.head(s.b(torch.relu(s.a(x)))),
        a=nn.Conv2d(3, 6, 3, padding=1),
        b=nn.Conv2d(6, 6, 3, padding=1),
        head=Head(6),
    ).eval()
    with torch.no_grad():
        model.a.weight[3], model.a.bias[3] = model.a.weight[1].clone(), model.a.bias[1].clone()
    coupling = analyze(model, as_batch(image()))
    group = next(g for g in coupling.groups if g.name == "a")
    scores = CRITERIA["brain_surgeon"](
        group, collect(model, coupling, [x for x, _ in labeled()], None, needs_gradients=False)
    )
    low, *rest = scores.sort().values.tolist()
    assert int(scores.argmin()) in (1, 3) and low < 0.05 * rest[0]


def test_sensitivities_are_those_of_a_linear_network():
    """Outputs V y: an error e of y, independent of it, changes them by e' V'V e, over their
    energy.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    data = [torch.randn(500, 4) for _ in range(8)]
    found = gram_matrices(model, ["0"], data)["0"]
    v = model[1].weight.detach().double()
    with torch.no_grad():
        outputs = model(torch.cat(data)).double()
    energy = (outputs - outputs.mean(0)).square().sum()
    torch.testing.assert_close(
        found.sensitivity, v.T @ v / energy, rtol=0.15, atol=float((v.T @ v).max() / energy) * 0.1
    )
    rows = torch.cat([torch.cat(data), torch.ones(4000, 1)], 1).double()
    torch.testing.assert_close(found.matrix[0], rows.T @ rows, rtol=1e-5, atol=1e-2)


def test_a_trial_is_the_error_of_the_outputs_by_hand():
    """Outputs 1, 3 become 0, 0: (1 + 9) over (1 + 1) about their mean 2."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0), model[2].weight.fill_(1.0)
    data = [torch.tensor([[1.0], [3.0]])]
    stats = collect(model, analyze(model, as_batch(data[0])), data, None, needs_gradients=False)
    assert stats.trial is not None and stats.trial({}) == 0
    assert stats.trial({"2.weight": torch.zeros(1, 1)}) == pytest.approx(5.0)


def test_scores_between_groups_are_those_of_the_outputs():
    """The readers of two groups are alike, but the outputs hardly see the second: a trial says so,
    and its channels go first.
    """
    torch.manual_seed(0)
    model = Net(
        lambda s, x: s.out(s.b(torch.relu(s.a(x)))) + 1e-3 * s.out(s.d(torch.relu(s.c(x)))),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 4),
        c=nn.Linear(6, 8),
        d=nn.Linear(8, 4),
        out=nn.Linear(4, 3),
    ).eval()
    data = [torch.randn(64, 6) for _ in range(4)]
    coupling = analyze(model, as_batch(data[0]))
    stats = collect(model, coupling, data, None, needs_gradients=False)
    a, c = (
        CRITERIA["brain_surgeon"](next(g for g in coupling.groups if g.name == n), stats)
        for n in "ac"
    )
    assert c.max() < 1e-3 * a.min()


def test_brain_surgeon_needs_data_but_no_labels():
    model, x = make("plain", torch.float32)
    found = [
        prune(
            model,
            x,
            macs=0.5,
            criterion="brain_surgeon",
            data=[b for b, _ in labeled()],
            align=1,
            allocation=a,
        )
        for a in (None, "worth")
    ]
    assert all(torch.equal(v, found[1].state_dict()[k]) for k, v in found[0].state_dict().items())
    with pytest.raises(InputError, match="brain_surgeon.*needs data="):
        prune(model, x, macs=0.5, criterion="brain_surgeon", align=1)


def test_data_that_can_be_read_once_give_what_lists_give():
    """And `samples` counts samples, however they are batched."""
    model, x = make("plain", torch.float32)
    whole = torch.cat([image for image, _ in labeled()])
    found = [
        prune(model, x, macs=0.5, data=data, samples=12, align=1, repair=repair).state_dict()
        for repair in ("bn", "auto")
        for data in ([whole[:8], whole[8:12]], iter([whole[:8], whole[8:]]))
    ]
    for one, other in (found[:2], found[2:]):
        assert all(torch.equal(v, other[k]) for k, v in one.items())
    assert any(not torch.equal(v, found[2][k]) for k, v in found[0].items())


def read_by_a_linear_layer(weight: list[float], gram: list[list[float]]) -> torch.Tensor:
    """The scores of channels that one output reads, which is also what gives the constant: inputs
    without a mean.
    """
    matrix = 1000 * torch.block_diag(torch.tensor(gram), torch.ones(1, 1)).double()  # of 1000 rows
    group = Group(
        "g", len(weight), (Slot("fc.weight", 1, "in", torch.arange(len(weight))[:, None]),)
    )
    return CRITERIA["brain_surgeon"](
        group, Stats({"fc.weight": torch.tensor([weight])}, read=lambda: {"fc": Gram(matrix[None])})
    )
