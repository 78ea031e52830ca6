"""Criteria against hand counts and autograd, allocation against its promises, repair against plain
averages, errors before long work.
"""

import itertools
import json
from importlib import import_module

import networks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mirabelle.base.data import as_batch, example_inputs
from mirabelle.base.errors import CaptureError, InputError
from mirabelle.channels.explain import explain
from mirabelle.channels.groups import Group, Slot, analyse
from mirabelle.channels.surgery import remove
from mirabelle.fitting.batchnorm import reestimate_batchnorm
from mirabelle.fitting.gram import RIDGE, Moments, layer_moments
from mirabelle.fitting.least_squares import Pair
from mirabelle.measurement import count_macs, count_parameters
from mirabelle.pruning import prune
from mirabelle.pruning.allocation import (
    ALLOCATIONS,
    Macs,
    aligned,
    check_feasible,
    cost_curve,
    step,
)
from mirabelle.pruning.api import plan, settings_of
from mirabelle.pruning.brain_surgeon import Reader
from mirabelle.pruning.criteria import CRITERIA, NEEDS_GRADIENTS, NEEDS_SAMPLES, group_scores
from mirabelle.pruning.latency import LatencyModel
from mirabelle.pruning.reconstruct import Cut, reconstruct
from mirabelle.pruning.repair import REPAIRS
from mirabelle.pruning.stats import Stats, collect
from tests.networks import Head, Net, conv_bn, image, make


def labelled(
    count: int = 3, n: int = 8, classes: int = 3, size: int = 8, dtype=torch.float32
) -> list:
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(n, 3, size, size, generator=generator).to(dtype),
            torch.randint(0, classes, (n,), generator=generator),
        )
        for _ in range(count)
    ]


def tiny() -> tuple[nn.Module, Group, Stats]:
    """Two coupled 1x1 convolutions of two filters over two channels, BatchNorm behind the first."""
    model = Net(
        lambda s, x: s.head(s.bn(s.a(x)) + s.b(x)),
        a=nn.Conv2d(2, 2, 1, bias=False),
        bn=nn.BatchNorm2d(2),
        b=nn.Conv2d(2, 2, 1),
        head=Head(2),
    )
    model.a.weight.data = torch.tensor([[3.0, -4.0], [1.0, 0.0]]).view(2, 2, 1, 1)
    model.b.weight.data = torch.tensor([[1.0, 1.0], [-2.0, 2.0]]).view(2, 2, 1, 1)
    model.bn.weight.data = torch.tensor([0.5, -2.0])
    (group,) = (coupling := analyse(model, as_batch(image(channels=2)))).groups
    return model, group, collect(model, coupling, None, None, 1, needs_gradients=False)


def scored(name: str, group: Group, stats: Stats, **options) -> torch.Tensor:
    """The scores of a criterion with its defaults, or with `normalize` and `aggregate`."""
    return group_scores(
        name, CRITERIA[name], group, stats, options.get("normalize"), options.get("aggregate")
    )


# --- criteria
# --------------------------------------------------------------------------------------------------


def test_l1_by_hand():
    _, group, stats = tiny()
    # a: 7, 1 over their mean 4; b: 2, 4 over 3; the mean of the two.
    torch.testing.assert_close(
        scored("l1", group, stats), torch.tensor([(7 / 4 + 2 / 3) / 2, (1 / 4 + 4 / 3) / 2])
    )


def test_l2_by_hand():
    _, group, stats = tiny()
    r2, r8 = 2**0.5, 8**0.5
    torch.testing.assert_close(
        scored("l2", group, stats),
        torch.tensor([(5 / 3 + 2 * r2 / (r2 + r8)) / 2, (1 / 3 + 2 * r8 / (r2 + r8)) / 2]),
    )


def test_geometric_median_by_hand():
    """Three filters on a line at 0, 3 and 4: distances 3+4, 3+1 and 4+1, of which the mean
    is 16/3.
    """
    weight = torch.tensor([[0.0, 0.0], [0.0, 3.0], [0.0, 4.0]])
    group = Group(
        "fc",
        3,
        (
            Slot("fc.weight", 0, "out", torch.arange(3)[:, None]),
            Slot("next.weight", 1, "in", torch.arange(3)[:, None]),
        ),
    )
    found = scored("geometric_median", group, Stats({"fc.weight": weight}))
    torch.testing.assert_close(found, torch.tensor([7.0, 4.0, 5.0]) * 3 / 16)


def test_bn_scale_by_hand():
    _, group, stats = tiny()
    torch.testing.assert_close(scored("bn_scale", group, stats), torch.tensor([0.5, 2.0]))


def test_bn_scale_needs_batchnorm():
    model = Net(lambda s, x: s.head(torch.relu(s.a(x))), a=nn.Conv2d(3, 8, 1), head=Head(8))
    with pytest.raises(InputError, match=r"bn_scale.*'a'.*no BatchNorm"):
        prune(model, image(), macs=0.5, criterion="bn_scale", align=1)


@pytest.mark.parametrize(
    ("normalize", "aggregate", "expected"),
    [
        ("none", "sum", [9.0, 5.0]),  # a: 7, 1; b: 2, 4
        ("none", "mean", [4.5, 2.5]),
        ("none", "max", [7.0, 4.0]),
        ("max", "sum", [1 + 2 / 4, 1 / 7 + 1]),
        ("norm", "max", [7 / 50**0.5, 4 / 20**0.5]),
        ("mean", "sum", [7 / 4 + 2 / 3, 1 / 4 + 4 / 3]),
    ],
)
def test_layers_are_made_comparable_and_put_together_by_hand(normalize, aggregate, expected):
    _, group, stats = tiny()
    torch.testing.assert_close(
        scored("l1", group, stats, normalize=normalize, aggregate=aggregate), torch.tensor(expected)
    )


