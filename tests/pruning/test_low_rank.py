"""Layers as two of low rank: factors by hand, budgets against all choices, and what comes after."""

import itertools

import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError, SurgeryError
from mirabelle.channels.rewrite import FORM
from mirabelle.fitting.gram import RIDGE, Gram
from mirabelle.graph.structure import LowRank, structure_of
from mirabelle.measurement.macs import count_macs, count_parameters
from mirabelle.pruning.low_rank import candidates, spectrum, table
from tests.modules import Head, Net, image


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Net(
        lambda s, x: s.head(torch.relu(s.c(torch.relu(s.b(torch.relu(s.a(x))))))),
        a=nn.Conv2d(3, 16, 3, padding=1),
        b=nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False),
        c=nn.Conv2d(16, 32, 1),
        head=Head(32),
    ).eval()


def written(seed: int = 0) -> nn.Module:
    """One whose forward has a size written into it, so that it is cut in graph form."""
    torch.manual_seed(seed)
    return Net(
        lambda s, x: s.c(torch.relu(s.b(torch.relu(s.a(x)).view(-1, 16 * 16)))),
        a=nn.Conv2d(3, 16, 3, stride=2, padding=1),
        b=nn.Linear(256, 24),
        c=nn.Linear(24, 20),
    ).eval()


DATA = [image(16, seed=i) for i in range(3)]
X = image()


def lower(layer: nn.Module, rank: int) -> None:
    """Makes a weight one of this rank."""
    u, s, v = torch.linalg.svd(layer.weight.detach().flatten(1), full_matrices=False)
    product = u[:, :rank] * s[:rank] @ v[:rank]
    layer.weight.data = product.reshape(layer.weight.shape)


def same(one: nn.Module, other: nn.Module, x: torch.Tensor = X) -> None:
    with torch.no_grad():
        torch.testing.assert_close(one(x), other(x), rtol=1e-4, atol=1e-5)


def test_spectrum_by_hand():
    # Without data: the shares of the weight's energy.
    w = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(spectrum(w).losses, torch.tensor([0.9, 0.1]).double())
    # The second input is ten times as large about its mean, so that its small weight matters more:
    # A'A about the mean is (1, 100), and the energy of the outputs 9 * 1 + 1 * 100. The mean of the
    # whole diagonal, 10 of ten rows with a mean of 0 in it, is what the ridge is measured by.
    gram = Gram(torch.diag(torch.tensor([1.0, 100.0, 30.0]).double())[None])
    r = RIDGE * (1 + 100 + 30) / 3
    found = spectrum(w, gram)
    expected = torch.tensor([100 + r, 9 * (1 + r)]).double() / 109
    torch.testing.assert_close(found.losses, expected)
    weight, shift = found.at(1)
    torch.testing.assert_close(weight, torch.tensor([[0.0, 0.0], [0.0, 1.0]]).double())
    assert not shift.any()
    # The outputs depend on the first alone.
    gram.sensitivity = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double()
    torch.testing.assert_close(
        spectrum(w, gram).at(1)[0][0], torch.tensor([3.0, 0.0]).double(), atol=1e-6, rtol=1e-6
    )


def test_the_bias_makes_up_for_the_mean():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200, 6, generator=generator).double() + 3
    w = torch.randn(5, 6, generator=generator).double()
    ones = torch.cat([a, torch.ones(200, 1).double()], 1)
    weight, shift = spectrum(w, Gram((ones.T @ ones)[None])).at(2)
    error = a @ w.T - (a @ weight.T + shift)
    torch.testing.assert_close(error.mean(0), torch.zeros(5).double(), atol=1e-9, rtol=0)
    # No other weight of this rank does better, the plain one among them.
    other = spectrum(w).at(2)[0]
    worse = (a @ (w - other).T - (a @ (w - other).T).mean(0)).square().sum()
    assert error.square().sum() <= 1.001 * worse


