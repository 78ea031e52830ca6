"""`mb.sparsify`: masks by their properties, blocks, and input that is wrong."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.sparsity import ALLOCATIONS, CRITERIA, masks, ramp, share_of_zeros
from mirabelle.sparsity.layers import by_block, spread
from tests.sparsity.nets import SPARSE, Net, calibration, net
from tests.tiny import data, model


@settings(deadline=None)
@given(outputs=st.integers(1, 11), columns=st.integers(1, 4), block=st.integers(1, 5))
def test_blocks_of_outputs(outputs, columns, block):
    values = torch.arange(1.0, 1 + outputs * columns).reshape(outputs, columns)
    units = by_block(values, block)
    assert units.shape == (-(-outputs // block), columns) and units.sum() == values.sum()
    for i, j in itertools.product(range(outputs), range(columns)):
        rows = values[i // block * block : (i // block + 1) * block, j]
        assert spread(units, block, outputs)[i, j] == rows.sum()


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
        seen.append((of.name, of.gram is not None, of.changes))
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
        ({"sparsity": 1.0}, r"sparsity is 1\.0; expected a number above 0 and below 1"),
        ({"sparsity": True}, "sparsity is True"),
        ({"sparsity": 0.5, "block": (1, 4)}, r"block is \(1, 4\); expected \(n, 1\)"),
        ({"sparsity": 0.5, "block": 4}, "block is 4"),
        ({"sparsity": 0.5, "criterion": "wunda"}, "did you mean 'wanda'"),
        ({"sparsity": 0.5, "allocation": "erg"}, "did you mean 'erk'"),
        ({"sparsity": 0.5, "repair": "least-square"}, "did you mean 'least-squares'"),
        ({"sparsity": 0.5, "rounds": 0}, "rounds is 0"),
        ({"sparsity": 0.5, "samples": 1.5}, "samples is 1.5"),
        ({"sparsity": 0.5, "least": 2}, "least is 2.*the share of every layer"),
        ({"sparsity": 0.5, "criterion": "taylor"}, r"needs data=, a loader of \(inputs, targets\)"),
        ({"sparsity": 0.5, "criterion": "obs"}, "needs data=, a loader of inputs"),
        ({"sparsity": 0.5, "loss": "msa"}, "did you mean 'mse'"),
        ({"sparsity": 0.5, "keep": ["cnov"]}, "did you mean 'conv'"),
        ({"sparsity": 0.5, "keep": ["conv", "pointwise", "fc"]}, "no weight of this network"),
        ({"sparsity": 0.99, "least": 0.1}, "at most 0.8.* can be reached; lower least"),
        ({"sparsity": 0.5, "data": []}, "yielded no batch"),
        ({"sparsity": 0.5, "rounds": 2, "data": iter(())}, "yielded no batch"),
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