def test_taylor_formulas_by_hand():
    group = Group("g", 2, tiny()[1].slots)
    stats = Stats({}, changes={"g": torch.tensor([[1.0, -2.0], [3.0, 2.0]])})
    assert scored("taylor", group, stats).tolist() == [5.0, 4.0]  # (1 + 9) / 2, (4 + 4) / 2
    assert scored("fisher", group, stats).tolist() == [
        2.5,
        2.0,
    ]  # half of that: the rows are samples then
    # (1 + 3) / 2 and (2 + 2) / 2, over the root of their squares
    torch.testing.assert_close(
        scored("taylor_activation", group, stats), torch.tensor([2.0, 2.0]) / 8**0.5
    )
    weights = {
        "a.weight": torch.tensor([[1.0, -2.0], [3.0, 1.0]]).view(2, 2, 1, 1),
        "b.weight": torch.ones(2, 2, 1, 1),
    }
    gradients = {
        "a.weight": torch.tensor([[2.0, 2.0], [0.5, -1.0]]).view(2, 2, 1, 1),
        "b.weight": torch.tensor([[0.0, -1.0], [0.0, 0.0]]).view(2, 2, 1, 1),
    }
    # |1*2| + |-2*2| + |0| + |-1| and |3*0.5| + |1*-1|
    assert scored("taylor_weight", group, Stats(weights, gradients)).tolist() == [7.0, 2.5]


def test_the_sum_inside_and_outside_the_square_by_hand():
    """One filter of the weights 1, -2 whose products with the gradients of two batches are 2, -4
    and 1, 1; BatchNorm's are 3 and -1, 0 and 2.
    """
    group = Group(
        "a",
        1,
        (
            Slot("a.weight", 0, "out", torch.zeros(1, 1, dtype=torch.int64)),
            Slot("bn.weight", 0, "along", torch.zeros(1, 1, dtype=torch.int64)),
            Slot("bn.bias", 0, "along", torch.zeros(1, 1, dtype=torch.int64)),
        ),
    )
    key = {n: ("a", n, 0) for n in ("a.weight", "bn.weight", "bn.bias")}
    stats = Stats(
        {},
        products={
            key["a.weight"]: torch.tensor([[2.0 - 4.0], [1.0 + 1.0]]),
            key["bn.weight"]: torch.tensor([[3.0], [0.0]]),
            key["bn.bias"]: torch.tensor([[-1.0], [2.0]]),
        },
        squares={key["a.weight"]: torch.tensor([((4 + 16) + (1 + 1)) / 2])},
        scales=frozenset({"bn.weight"}),
    )
    assert scored("taylor_filter", group, stats).tolist() == [4.0]  # ((2 - 4)² + (1 + 1)²) / 2
    assert scored("taylor_squares", group, stats).tolist() == [11.0]
    assert scored("taylor_bn", group, stats).tolist() == [4.0]  # ((3 - 1)² + (0 + 2)²) / 2


def test_products_and_squares_are_those_of_weights_and_their_gradients():
    model, x = make("residual")
    model.eval()
    data = labelled(count=2, dtype=torch.float64)
    coupling = analyse(model, as_batch(x))
    stats = collect(model, coupling, data, None, 2, needs_gradients=True)
    group = next(g for g in coupling.groups if g.name == "b.0")
    inside, outside, gate = [], [], []
    for inputs, target in data:
        loss = nn.functional.cross_entropy(model(inputs), target)
        bn = model.b[1]
        dw, dgamma, dbeta = torch.autograd.grad(loss, [model.b[0].weight, bn.weight, bn.bias])
        product = model.b[0].weight * dw
        inside.append(product.sum((1, 2, 3)) ** 2)
        outside.append((product**2).sum((1, 2, 3)))
        gate.append((bn.weight * dgamma + bn.bias * dbeta) ** 2)
    for name, rows in (("taylor_filter", inside), ("taylor_squares", outside), ("taylor_bn", gate)):
        torch.testing.assert_close(
            scored(name, group, stats), torch.stack(rows).mean(0).float(), rtol=1e-4, atol=1e-12
        )


def test_fisher_is_summed_over_samples_and_not_overwritten():
    """Each sample by itself, all of them counted, whatever the batches: the gradient of a batch of
    two would have cancelled.
    """
    model, x = make("residual")
    model.eval()
    data = labelled(count=2, n=4, dtype=torch.float64)
    coupling = analyse(model, as_batch(x))
    stats = collect(model, coupling, data, None, 2, needs_gradients=True, by_sample=True)
    gated, changes = Gated(model), []
    for inputs, target in data:
        for i in range(4):
            loss = nn.functional.cross_entropy(gated(inputs[i : i + 1]), target[i : i + 1])
            changes.append(torch.autograd.grad(loss, gated.gate)[0])
    group = next(g for g in coupling.groups if g.name == "a.0")
    torch.testing.assert_close(
        scored("fisher", group, stats),
        (torch.stack(changes) ** 2).mean(0).float() / 2,
        rtol=1e-4,
        atol=1e-12,
    )
    assert stats.changes["a.0"].shape == (8, 8)
    one = [tuple(torch.cat(parts) for parts in zip(*data))]
    again = collect(model, coupling, one, None, 1, needs_gradients=True, by_sample=True)
    torch.testing.assert_close(scored("fisher", group, stats), scored("fisher", group, again))