@pytest.mark.parametrize("data", [None, DATA])
def test_a_rank_that_is_there_is_found_exactly(data):
    model = network()
    for layer, rank in ((model.b, 3), (model.c, 4)):
        lower(layer, rank)
    small = mb.factorize(model, X, rank=4, data=data, keep=["a", "head"])
    assert isinstance(small.b, LowRank) and isinstance(small.c, LowRank)
    assert isinstance(small.a, nn.Conv2d) and small.b.rank == small.c.rank == 4
    assert small.b[0].stride == (2, 2) and small.b[1].kernel_size == (1, 1)
    same(small, model)
    assert isinstance(model.b, nn.Conv2d)
    torch.testing.assert_close(small.b.product(), model.b.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("budget", ["macs", "params"])
def test_a_budget_holds_and_loses_least_of_all_choices(budget):
    model = network()
    lower(model.b, 2)
    inputs = as_batch(X)
    layers, _ = candidates(model, inputs, ["head"])
    found = table(model, layers, [as_batch(b) for b in DATA], 4)
    count = count_parameters if budget == "params" else lambda m: count_macs(m, X)
    small = mb.factorize(model, X, data=DATA, align=4, keep=["head"], **{budget: 0.5})
    assert count(small) <= 0.5 * count(model)
    assert small.b.rank <= 4  # what is of rank 2 goes first

    def loss(choice: dict[str, int]) -> float:
        return sum(found.losses[n][found.ranks[n].index(r)] for n, r in choice.items())

    chosen = {n: e["rank"] for n, e in structure_of(small)["low_rank"].items()}
    saved, by_params, best = 0.5 * count(model), budget == "params", float("inf")
    for entries in itertools.product(*(range(len(found.ranks[n]) + 1) for n in found.layers)):
        costs = [found.costs(n, by_params)[e] for n, e in zip(found.layers, entries, strict=True)]
        if -sum(costs) >= saved:
            taken = {
                n: found.ranks[n][e]
                for n, e in zip(found.layers, entries, strict=True)
                if e < len(found.ranks[n])
            }
            best = min(best, loss(taken))
    assert loss(chosen) <= 1.02 * best


def test_losses_are_those_of_the_outputs():
    """At the ranks that are tried out what is predicted is what is measured."""
    model = network()
    layers, _ = candidates(model, as_batch(X), ["a", "c", "head"])
    data = [as_batch(b) for b in DATA]
    found = table(model, layers, data, 1)
    deep = len(found.ranks["b"]) - 1
    for place in (deep, len(found.ranks["b"]) // 2):
        small = mb.factorize(
            model, X, rank=found.ranks["b"][place], data=DATA, keep=["a", "c", "head"]
        )
        with torch.no_grad():
            y, z = model(DATA[0]), small(DATA[0])
        error = float((y - z).square().sum() / (y - y.mean(0)).square().sum())
        assert found.losses["b"][place] == pytest.approx(error, rel=0.05)
    assert list(found.losses["b"]) == sorted(found.losses["b"], reverse=True)


def test_what_is_left_alone():
    model = Net(
        lambda s, x: s.head(s.d(s.c(s.b(s.a(x))) + s.twin(s.a(x)))),
        a=nn.Conv2d(3, 16, 3, padding=1),
        b=nn.Conv2d(16, 16, 3, padding=1, groups=4),
        c=nn.Conv2d(16, 16, 1),
        twin=nn.Conv2d(16, 16, 1),
        d=nn.Conv2d(16, 16, 1),
        head=Head(16),
    ).eval()
    model.twin.weight = model.c.weight
    model.d.register_forward_hook(lambda *_: None)
    layers, refused = candidates(model, as_batch(X), ["head.fc"])
    assert [c.path for c in layers] == ["a"]
    assert set(refused) == {"b", "c", "twin", "d", "head.fc"}
    assert "shared" in refused["c"] and "groups" in refused["b"] and "hooks" in refused["d"]
    with pytest.raises(InputError, match="no layer of this network can be factorized.*shared"):
        mb.factorize(model, X, rank=2, keep=["a", "head.fc"])
    # Weights that are read past the layer stay.
    attention = Net(lambda s, x: s.m(x, x, x)[0], m=nn.MultiheadAttention(32, 4)).eval()
    with pytest.raises(InputError, match="another kind"):
        mb.factorize(attention, torch.randn(2, 5, 32), rank=2)
    reads = Net(lambda s, x: s.a(x.to(s.a.weight.dtype)).mean((2, 3)), a=nn.Conv2d(3, 16, 3)).eval()
    with pytest.raises(SurgeryError, match=r"keep=\[\.\.\.\]"):
        mb.factorize(reads, X, rank=2)


def test_refusals():
    model = network()
    for options, match in (
        ({}, "exactly one"),
        ({"rank": 2, "macs": 0.5}, "exactly one"),
        ({"rank": 99}, "rank=99 makes no layer cheaper; the largest"),
        ({"macs": 0.01}, "cannot be reached by ranks alone"),
        ({"rank": 2, "keep": ["bb"]}, "did you mean 'b'"),
    ):
        with pytest.raises(InputError, match=match):
            mb.factorize(model, X, **options)
    with pytest.raises(InputError, match="factorize first, then sparsify"):
        mb.factorize(mb.sparsify(model, sparsity=0.5), X, rank=2)
    with pytest.raises(InputError, match="factorize the float network"):
        mb.factorize(mb.quantize(model, DATA), X, rank=2)


def test_trained_quantized_and_loaded(tmp_path):
    small = mb.factorize(network(), X, macs=0.5, data=DATA)
    trained = mb.fit(small, [(x, torch.zeros(len(x)).long()) for x in DATA], steps=2, lr=1e-3)
    assert not torch.equal(trained.b[0].weight, small.b[0].weight)
    integers = mb.quantize(trained, DATA)
    for name, net in (("float", trained), ("integers", integers)):
        mb.save(net, tmp_path / name)
        back = mb.load(tmp_path / name, network(5))
        with torch.no_grad():
            assert torch.equal(back(X), net.eval()(X))
        mb.save(back, tmp_path / "again")
        assert (tmp_path / "again/model.json").read_text() == (
            tmp_path / name / "model.json"
        ).read_text()
    with pytest.raises(InputError, match="no such layer"):
        mb.load(tmp_path / "float", nn.Sequential(nn.Linear(3, 3)))


@pytest.mark.parametrize("build", [network, written])
def test_pruned_before_and_after(build, tmp_path):
    """In any order with cuts, in place and in graph form, it is saved and loaded."""
    options = {"criterion": "l1", "allocation": "global", "align": 2, "macs": 0.7}
    one = mb.prune(mb.factorize(build(), X, rank=4), X, **options)
    other = mb.factorize(mb.prune(build(), X, **options), X, rank=4)
    both = mb.prune(other, X, **options)
    for number, net in enumerate((one, other, both)):
        assert (FORM in getattr(net, "meta", {})) == (build is written)
        mb.save(net, tmp_path / str(number))
        same(mb.load(tmp_path / str(number), build(5)), net)
    integers = mb.quantize(other, DATA, samples=16)
    mb.save(integers, tmp_path / "integers")
    same(mb.load(tmp_path / "integers", build(5)), integers)


def test_onnx_files(tmp_path):
    model = network()
    lower(model.b, 2)
    path = mb.export(model, tmp_path / "in", inputs=X).path
    small = mb.factorize(path, rank=2, data=[image(seed=i) for i in range(20)])
    with pytest.warns(UserWarning, match="other layers than its ONNX file"):
        file = mb.export(small, tmp_path / "out", inputs=X)
    with torch.no_grad():
        torch.testing.assert_close(torch.as_tensor(file(X)), small(X), rtol=1e-4, atol=1e-5)
    mb.save(small, tmp_path / "saved")
    same(mb.load(tmp_path / "saved", path), small)
