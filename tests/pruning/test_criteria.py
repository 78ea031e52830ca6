"""Criteria against hand counts and autograd, and what every criterion promises."""

import pytest
import torch
from torch import nn

from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError
from mirabelle.channels.groups import Group, Slot, analyze
from mirabelle.measurement import count_macs
from mirabelle.pruning import prune
from mirabelle.pruning.criteria import (
    CRITERIA,
    NEEDS_GRADIENTS,
    NEEDS_SAMPLES,
    NORMALIZATIONS,
    group_scores,
)
from mirabelle.pruning.stats import Stats, collect
from tests.modules import Head, Net, image
from tests.networks import make
from tests.pruning.labeled import labeled, scored, tiny


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


@pytest.mark.parametrize("normalize", ["mean", "max", "norm"])
def test_small_scores_are_made_comparable_like_large_ones(normalize):
    large = torch.tensor([[3.0, 1.0], [2.0, 4.0]])
    scale = torch.tensor([[1e-7], [1e5]])
    rule = NORMALIZATIONS[normalize]
    torch.testing.assert_close(rule(large * scale), rule(large))
    assert rule(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]  # a layer of zeros stays one
    assert NORMALIZATIONS["none"](large) is large


def test_scores_of_ones_own_are_added_as_they_are():
    """Neither made comparable nor averaged, whatever they are called; a row is one layer."""
    _, group, stats = tiny()
    table = torch.tensor([[1.0, 2.0], [10.0, 40.0]], dtype=torch.float64, requires_grad=True)
    for name in ("own:function", lambda g, s: table):
        found = group_scores(name, lambda g, s: table, group, stats, None, None)
        assert found.tolist() == [11.0, 42.0] and found.dtype is torch.float32
        assert not found.requires_grad
    one = group_scores("own:function", lambda g, s: [3, 4], group, stats, None, "max")
    assert one.tolist() == [3.0, 4.0]
    for wrong in (torch.ones(0, 2), torch.ones(()), torch.ones(3)):
        with pytest.raises(InputError, match="gave scores of shape"):
            group_scores("l2", lambda g, s, w=wrong: w, group, stats, None, None)


def test_a_mistake_in_a_criterion_of_ones_own_names_it():
    def mine(group, stats):
        raise RuntimeError("no such thing")

    _, group, stats = tiny()
    with pytest.raises(InputError, match="criterion 'own:mine' on group 'a'.*no such thing"):
        group_scores("own:mine", mine, group, stats, None, None)
    with pytest.raises(RuntimeError, match="no such thing"):  # ours would be a defect of ours
        group_scores("l2", mine, group, stats, None, None)


def test_layers_without_gradients_and_scales_are_left_out():
    """Of two filters the first alone has gradients; of two BatchNorms one has no scale."""
    place = torch.zeros(1, 1, dtype=torch.int64)
    names = ("a.weight", "b.weight")
    group = Group(
        "a",
        1,
        (
            *(Slot(n, 0, "out", place) for n in names),
            *(Slot(n, 0, "along", place) for n in ("bn.weight", "bn.running_var", "no.weight")),
        ),
    )
    tensors = {n: torch.tensor([[2.0, -3.0]]) for n in names}
    tensors |= {n: torch.tensor([-4.0]) for n in ("bn.weight", "bn.running_var", "no.weight")}
    stats = Stats(
        tensors,
        {"a.weight": torch.tensor([[5.0, 7.0]])},
        products={
            ("a", "a.weight", 0): torch.tensor([[2.0], [4.0]]),
            ("a", "bn.weight", 0): torch.tensor([[1.0], [3.0]]),
        },
        squares={("a", "a.weight", 0): torch.tensor([6.0])},
        scales=frozenset({"bn.weight"}),
    )
    assert CRITERIA["taylor_weight"](group, stats).tolist() == [[10.0 + 21.0]]
    assert CRITERIA["taylor_filter"](group, stats).tolist() == [[10.0]]
    assert CRITERIA["taylor_squares"](group, stats).tolist() == [[6.0]]
    assert CRITERIA["taylor_bn"](group, stats).tolist() == [[5.0]]  # no shift: (1² + 3²) / 2
    assert CRITERIA["bn_scale"](group, stats).tolist() == [[4.0]]
    assert CRITERIA["l1"](group, stats).tolist() == [[5.0], [5.0]]


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


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("network", ["residual", "dense", "grouped", "depthwise"])
def test_contract_of_criteria(name, network):
    """Each gives one finite score a channel, says the same twice, and prunes; with dead filters it
    finds them.
    """
    model, x = make(network, torch.float32)
    coupling = analyze(model, as_batch(x))
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
        labeled(2),
        None,
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
    small = prune(model, x, macs=0.6, criterion=name, data=labeled(), samples=16, align=1)
    assert count_macs(small, x) <= 0.6 * count_macs(model, x)
    assert CRITERIA[name].__doc__


def first_stays(group, stats):
    return torch.arange(group.channels, 0, -1)


def test_criteria_of_ones_own():
    model, x = make("plain", torch.float32)
    by_name = prune(
        model, x, params=0.5, criterion="tests.pruning.test_criteria:first_stays", align=1
    )
    by_call = prune(model, x, params=0.5, criterion=first_stays, align=1)
    n = by_call.a[0].out_channels
    assert 0 < n < 8 and torch.equal(by_call.a[0].weight, model.a[0].weight[:n])
    assert torch.equal(by_name.a[0].weight, by_call.a[0].weight)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (lambda g, s: torch.ones(g.channels, 2), r"shape \(8, 2\).*expected \(8,\)"),
        (lambda g, s: torch.ones(1, 2, g.channels), r"shape \(1, 2, 8\).*expected \(8,\)"),
        (lambda g, s: torch.full((g.channels,), float("nan")), "NaN or infinite"),
        ("tailor", "did you mean 'taylor'"),
        ("no_such_module:f", "no module 'no_such_module'"),
        ("tests.pruning.test_criteria:first_stay", "did you mean 'first_stays'"),
        (7, "criterion is 7; expected one of"),
    ],
)
def test_bad_criteria(criterion, message):
    model, x = make("plain", torch.float32)
    with pytest.raises(InputError, match=message):
        prune(model, x, macs=0.5, criterion=criterion, align=1)


def test_l1_by_hand():
    _, group, stats = tiny()
    # a: 7, 1 over their mean 4; b: 2, 4 over 3; the mean of the two.
    torch.testing.assert_close(
        scored("l1", group, stats), torch.tensor([(7 / 4 + 2 / 3) / 2, (1 / 4 + 4 / 3) / 2])
    )