def read_by_a_linear_layer(weight: list[float], gram: list[list[float]]) -> torch.Tensor:
    """The scores of channels that one output reads, which is also what gives the constant: inputs
    without a mean.
    """
    moments = 1000 * torch.block_diag(torch.tensor(gram), torch.ones(1, 1)).double()  # of 1000 rows
    group = Group(
        "g", len(weight), (Slot("fc.weight", 1, "in", torch.arange(len(weight))[:, None]),)
    )
    return CRITERIA["brain_surgeon"](
        group,
        Stats({"fc.weight": torch.tensor([weight])}, read=lambda: {"fc": Moments(moments[None])}),
    )


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
    coupling = analyse(model, as_batch(image()))
    group = next(g for g in coupling.groups if g.name == "a")
    scores = CRITERIA["brain_surgeon"](
        group, collect(model, coupling, [x for x, _ in labelled()], None, 3, needs_gradients=False)
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
    found = layer_moments(model, ["0"], data, 8)["0"]
    v = model[1].weight.detach().double()
    with torch.no_grad():
        outputs = model(torch.cat(data)).double()
    energy = (outputs - outputs.mean(0)).square().sum()
    torch.testing.assert_close(
        found.sensitivity, v.T @ v / energy, rtol=0.15, atol=float((v.T @ v).max() / energy) * 0.1
    )
    rows = torch.cat([torch.cat(data), torch.ones(4000, 1)], 1).double()
    torch.testing.assert_close(found.gram[0], rows.T @ rows, rtol=1e-5, atol=1e-2)


def test_a_trial_is_the_error_of_the_outputs_by_hand():
    """Outputs 1, 3 become 0, 0: (1 + 9) over (1 + 1) about their mean 2."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0), model[2].weight.fill_(1.0)
    data = [torch.tensor([[1.0], [3.0]])]
    stats = collect(model, analyse(model, as_batch(data[0])), data, None, 1, needs_gradients=False)
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
    coupling = analyse(model, as_batch(data[0]))
    stats = collect(model, coupling, data, None, 4, needs_gradients=False)
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
            data=[b for b, _ in labelled()],
            align=1,
            allocation=a,
        )
        for a in (None, "worth")
    ]
    assert all(torch.equal(v, found[1].state_dict()[k]) for k, v in found[0].state_dict().items())
    with pytest.raises(InputError, match="brain_surgeon.*needs data="):
        prune(model, x, macs=0.5, criterion="brain_surgeon", align=1)
    with pytest.raises(InputError, match="read only once"):
        prune(model, x, macs=0.5, criterion="brain_surgeon", data=iter(labelled()), align=1)


class Gated(nn.Module):
    """The residual network of `networks`, with a gate for each channel of the stream where it is
    read: by b and by the head.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.gate = model, nn.Parameter(torch.ones(8, dtype=torch.float64))

    def forward(self, x):
        s, gate = self.model, self.gate.view(8, 1, 1)
        y = torch.relu(s.a(x))
        return s.head(torch.relu(y + s.c(torch.relu(s.b(y * gate)))) * gate)


def test_changes_are_the_gradient_of_a_gate():
    model, x = make("residual")
    model.eval()
    data = labelled(dtype=torch.float64)
    coupling = analyse(model, as_batch(x))
    stats = collect(model, coupling, data, None, 3, needs_gradients=True)
    gated = Gated(model)
    weights = []
    for i, (inputs, target) in enumerate(data):
        loss = nn.functional.cross_entropy(gated(inputs), target)
        (gradient,) = torch.autograd.grad(loss, gated.gate, retain_graph=True)
        weights.append(torch.autograd.grad(loss, model.b[0].weight)[0])
        # The change of the loss to first order, when a gate goes from 1 to 0.
        torch.testing.assert_close(
            stats.changes["a.0"][i].double(), -gradient, rtol=1e-5, atol=1e-8
        )
    torch.testing.assert_close(stats.gradients["b.0.weight"], torch.stack(weights).mean(0))
    assert stats.changes["a.0"].shape == (3, 8) and stats.changes["b.0"].shape == (3, 6)


def test_collecting_leaves_the_network_alone():
    model, x = make("residual", torch.float32)
    model.train()
    model.a[0].weight.requires_grad_(False)
    model.fresh = nn.Parameter(torch.ones(1))
    model.fresh.grad = torch.full((1,), 7.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    prune(model, x, macs=0.6, data=labelled(), batches=2, align=1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training and all(m.training for m in model.modules())
    assert not model.a[0].weight.requires_grad and model.b[0].weight.requires_grad
    assert model.fresh.grad.item() == 7 and model.b[0].weight.grad is None


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("network", ["residual", "dense", "grouped", "depthwise"])
def test_contract_of_criteria(name, network):
    """Each gives one finite score a channel, says the same twice, and prunes; with dead filters it
    finds them.
    """
    model, x = make(network, torch.float32)
    coupling = analyse(model, as_batch(x))
    for group in coupling.groups:  # channel 0 of each group makes nothing and nobody reads it
        for slot in group.slots:
            tensor = (
                model.get_parameter(slot.parameter) if "running" not in slot.parameter else None
            )
            if tensor is not None:
                tensor.data.index_fill_(slot.dim, slot.index[0], 0)
    stats = collect(
        model,
        coupling,
        labelled(),
        None,
        2,
        needs_gradients=name in NEEDS_GRADIENTS,
        by_sample=name in NEEDS_SAMPLES,
    )
    for group in coupling.groups:
        torch.manual_seed(0)
        scores = scored(name, group, stats)
        assert scores.shape == (group.channels,) and bool(torch.isfinite(scores).all())
        torch.manual_seed(0)
        assert torch.equal(scores, scored(name, group, stats))
        if name != "random":
            assert int(scores.argmin()) == 0
    small = prune(model, x, macs=0.6, criterion=name, data=labelled(), batches=2, align=1)
    assert count_macs(small, x) <= 0.6 * count_macs(model, x)
    assert CRITERIA[name].__doc__


def first_stays(group, stats):
    return torch.arange(group.channels, 0, -1)


def test_criteria_of_ones_own():
    model, x = make("plain", torch.float32)
    by_name = prune(model, x, params=0.5, criterion="tests.pruning.test_prune:first_stays", align=1)
    by_call = prune(model, x, params=0.5, criterion=first_stays, align=1)
    n = by_call.a[0].out_channels
    assert 0 < n < 8 and torch.equal(by_call.a[0].weight, model.a[0].weight[:n])
    assert torch.equal(by_name.a[0].weight, by_call.a[0].weight)


SETTINGS = settings_of(macs=0.6, criterion="l1", align=1, repair=None)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (lambda g, s: torch.ones(g.channels, 2), r"shape \(8, 2\).*expected \(8,\)"),
        (lambda g, s: torch.ones(1, 2, g.channels), r"shape \(1, 2, 8\).*expected \(8,\)"),
        (lambda g, s: torch.full((g.channels,), float("nan")), "NaN or infinite"),
        ("tailor", "did you mean 'taylor'"),
        ("no_such_module:f", "no module 'no_such_module'"),
        ("tests.pruning.test_prune:first_stay", "did you mean 'first_stays'"),
        (7, "criterion is 7; expected one of"),
    ],
)
def test_bad_criteria(criterion, message):
    model, x = make("plain", torch.float32)
    with pytest.raises(InputError, match=message):
        prune(model, x, macs=0.5, criterion=criterion, align=1)


# --- allocation
# --------------------------------------------------------------------------------------------------


def test_aligned_is_nearest():
    group = Group("g", 30, ())
    assert [aligned(n, group, 8, 0.1) for n in (30, 29, 28, 27, 26, 21, 20, 19, 5, 0)] == [
        30,
        30,
        30,
        24,
        24,
        24,
        24,
        16,
        8,
        8,
    ]
    assert all(aligned(n, Group("g", 5, ()), 8, 0.1) == 5 for n in range(6))
    assert [aligned(n, group, 1, 0.1) for n in (0, 1, 3, 17)] == [3, 3, 3, 17]


def test_heads_are_aligned_by_the_channels_that_they_are():
    """A head of 16 channels is two blocks of 8 by itself, one of 4 half a block."""
    index = torch.arange(12 * 16).view(12, 16)
    assert [
        step(Group("heads", 12, (Slot("qkv.weight", 0, "out", i),)), 8)
        for i in (index, index[:, :4], index[:, :3], index[:, :1])
    ] == [1, 2, 8, 8]
    heads = Group(
        "heads",
        12,
        (Slot("qkv.weight", 0, "out", index), Slot("bias_table", 1, "along", index[:, :1])),
    )
    assert [aligned(n, heads, 8, 0.1) for n in (12, 11, 7, 1, 0)] == [12, 11, 7, 1, 1]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    channels=st.integers(1, 100),
    align=st.sampled_from([1, 4, 8, 16]),
    least=st.floats(0.01, 1),
    count=st.integers(0, 100),
)
def test_aligned_counts(channels, align, least, count):
    group = Group("g", channels, ())
    found = aligned(min(count, channels), group, align, least)
    assert found == channels or found % align == 0
    assert max(1, round(least * channels)) <= found <= channels
    assert found <= aligned(min(count + 1, channels), group, align, least)
    if found not in (channels, aligned(0, group, align, least)):
        assert abs(found - min(count, channels)) <= align / 2


