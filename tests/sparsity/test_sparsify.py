"""Sparsity: criteria and allocations by hand, masks by their properties, reconstruction against the
solution that linear algebra gives.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mirabelle as mb
from mirabelle.base.checks import clone
from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.fitting.batchnorm import reestimate_batchnorm
from mirabelle.fitting.gram import RIDGE, Moments, ridge, solve_on_support
from mirabelle.sparsity import ALLOCATIONS, CRITERIA, masks, ramp, share_of_zeros
from mirabelle.sparsity.criteria import NEEDS_GRADIENTS
from mirabelle.sparsity.filter_norms import as_long_as
from mirabelle.sparsity.layers import ScoredLayer, by_block, spread
from tests.tiny import data, model


def layer(weight, block=1, gram=None, sensitivity=None):
    moments = (
        None
        if gram is None
        else Moments(
            torch.tensor([gram], dtype=torch.float64),
            None if sensitivity is None else torch.diag(torch.tensor(sensitivity)),
        )
    )
    return ScoredLayer("w", "", torch.tensor(weight, dtype=torch.float64), block, moments)


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


WEIGHT = [[3.0, -1.0], [-4.0, 2.0], [0.0, 5.0]]


# --- criteria, by hand
# --------------------------------------------------------------------------------------------------


def test_magnitude():
    close(CRITERIA["magnitude"](layer(WEIGHT)), [[3.0, 1.0], [4.0, 2.0], [0.0, 5.0]])
    # Blocks of two outputs: |3| + |-4| and |-1| + |2|; the last block has one output.
    close(CRITERIA["l1"](layer(WEIGHT, 2)), [[7.0, 3.0], [0.0, 5.0]])


def test_l2():
    close(CRITERIA["l2"](layer(WEIGHT)), [[3.0, 1.0], [4.0, 2.0], [0.0, 5.0]])
    close(CRITERIA["l2"](layer(WEIGHT, 2)), [[5.0, math.sqrt(5)], [0.0, 5.0]])


def test_taylor():
    # y = w · x without a bias, loss y: the gradient is x. Two batches, x = (1, 2) and x = (3, 0), w
    # = (2, 5): changes (2, 10) and (6, 0).
    net = nn.Linear(2, 1, bias=False)
    net.weight.data = torch.tensor([[2.0, 5.0]])
    batches = [
        (torch.tensor([[1.0, 2.0]]), torch.zeros(1)),
        (torch.tensor([[3.0, 0.0]]), torch.zeros(1)),
    ]
    seen = {}

    def spy(of):
        seen["scores"] = CRITERIA["taylor"](of)
        return seen["scores"]

    CRITERIA["spy"] = spy
    NEEDS_GRADIENTS.add("spy")
    try:
        sparse = mb.sparsify(
            net,
            sparsity=0.5,
            criterion="spy",
            data=batches,
            loss=lambda y, target: y.mean(),
            repair=None,
        )
    finally:
        del CRITERIA["spy"]
        NEEDS_GRADIENTS.discard("spy")
    close(seen["scores"], [[math.sqrt((4 + 36) / 2), math.sqrt((100 + 0) / 2)]])
    assert sparse.weight.tolist() == [[0.0, 5.0]]


def test_taylor_of_a_block_adds_before_it_squares():
    # Two outputs, loss y1 - y2: the gradients of w1 and w2 are x and -x. With w1 = w2 the block
    # changes nothing.
    net = nn.Linear(2, 2, bias=False)
    net.weight.data = torch.tensor([[3.0, 3.0], [3.0, 1.0]])
    batches = [(torch.tensor([[1.0, 1.0]]), torch.zeros(1))]
    sparse = mb.sparsify(
        net,
        sparsity=0.5,
        block=(2, 1),
        criterion="taylor",
        data=batches,
        loss=lambda y, t: (y[:, 0] - y[:, 1]).mean(),
        repair=None,
    )
    assert sparse.weight.tolist() == [[0.0, 3.0], [0.0, 1.0]]


# Rows (1, 0), (1, 2) and (1, 4), a column of ones behind: A'A, with sums over three rows.
GRAM = [[3.0, 6.0, 3.0], [6.0, 20.0, 6.0], [3.0, 6.0, 3.0]]


def test_wanda():
    # Norms of the inputs: sqrt(3) and sqrt(20). Outputs for w = (2, 1): 2, 4, 6; their energy about
    # the mean 4 is 8.
    close(
        CRITERIA["wanda"](layer([[2.0, 1.0]], gram=GRAM)),
        [[2 * math.sqrt(3 / 8), math.sqrt(20 / 8)]],
    )
    # Two equal outputs in a block: twice the squares, twice the energy.
    close(
        CRITERIA["wanda"](layer([[2.0, 1.0], [2.0, 1.0]], 2, GRAM)),
        [[2 * math.sqrt(3 / 8), math.sqrt(20 / 8)]],
    )
    # No rows: the share of the squared weights.
    close(CRITERIA["wanda"](layer([[3.0, -4.0]])), [[3 / 5, 4 / 5]])


def test_obs():
    gram = [[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]
    r = (
        RIDGE * 10 * (2 + 2 + 3) / 3
    )  # three rows for three columns: ten times as much as with thirty rows
    a = 2 + r
    inverse = a / (a * a - 1)  # of the diagonal of [[a, 1], [1, a]]⁻¹, both
    energy = 2 * 9 + 2 * 3 * 1 * 1 + 2 * 1  # w'Gw with w = (3, 1); the mean of the inputs is zero
    close(
        CRITERIA["obs"](layer([[3.0, 1.0]], gram=gram)),
        [[math.sqrt(9 / inverse / energy), math.sqrt(1 / inverse / energy)]],
    )
    # What depends on the outputs is known: the first counts twice, the second half. In blocks of
    # two, the sums.
    two = [[3.0, 1.0], [2.0, 4.0]]
    close(
        CRITERIA["obs"](layer(two, 1, gram, [2.0, 0.5]))[1],
        [math.sqrt(0.5 * 4 / inverse), math.sqrt(0.5 * 16 / inverse)],
    )
    close(
        CRITERIA["obs"](layer(two, 2, gram, [2.0, 0.5])),
        [[math.sqrt((2 * 9 + 0.5 * 4) / inverse), math.sqrt((2 * 1 + 0.5 * 16) / inverse)]],
    )


def test_obs_is_the_least_error_without_the_weight():
    """Against its definition: the error that is left when all other weights of the row are fitted
    again.
    """
    torch.manual_seed(0)
    rows = torch.cat(
        [torch.randn(50, 4, dtype=torch.float64), torch.ones(50, 1, dtype=torch.float64)], 1
    )
    weight = torch.randn(1, 4, dtype=torch.float64)
    gram = rows.T @ rows
    full = torch.cat([weight, torch.zeros(1, 1, dtype=torch.float64)], 1)
    h = gram + ridge(gram, 50)
    found = CRITERIA["obs"](ScoredLayer("w", "", weight, 1, Moments(gram[None])))
    errors = []
    for j in range(4):
        rest = [i for i in range(5) if i != j]
        # min over d with d_j = -w_j of d'Hd
        d = torch.zeros(5, dtype=torch.float64)
        d[j] = -full[0, j]
        d[rest] = torch.linalg.solve(h[rest][:, rest], -h[rest, j] * d[j])
        errors.append(d @ h @ d)
    torch.testing.assert_close(
        found[0] / found[0, 0], torch.stack(errors).sqrt() / errors[0].sqrt()
    )


def test_random_is_drawn_from_the_seed():
    nets = [mb.sparsify(model(), sparsity=0.5, criterion="random", seed=s) for s in (1, 1, 2)]
    zeros = [torch.cat([m.flatten() for m in masks.zeros(n).values()]) for n in nets]
    assert torch.equal(zeros[0], zeros[1]) and not torch.equal(zeros[0], zeros[2])


# --- allocation, by hand
# --------------------------------------------------------------------------------------------------


SCORES = {
    "a": torch.tensor([[9.0, 8.0], [7.0, 1.0]]),
    "b": torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 0.5]]),
}
SHAPES = {"a": (2, 2), "b": (1, 6)}


def test_global_keeps_the_largest_of_all():
    assert ALLOCATIONS["global"](SCORES, SHAPES, 0.5, 0.0) == {"a": 3, "b": 2}  # 9 8 7 | 6 5
    assert ALLOCATIONS["global"](SCORES, SHAPES, 0.2, 0.0) == {
        "a": 1,
        "b": 1,
    }  # every layer keeps at least one
    assert ALLOCATIONS["global"](SCORES, SHAPES, 0.5, 0.5) == {
        "a": 2,
        "b": 3,
    }  # and at least its share


def test_uniform_keeps_the_same_share():
    assert ALLOCATIONS["uniform"](SCORES, SHAPES, 0.5, 0.0) == {"a": 2, "b": 3}
    assert ALLOCATIONS["uniform"](SCORES, SHAPES, 0.3, 0.0) == {
        "a": 1,
        "b": 2,
    }  # 1.2 and 1.8: the larger remainder is rounded up


def test_erk_by_hand():
    # Two layers of 4 and 16 weights; (inputs + outputs) / (inputs * outputs): 4/4 = 1 and 8/16 =
    # 1/2. 6 of 20 stay: unit * (4 * 1 + 16 / 2) = 6, unit = 1/2.
    scores = {"small": torch.ones(2, 2), "large": torch.ones(4, 4)}
    shapes = {"small": (2, 2), "large": (4, 4)}
    assert ALLOCATIONS["erk"](scores, shapes, 0.3, 0.0) == {"small": 2, "large": 4}
    # 15 stay: unit = 5/4, small would keep 5 of 4; it keeps all, large the other 11.
    assert ALLOCATIONS["erk"](scores, shapes, 0.75, 0.0) == {"small": 4, "large": 11}
    # A 3x3 kernel adds its sizes: (2 + 2 + 3 + 3) / 36 against (2 + 2) / 4.
    scores = {"kernel": torch.ones(2, 18), "linear": torch.ones(2, 2)}
    assert ALLOCATIONS["erk"](scores, {"kernel": (2, 2, 3, 3), "linear": (2, 2)}, 7 / 40, 0.0) == {
        "kernel": 5,
        "linear": 2,
    }


def test_lamp_by_hand():
    # a: squares 1, 3 -> 1/4, 3/3; b: squares 16, 16, 8 -> sorted 8, 16, 16: 8/40, 16/32, 16/16. In
    # order: 1, 1, 1/2, 1/4, 1/5.
    scores = {"a": torch.tensor([[1.0, 3.0]]).sqrt(), "b": torch.tensor([[4.0, 4.0, math.sqrt(8)]])}
    kept = [ALLOCATIONS["lamp"](scores, {}, k / 5, 0.0) for k in (2, 3, 4, 5)]
    assert kept == [{"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 2}, {"a": 2, "b": 3}]


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    density=st.floats(0.01, 1.0),
    least=st.floats(0.0, 0.3),
    seed=st.integers(0, 9),
)
def test_contract_of_allocations(name, sizes, density, least, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = {
        str(i): torch.rand(s, generator=generator, dtype=torch.float64) for i, s in enumerate(sizes)
    }
    kept = ALLOCATIONS[name](scores, dict(zip(scores, sizes)), density, least)
    assert list(kept) == list(scores) or set(kept) == set(scores)
    total, floors = (
        sum(math.prod(s) for s in sizes),
        {n: max(1, math.ceil(least * s.numel() - 1e-9)) for n, s in scores.items()},
    )
    assert all(floors[n] <= kept[n] <= s.numel() for n, s in scores.items())
    assert sum(kept.values()) == max(round(density * total), sum(floors.values()))


# --- blocks
# --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(outputs=st.integers(1, 11), columns=st.integers(1, 4), block=st.integers(1, 5))
def test_blocks_of_outputs(outputs, columns, block):
    values = torch.arange(1.0, 1 + outputs * columns).reshape(outputs, columns)
    units = by_block(values, block)
    assert units.shape == (-(-outputs // block), columns) and units.sum() == values.sum()
    for i, j in itertools.product(range(outputs), range(columns)):
        rows = values[i // block * block : (i // block + 1) * block, j]
        assert spread(units, block, outputs)[i, j] == rows.sum()


# --- the whole
# --------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.pointwise = nn.Conv2d(width, 10, 1)
        self.fc = nn.Linear(10, 3)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        return self.fc(torch.relu(self.pointwise(self.depthwise(x))).mean((2, 3)))


SPARSE = ["conv.weight", "pointwise.weight", "fc.weight"]


def net(seed=0):
    torch.manual_seed(seed)
    return Net().eval()


def calibration(seed=0, count=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(8, 1, 6, 6, generator=generator),
            torch.randint(0, 3, (8,), generator=generator),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize("allocation", sorted(ALLOCATIONS))
@pytest.mark.parametrize("block", [None, (4, 1)])
def test_contract_of_sparsify(criterion, allocation, block):
    before = net()
    kept = {k: v.clone() for k, v in before.state_dict().items()}
    sparse = mb.sparsify(
        before,
        sparsity=0.7,
        criterion=criterion,
        allocation=allocation,
        block=block,
        data=calibration(),
        repair=None,
    )
    assert (
        type(sparse) is Net
        and not masks.blocks(before)
        and all(torch.equal(v, kept[k]) for k, v in before.state_dict().items())
    )
    assert masks.blocks(sparse) == dict.fromkeys(SPARSE, 4 if block else 1)
    for name, value in sparse.state_dict().items():
        if name in SPARSE:  # what is left is what was there
            assert (
                torch.equal(value, torch.where(value == 0, 0.0, kept[name])) and (value != 0).any()
            )
            if block:
                used = (value != 0).flatten(1)
                assert all(bool((rows == rows[0]).all()) for rows in used.split(4))
        else:
            assert torch.equal(value, kept[name])
    found = share_of_zeros(sparse)
    units = {
        n: by_block(v.flatten(1), 4 if block else 1).numel() for n, v in kept.items() if n in SPARSE
    }
    gone = {
        n: int(
            (
                by_block((sparse.get_parameter(n) != 0).double().flatten(1), 4 if block else 1) == 0
            ).sum()
        )
        for n in SPARSE
    }
    assert sum(gone.values()) == round(0.7 * sum(units.values())) or sum(gone.values()) == sum(
        units.values()
    ) - round(0.3 * sum(units.values()))
    assert all(found[n]["zeros"] == int((sparse.get_parameter(n) == 0).sum()) for n in SPARSE)


def test_keep_least_and_shared_weights():
    sparse = mb.sparsify(net(), sparsity=0.5, keep=["fc", "conv.weight"])
    assert list(masks.blocks(sparse)) == ["pointwise.weight"]
    sparse = mb.sparsify(net(), sparsity=0.9, least=0.1, allocation="global")
    assert all(1 - v["zeros"] / v["size"] >= 0.1 - 1e-9 for v in share_of_zeros(sparse).values())
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    sparse = mb.sparsify(tied, sparsity=0.5)
    assert (
        sparse[0].weight is sparse[2].weight
        and int((sparse[0].weight == 0).sum()) == 8
        and list(masks.blocks(sparse)) == ["0.weight"]
    )


def test_more_sparsity_keeps_the_zeros_and_less_is_refused():
    half = mb.sparsify(net(), sparsity=0.5, criterion="random", seed=1)
    more = mb.sparsify(half, sparsity=0.8, criterion="random", seed=2)
    assert all(
        bool((more.get_parameter(n) == 0)[mask].all()) for n, mask in masks.zeros(half).items()
    )
    total = sum(v["zeros"] for v in share_of_zeros(more).values()) / sum(
        v["size"] for v in share_of_zeros(more).values()
    )
    assert abs(total - 0.8) < 0.01
    with pytest.raises(
        InputError, match=r"sparsity is 0\.5, and 0\.\d+ of the weights are zero already"
    ):
        mb.sparsify(more, sparsity=0.5)
    mb.sparsify(more, sparsity=0.8)  # the same again changes nothing
    assert torch.equal(mb.sparsify(more, sparsity=0.8).conv.weight, more.conv.weight)


def test_own_criterion():
    seen = []

    def first_columns(of):
        seen.append((of.name, of.moments is not None, of.changes))
        return -torch.arange(of.weight.shape[1], dtype=torch.float64).expand(
            by_block(of.weight, of.block).shape
        )

    sparse = mb.sparsify(
        net(), sparsity=0.5, criterion=first_columns, allocation="uniform", data=calibration()
    )
    assert (sparse.fc.weight[:, :5] != 0).all() and (sparse.fc.weight[:, 5:] == 0).all()
    assert [s[:2] for s in seen] == [(n, True) for n in SPARSE]
    for wrong, words in [
        (lambda of: of.weight[:1], "scores of shape"),
        (lambda of: by_block(of.weight, of.block) * math.nan, "NaN or infinite"),
    ]:
        with pytest.raises(InputError, match=words):
            mb.sparsify(net(), sparsity=0.5, criterion=wrong)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": 1.0}, r"above 0 and below 1; got 1\.0"),
        ({"sparsity": True}, "got True"),
        ({"sparsity": 0.5, "block": (1, 4)}, r"block is \(1, 4\); expected \(n, 1\)"),
        ({"sparsity": 0.5, "block": 4}, "block is 4"),
        ({"sparsity": 0.5, "criterion": "wunda"}, "did you mean 'wanda'"),
        ({"sparsity": 0.5, "allocation": "erg"}, "did you mean 'erk'"),
        ({"sparsity": 0.5, "repair": "least-square"}, "did you mean 'least-squares'"),
        ({"sparsity": 0.5, "rounds": 0}, "rounds is 0"),
        ({"sparsity": 0.5, "batches": 1.5}, "batches is 1.5"),
        ({"sparsity": 0.5, "least": 2}, "least is the share"),
        ({"sparsity": 0.5, "criterion": "taylor"}, r"needs data=, a loader of \(inputs, targets\)"),
        ({"sparsity": 0.5, "criterion": "obs"}, "needs data=, a loader of inputs"),
        ({"sparsity": 0.5, "loss": "msa"}, "did you mean 'mse'"),
        ({"sparsity": 0.5, "keep": ["cnov"]}, "did you mean 'conv'"),
        ({"sparsity": 0.5, "keep": ["conv", "pointwise", "fc"]}, "no weight of this network"),
        ({"sparsity": 0.99, "least": 0.1}, "at most 0.8.* can be reached; lower least"),
        ({"sparsity": 0.5, "data": []}, "yielded no batch"),
        ({"sparsity": 0.5, "rounds": 2, "data": iter(())}, "only once"),
        ({"sparsity": 0.5, "criterion": "taylor", "data": [torch.zeros(2, 1, 6, 6)]}, "no target"),
    ],
)
def test_wrong_arguments(options, words):
    with pytest.raises(InputError, match=words):
        mb.sparsify(net(), **options)


def test_weights_that_are_not_sound():
    bad = net()
    bad.fc.weight.data[0, 0] = math.nan
    with pytest.raises(InputError, match=r"fc\.weight holds 1 of 30 values"):
        mb.sparsify(bad, sparsity=0.5)
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module"):
        mb.sparsify(3, sparsity=0.5)  # type: ignore[arg-type]


def test_channels_of_a_sparse_network_are_not_pruned():
    with pytest.raises(InputError, match="prune channels first, then sparsify"):
        mb.prune(
            mb.sparsify(net(), sparsity=0.5), torch.zeros(1, 1, 6, 6), macs=0.5, criterion="l1"
        )


# --- reconstruction
# --------------------------------------------------------------------------------------------------


def test_conjugate_gradients_solve_each_output_on_its_own_support():
    torch.manual_seed(0)
    rows, target = torch.randn(60, 7, dtype=torch.float64), torch.randn(60, 5, dtype=torch.float64)
    gram, moment = rows.T @ rows, rows.T @ target
    support = torch.rand(7, 5) < 0.5
    support[:, 3] = False  # an output that reads nothing
    weights = torch.randn(7, 5, dtype=torch.float64) * support
    found = solve_on_support(gram, moment, weights, support, 60)
    expected = weights.clone()
    h = gram + ridge(gram, 60)
    for o in range(5):
        s = support[:, o].nonzero()[:, 0]
        if len(s):
            expected[s, o] += torch.linalg.solve(h[s][:, s], (moment - gram @ weights)[s, o])
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
    original = reestimate_batchnorm(
        net(), batches, 6
    )  # statistics as training would have left them
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
    original = reestimate_batchnorm(net(), batches, 6)
    sparse = mb.sparsify(
        original,
        sparsity=0.9,
        allocation="uniform",
        data=iter(batches),
        batches=6,
        repair="least-squares",
    )
    kept = original.conv.weight * (sparse.conv.weight != 0)
    torch.testing.assert_close(
        sparse.conv.weight.flatten(1).norm(dim=1), kept.flatten(1).norm(dim=1)
    )


def test_bn_repair_changes_statistics_only():
    sparse = mb.sparsify(net(), sparsity=0.6, data=calibration(), repair="bn")
    plain = mb.sparsify(net(), sparsity=0.6, repair=None)
    for name, value in sparse.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]) != (
            "running" in name or "num_batches" in name
        )


def test_ramp():
    assert [ramp(t) for t in (0, 0.5, 1, 2)] == [0, 0.875, 1, 1]


def test_an_all_zero_layer_and_ties_are_no_trouble():
    flat = net()
    flat.fc.weight.data.zero_()
    flat.pointwise.weight.data.fill_(1.0)
    for criterion, allocation in itertools.product(CRITERIA, ALLOCATIONS):
        repair = (
            "least-squares"
            if (criterion, allocation) in (("obs", "lamp"), ("magnitude", "erk"))
            else None
        )
        sparse = mb.sparsify(
            flat,
            sparsity=0.5,
            criterion=criterion,
            allocation=allocation,
            data=calibration(),
            repair=repair,
        )
        assert all(bool(torch.isfinite(p).all()) for p in sparse.parameters())


def test_networks_of_other_kinds():
    conv1d = nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(4, 2, 9)
    conv1d(x)
    sparse = mb.sparsify(
        conv1d, sparsity=0.8, criterion="wanda", block=(4, 1), data=[x], repair="least-squares"
    )
    assert set(masks.blocks(sparse)) == {"0.weight", "3.weight"}
    half = mb.sparsify(nn.Linear(8, 8).half(), sparsity=0.5)
    assert half.weight.dtype == torch.float16 and int((half.weight == 0).sum()) == 32
    assert list(masks.blocks(half)) == ["weight"]
    assert list(
        masks.blocks(
            mb.sparsify(
                model(), sparsity=0.5, data=data()[0], criterion="obs", repair="least-squares"
            )
        )
    ) == ["0.weight", "3.weight", "9.weight"]