WIDE = analyse(networks.BottleneckNet(16, (1, 2, 1, 1)), as_batch(image(size=32)))


@pytest.mark.parametrize("name", ALLOCATIONS)
@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    fraction=st.floats(0.15, 1),
    align=st.sampled_from([1, 8]),
    seed=st.integers(0, 9),
    what=st.sampled_from(["macs", "params"]),
)
def test_contract_of_allocations(name, fraction, align, seed, what):
    cost = (
        WIDE.macs
        if what == "macs"
        else lambda kept: WIDE.parameters(kept, [n for n in WIDE.shapes if "running" not in n])
    )
    generator = torch.Generator().manual_seed(seed)
    scores = {
        g.name: torch.rand(g.channels, generator=generator) * (1 + i)
        for i, g in enumerate(WIDE.groups)
    }
    whole = cost({})
    try:
        check_feasible(WIDE, cost, fraction * whole, whole, align, 0.1, what)
    except InputError:
        assert align == 8  # 0.1 of 16 channels is 8 then
        return
    kept = ALLOCATIONS[name](WIDE, scores, cost, fraction * whole, align, 0.1)
    assert kept.keys() == {g.name for g in WIDE.groups}
    for group in WIDE.groups:
        count = kept[group.name]
        assert max(1, round(0.1 * group.channels)) <= count <= group.channels
        assert count == group.channels or count % align == 0
    assert cost(kept) <= fraction * whole
    if align == 1:
        assert cost(kept) >= (fraction - 0.02) * whole
    assert fraction < 1 or all(kept[g.name] == g.channels for g in WIDE.groups)
    more = ALLOCATIONS[name](WIDE, scores, cost, min(1.0, fraction + 0.1) * whole, align, 0.1)
    assert cost(more) >= cost(kept)


def test_a_global_order_takes_the_worst_channels():
    model, x = make("plain", torch.float32)
    coupling = analyse(model, as_batch(x))
    a, b = coupling.groups
    scores = {a.name: torch.arange(8.0) + 100, b.name: torch.arange(12.0)}
    kept = ALLOCATIONS["global"](coupling, scores, coupling.macs, 0.7 * coupling.macs(), 1, 0.1)
    assert kept[a.name] == 8 and kept[b.name] == max(
        n for n in range(13) if coupling.macs({b.name: n}) <= 0.7 * coupling.macs()
    )
    shares = ALLOCATIONS["uniform"](coupling, scores, coupling.macs, 0.5 * coupling.macs(), 1, 0.1)
    assert abs(shares[a.name] / 8 - shares[b.name] / 12) < 0.2


def importance(scores: dict, kept: dict) -> float:
    return sum(
        float(scores[name].sort(descending=True).values[:count].sum())
        for name, count in kept.items()
    )


def by_parameters(coupling):
    return lambda kept: coupling.parameters(kept, coupling.shapes)


def in_blocks(coupling):
    """Kernels that write a block of channels as a whole, and hardly sum over more than there is."""
    layers = np.array([[0.01, cost.macs / coupling.macs(), 0.01] for cost in coupling.costs])
    return LatencyModel(layers, np.array([0.02, 0.02]), coupling, 2, (1.0, 0.25))


@pytest.mark.parametrize("costly", [Macs, by_parameters, in_blocks])
@pytest.mark.parametrize("network", ["residual", "dense", "bottlenecks"])
def test_what_a_group_costs_at_each_of_its_widths(network, costly):
    model, x = make(network, torch.float32)
    coupling = analyse(model, as_batch(x))
    cost = costly(coupling)
    half = {g.name: -(-g.channels // 2) for g in coupling.groups}
    for g in coupling.groups:
        curve = cost_curve(coupling, cost, half, g.name, np.arange(1, g.channels + 1))
        expected = np.array([cost({**half, g.name: width}) for width in range(1, g.channels + 1)])
        assert curve - curve[-1] == pytest.approx(expected - expected[-1], abs=1e-9 * cost({}))


@pytest.mark.parametrize("costly", [Macs, by_parameters, in_blocks])
@pytest.mark.parametrize("network", ["plain", "dense"])
def test_the_knapsack_is_close_to_the_best_of_all_widths(network, costly):
    """Against every combination of widths, for random scores and budgets: never 2 % worse, and no
    worse than sorting by worth.
    """
    model, x = make(network, torch.float32)
    coupling = analyse(model, as_batch(x))
    cost = costly(coupling)
    names = [g.name for g in coupling.groups]
    every = [
        dict(zip(names, widths))
        for widths in itertools.product(*(range(1, g.channels + 1) for g in coupling.groups))
    ]
    costs = [cost(kept) for kept in every]
    exact = 0
    for seed, fraction in itertools.product(range(5), (0.3, 0.5, 0.7)):
        generator = torch.Generator().manual_seed(seed)
        scores = {
            g.name: torch.rand(g.channels, generator=generator) * (1 + i)
            for i, g in enumerate(coupling.groups)
        }
        budget = fraction * cost({})
        best = max(importance(scores, kept) for kept, taken in zip(every, costs) if taken <= budget)
        found = {
            a: ALLOCATIONS[a](coupling, scores, cost, budget, 1, 0.01)
            for a in ("knapsack", "worth")
        }
        assert cost(found["knapsack"]) <= budget
        assert importance(scores, found["knapsack"]) >= max(
            0.98 * best, importance(scores, found["worth"])
        )
        exact += importance(scores, found["knapsack"]) >= best - 1e-5
    assert exact >= 8


def test_budgets_that_cannot_be_reached():
    model, x = make("plain", torch.float32)
    with pytest.raises(
        InputError, match=r"macs=0.01 cannot be reached.*align=8.*0\.\d+ of the macs stay.*least"
    ):
        prune(model, x, macs=0.01, criterion="l1")


@pytest.mark.parametrize(
    "network", ["residual", "dense", "bottlenecks", "u-net", "shared by siblings", "tied weights"]
)
@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.5}])
def test_budgets_bind(network, budget):
    model, x = make(network, torch.float32)
    small = prune(model, x, **budget, criterion="l1", align=1)
    count = (lambda m: count_macs(m, x)) if "macs" in budget else count_parameters
    assert 0.35 * count(model) < count(small) <= 0.5 * count(model)


def test_alignment_and_keep():
    model = Net(
        lambda s, x: s.head(s.c(torch.relu(s.b(torch.relu(s.a(x)))))),
        a=conv_bn(3, 32),
        b=conv_bn(32, 30),
        c=conv_bn(30, 48),
        head=Head(48),
    )
    small = prune(model, image(), macs=0.4, criterion="l2")
    assert all(n % 8 == 0 for n in (small.a[0].out_channels, small.c[0].out_channels)) and small.b[
        0
    ].out_channels in (8, 16, 24, 30)
    kept = prune(model, image(), macs=0.6, criterion="l2", keep=["b.0"])
    assert kept.b[0].weight.shape == model.b[0].weight.shape and kept.c[0].out_channels < 48


# --- repair
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REPAIRS)
def test_contract_of_repairs(name):
    model, x = make("residual", torch.float32)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    repaired = REPAIRS[name](
        model,
        Cut(model, analyse(model, example_inputs(image())), {}),
        [b for b, _ in labelled()],
        3,
    )
    assert repaired is not model and type(repaired) is type(model)
    assert repaired.training and all(
        torch.equal(v, before[k]) for k, v in model.state_dict().items()
    )
    assert repaired(x).shape == model(x).shape
    assert REPAIRS[name].__doc__


def test_batchnorm_statistics_are_plain_averages():
    model = Net(
        lambda s, x: s.d(s.bn(s.a(x))),
        a=nn.Conv2d(3, 4, 1),
        bn=nn.BatchNorm2d(4, momentum=0.3),
        d=nn.Dropout(0.5),
    )
    model.eval()
    model.d.train()
    data = labelled(4)
    repaired = reestimate_batchnorm(model, data, 3)  # the fourth batch is not read
    maps = [model.a(x) for x, _ in data[:3]]
    torch.testing.assert_close(
        repaired.bn.running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    )
    torch.testing.assert_close(
        repaired.bn.running_var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0)
    )
    assert (
        repaired.bn.momentum == 0.3
        and not repaired.bn.training
        and repaired.d.training
        and int(repaired.bn.num_batches_tracked) == 3
    )


def test_repair_without_batchnorm_changes_nothing():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 2, 3),
        nn.BatchNorm2d(2, track_running_stats=False),
    )
    repaired = reestimate_batchnorm(model, [image()], 1)
    assert all(torch.equal(v, repaired.state_dict()[k]) for k, v in model.state_dict().items())


def test_prune_repairs():
    model, x = make("plain", torch.float32)
    data = labelled()
    raw = prune(model, x, macs=0.5, criterion="l1", align=1, repair=None, data=data)
    mended = prune(model, x, macs=0.5, criterion="l1", align=1, data=data)
    assert torch.equal(raw.a[0].weight, mended.a[0].weight) and not torch.equal(
        raw.b[1].running_mean, mended.b[1].running_mean
    )
    assert torch.equal(
        mended.b[1].running_mean, reestimate_batchnorm(raw, data, 16).b[1].running_mean
    )


# --- errors
# --------------------------------------------------------------------------------------------------


def never(*_):
    raise AssertionError("work was started")


def wrong(kind: str) -> dict:
    model, x = make("plain", torch.float32)
    arguments = {
        "model": model,
        "x": x,
        "macs": 0.5,
        "criterion": "taylor",
        "data": labelled(),
        "align": 1,
        "loss": never,
    }
    if kind == "nan":
        model.b[0].weight.data[0, 0, 0, 0] = float("nan")
    return arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.randn(2, 4, 8, 8)}, r"\(2, 4, 8, 8\)"),
        ({"x": "image.png"}, "example input is a str"),
        ({"model": "resnet50"}, "model is a str"),
        ({"model": torch.relu}, "expected a torch.nn.Module"),
        ({"macs": 0}, "macs is 0; expected a number above 0 and at most 1"),
        ({"macs": 1.5}, "macs is 1.5"),
        ({"macs": True}, "macs is True"),
        ({"macs": "half"}, "macs is 'half'"),
        ({"macs": float("nan")}, "macs is nan"),
        ({"params": 0.5}, "exactly one budget.*macs, params"),
        ({"macs": None}, "exactly one budget.*none"),
        ({"align": 0}, "align is 0; expected a positive integer"),
        ({"align": 1.5}, "align is 1.5"),
        ({"batches": 0}, "batches is 0"),
        ({"least": 0}, "least is 0"),
        ({"keep": ["aa"]}, r"'aa'.*did you mean 'a'"),
        ({"repair": "bm"}, "repair is 'bm'.*bn"),
        ({"allocation": "globl"}, "did you mean 'global'"),
        ({"normalize": "means"}, "normalize is 'means'.*mean"),
        ({"aggregate": "summ"}, "aggregate is 'summ'.*sum"),
        ({"loss": "cross entropi"}, "loss is 'cross entropi'.*did you mean 'cross_entropy'"),
        ({"loss": 3}, r"loss is 3; expected one of cross_entropy, .* or a callable"),
        ({"steps": 0}, "steps is 0.*the number of cuts"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"train": 3}, "train is 3; expected options of training"),
        ({"train": {"epoch": 1}}, "train is .*unknown option 'epoch'; did you mean 'epochs'"),
        ({"train": {"epochs": 1}, "data": None, "criterion": "l1"}, "train= needs data="),
        ({"steps": 2, "part": "a", "criterion": "l1"}, "a part is cut in one step"),
        ({"data": None}, "needs data="),
        ({"data": []}, "data yielded no batch"),
        ({"data": iter(labelled())}, "read only once"),
        ({"data": iter([]), "repair": None}, "exhausted iterator"),
        ({"data": [x for x, _ in labelled()]}, "has no target"),
        (
            {"data": [(torch.randn(2, 4, 8, 8), torch.zeros(2).long())]},
            r"batch 0 of data.*\(2, 4, 8, 8\)",
        ),
        ({"data": [(image(), torch.zeros(3).long())], "loss": None}, "batch 0 of data.*batch"),
        (
            {"data": [(image() * float("nan"), torch.zeros(2).long())], "loss": None},
            "not finite on batch 0",
        ),
        (
            {"model": Net(lambda s, x: s.head(x.cumsum(1)), head=Head(3))},
            "no channel of this network can be pruned.*own input",
        ),
    ],
)
def test_errors(changes, message):
    with pytest.raises(InputError, match=message):
        prune(**(wrong("") | changes))


def test_losses_have_names():
    model, options = (
        make("plain", torch.float32)[0],
        {"macs": 0.6, "criterion": "taylor", "data": labelled(), "align": 1, "repair": None},
    )
    one, other = (prune(model, image(), loss=loss, **options) for loss in ("cross_entropy", None))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_weights_that_are_nan():
    with pytest.raises(InputError, match=r"b\.0\.weight holds 1 of 864"):
        prune(**wrong("nan"))
    with pytest.raises(InputError, match=r"b\.0\.weight"):
        explain(wrong("nan")["model"], image())


def test_masks_of_minus_infinity_are_no_error():
    model, x = make("plain", torch.float32)
    model.register_buffer("mask", torch.full((2, 2), -float("inf")))
    prune(model, x, macs=0.5, criterion="l1", align=1)


def test_a_bare_name_is_one_name():
    model, x = make("plain", torch.float32)
    assert prune(model, x, params=0.7, criterion="l1", align=1, keep="a").a[0].out_channels == 8


def test_sizes_written_into_forward():
    model = Net(
        lambda s, x: s.fc(s.a(x).view(-1, 8 * 8 * 8)), a=conv_bn(3, 8), fc=nn.Linear(512, 3)
    )
    small = prune(model, image(), macs=0.5, criterion="l1", align=1)
    assert small(image(5)).shape == (5, 3) and count_macs(small, image()) <= 0.5 * count_macs(
        model, image()
    )


class Detector(nn.Module):
    """As a detector with its suppression inside: how many boxes there are depends on the data, and
    `torch.export` refuses.
    """

    def __init__(self):
        super().__init__()
        self.backbone = Net(
            lambda s, x: s.b(torch.relu(s.a(x))), a=conv_bn(3, 16), b=conv_bn(16, 4)
        )
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.head(self.backbone(x))
        return y[:, :, :4] if y.sum() > 0 else y[:, :, :2]


def test_a_part_of_a_network_that_cannot_be_captured():
    torch.manual_seed(0)
    model = Detector().train()
    with pytest.raises(CaptureError, match="if y.sum"):
        prune(model, image(), macs=0.5, criterion="l2")
    data = [x for x, _ in labelled()]
    small = prune(
        model,
        image(),
        macs=0.5,
        criterion="brain_surgeon",
        data=data,
        batches=2,
        align=1,
        part="backbone",
        repair="least-squares",
    )
    assert (
        type(small) is Detector
        and small.training
        and small.backbone.training
        and small.backbone.a[0].out_channels == 8
    )
    assert (
        small.head.weight.shape == model.head.weight.shape
        and model.backbone.a[0].out_channels == 16
    )
    small.eval()(image(5))
    for options, words in [
        ({"part": "backbon"}, "did you mean 'backbone'"),
        (
            {"part": "backbone", "criterion": "taylor", "data": labelled()},
            "loss of the whole network",
        ),
    ]:
        with pytest.raises(InputError, match=words):
            prune(model, image(), **{"macs": 0.5, "criterion": "l2", **options})


# --- determinism
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["taylor", "random"])
def test_the_same_seed_gives_the_same_bytes(criterion):
    model, x = make("dense", torch.float32)
    loader = torch.utils.data.DataLoader(
        list(itertools.chain(*(zip(a, b, strict=True) for a, b in labelled()))), 6, shuffle=True
    )
    runs = [
        prune(model, x, macs=0.5, criterion=criterion, data=loader, align=1, seed=s).state_dict()
        for s in (3, 3, 4)
    ]
    assert runs[0].keys() == runs[1].keys() and all(
        torch.equal(v, runs[1][k]) for k, v in runs[0].items()
    )
    assert any(
        v.shape != runs[2][k].shape or not torch.equal(v, runs[2][k]) for k, v in runs[0].items()
    )


def test_an_explanation_is_json():
    model, x = make("dense")
    assert json.loads(json.dumps(explain(model, x).to_dict()))["groups"][0]["channels"] == 6


# --- least squares
# --------------------------------------------------------------------------------------------------


def test_least_squares_is_exact_where_the_removed_channels_are_combinations_of_the_kept():
    """Channels 2 and 3 repeat 0 and 1: removing them must cost nothing, although the readers'
    weights on all four differ.
    """
    torch.manual_seed(0)
    model = Net(
        lambda s, x: s.head(s.b(torch.relu(s.a(x)))),
        a=nn.Conv2d(3, 4, 3, padding=1),
        b=nn.Conv2d(4, 6, 3, padding=1),
        head=Head(6),
    ).eval()
    with torch.no_grad():
        model.a.weight[2:], model.a.bias[2:] = model.a.weight[:2].clone(), model.a.bias[:2].clone()
    data = [torch.randn(16, 3, 8, 8) for _ in range(4)]
    coupling = analyse(model, as_batch(data[0]))
    group = next(g for g in coupling.groups if g.name == "a")
    removed = {group.name: torch.tensor([2, 3])}
    from mirabelle.channels.surgery import remove

    small = remove(model, coupling, removed)
    mended = reconstruct(small, Cut(model, coupling, removed), data, 4)
    x = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        cut, repaired = (float((m(x) - model(x)).norm() / model(x).norm()) for m in (small, mended))
    assert cut > 0.05 and repaired < 0.02 * cut + 2e-3
    assert torch.equal(small.a.weight, mended.a.weight)


def test_least_squares_loses_less_than_the_statistics_alone():
    model, x = make("residual", torch.float32)
    data = [image(n=16) for _ in range(3)]
    errors = {}
    for repair in (None, "bn", "least-squares"):
        small = prune(model, x, macs=0.6, criterion="l1", align=1, repair=repair, data=data)
        with torch.no_grad():
            errors[repair] = float((small(data[0]) - model(data[0])).norm())
    assert errors["least-squares"] < 0.7 * min(errors[None], errors["bn"])


def error(model: nn.Module, other: nn.Module, data: list) -> float:
    with torch.no_grad():
        return float(sum((model.eval()(x) - other.eval()(x)).square().sum() for x, _ in data))


@pytest.mark.parametrize(
    "name",
    [
        "depthwise",
        "grouped",
        "residual",
        "dense",
        "flatten",
        "squeeze-excite",
        "bottlenecks",
        "shuffle after grouped",
    ],
)
def test_least_squares_mends_layers_of_every_kind(name):
    model, x = make(name)
    model.eval()
    data = labelled(count=4, n=16, size=x.shape[-1], dtype=torch.float64)
    small, coupling, removed = plan(model, x, SETTINGS)
    mended = reconstruct(small, Cut(model, coupling, removed), data, 3)
    assert error(mended, model, data[:3]) < 0.5 * error(small, model, data[:3])
    assert error(mended, model, data[3:]) < 0.7 * error(
        small, model, data[3:]
    )  # samples that it was not solved on


def test_what_does_not_fit_into_memory_is_computed_again(monkeypatch):
    model, x = make("bottlenecks")
    data = labelled(count=2, size=16, dtype=torch.float64)
    small, coupling, removed = plan(model.eval(), x, SETTINGS)
    held = reconstruct(small, Cut(model, coupling, removed), data, 2)
    monkeypatch.setattr(import_module("mirabelle.fitting.least_squares"), "MEMORY", 0)
    again = reconstruct(small, Cut(model, coupling, removed), data, 2)
    for k, v in held.state_dict().items():
        torch.testing.assert_close(v, again.state_dict()[k])


def test_a_residual_block_mends_what_came_before_it(monkeypatch):
    """The stream d carries an error; the branch c, which is added to it, is solved so that the sum
    is right, not the branch.
    """

    def forward(s, x):
        y = s.d(torch.relu(s.a(x)))
        return s.e(y + s.c(torch.relu(s.b(y))))

    torch.manual_seed(0)
    layers = {
        "a": conv_bn(3, 8),
        "d": nn.Conv2d(8, 6, 3, 1, 1),
        "b": conv_bn(6, 12),
        "c": nn.Conv2d(12, 6, 3, 1, 1),
        "e": nn.Conv2d(6, 2, 1),
    }
    model = Net(forward, **layers).double().eval()
    data = labelled(count=2, n=16, dtype=torch.float64)
    coupling = analyse(model, as_batch(image().double()))
    removed = {"a.0": torch.arange(5)}
    small = remove(model, coupling, removed)
    cut = Cut(model, coupling, removed)
    together = reconstruct(small, cut, data, 2)
    monkeypatch.setattr(Pair, "added_to", lambda self, node: None)
    alone = reconstruct(small, cut, data, 2)

    def sums(network: nn.Module) -> torch.Tensor:
        seen = []
        handle = network.e.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        with torch.no_grad():
            for x, _ in data:
                network(x)
        handle.remove()
        return torch.cat(seen)

    expected = sums(model)
    assert (sums(together) - expected).square().sum() < 0.9 * (
        sums(alone) - expected
    ).square().sum()


def test_least_squares_says_what_is_wrong_with_the_data():
    model, x = make("plain", torch.float32)
    options = {"macs": 0.6, "criterion": "l1", "align": 1, "repair": "least-squares"}
    with pytest.raises(InputError, match=r"batch 0 of data.*\(1, 4, 8, 8\)"):
        prune(model, x, data=[torch.randn(2, 4, 8, 8)], **options)
    with pytest.raises(InputError, match="not finite on data"):
        prune(model, x, data=[x * float("nan")], **options)


def test_least_squares_on_a_network_whose_forward_fixes_the_batch():
    """len(x) is a number to torch.export, which finds out on the way: the data is read in batches
    of the example's size.
    """
    model = Net(
        lambda s, x: s.head(s.b(torch.relu(s.a(x))).reshape(len(x), -1, 8, 8)),
        a=conv_bn(3, 8),
        b=conv_bn(8, 6),
        head=Head(6),
    ).eval()
    data = [torch.randn(5, *image().shape[1:]) for _ in range(2)]
    options = {"macs": 0.6, "criterion": "l1", "align": 1, "data": data}
    mended, plain = (
        prune(model, image(), **options, repair=repair) for repair in ("least-squares", None)
    )
    with torch.no_grad():
        error = [float((m(data[0]) - model(data[0])).square().mean()) for m in (mended, plain)]
    assert error[0] < 0.7 * error[1]


# --- steps
# --------------------------------------------------------------------------------------------------


def test_cutting_and_training_in_turn():
    model, x = make("residual", torch.float32)
    data, seen = labelled(), []

    def tune(small):
        seen.append(count_macs(small, x) / count_macs(model, x))
        return small

    prune(model, x, macs=0.49, criterion="l1", align=1, steps=2, train=tune)
    assert len(seen) == 2 and 0.6 < seen[0] <= 0.7 and 0.4 < seen[1] <= 0.49
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = prune(
        model, x, macs=0.6, data=data, batches=2, align=1, steps=2, train={"epochs": 1, "lr": 1e-3}
    )
    assert count_macs(small, x) <= 0.6 * count_macs(model, x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("network", ["residual", "chunk, one part changed"])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path, network):
    model, x = make(network, torch.float32)
    data = labelled(size=x.shape[-1])
    options = {
        "macs": 0.6,
        "data": data,
        "batches": 2,
        "align": 1,
        "steps": 2,
        "train": {"epochs": 1},
    }
    expected = prune(model, x, **options)

    class KilledError(Exception):
        pass

    def read(loader, left):
        for batch in loader:
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            yield batch

    class Loader:
        def __init__(self, left):
            self.left = [left]

        def __iter__(self):
            return read(data, self.left)

        def __len__(self):
            return len(data)

    done = False
    for left in (6, 8, 12, 10**6):  # the criterion, the repair and training each read the data
        try:
            found = prune(model, x, **{**options, "data": Loader(left)}, checkpoint=tmp_path)
            done = True
        except KilledError:
            assert not done
    assert (tmp_path / "step2-trained.safetensors").is_file()
    for k, v in expected.state_dict().items():
        assert torch.equal(v, found.state_dict()[k]), k
    with pytest.raises(InputError, match="of another network or of other settings"):
        prune(model, x, **{**options, "macs": 0.5}, checkpoint=tmp_path)
