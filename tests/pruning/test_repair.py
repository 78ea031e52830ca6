"""Repairs: BatchNorm's statistics, and least squares on networks where they are exact."""

from importlib import import_module

import pytest
import torch
from torch import nn

from mirabelle.base.data import as_batch, example_inputs
from mirabelle.base.errors import InputError
from mirabelle.channels.groups import analyze
from mirabelle.channels.surgery import remove
from mirabelle.fitting.batchnorm import reestimate_batchnorm
from mirabelle.fitting.pair import Pair
from mirabelle.pruning import prune
from mirabelle.pruning.api import plan, settings_of
from mirabelle.pruning.repair import REPAIRS, Cut, reconstruct
from tests.modules import Head, Net, conv_bn, image
from tests.networks import make
from tests.pruning.labeled import labeled


@pytest.mark.parametrize("name", REPAIRS)
def test_contract_of_repairs(name):
    model, x = make("residual", torch.float32)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    repaired = REPAIRS[name](
        model, Cut(model, analyze(model, example_inputs(image())), {}), [b for b, _ in labeled(3)]
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
    data = labeled(4)
    repaired = reestimate_batchnorm(model, data[:3])
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
    repaired = reestimate_batchnorm(model, [image()])
    assert all(torch.equal(v, repaired.state_dict()[k]) for k, v in model.state_dict().items())


def test_prune_repairs():
    model, x = make("plain", torch.float32)
    data = labeled()
    raw = prune(model, x, macs=0.5, criterion="l1", align=1, repair=None, data=data)
    repaired = prune(model, x, macs=0.5, criterion="l1", align=1, data=data, repair="bn")
    assert torch.equal(raw.a[0].weight, repaired.a[0].weight) and not torch.equal(
        raw.b[1].running_mean, repaired.b[1].running_mean
    )
    assert torch.equal(
        repaired.b[1].running_mean, reestimate_batchnorm(raw, data).b[1].running_mean
    )


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
    coupling = analyze(model, as_batch(data[0]))
    group = next(g for g in coupling.groups if g.name == "a")
    removed = {group.name: torch.tensor([2, 3])}
    from mirabelle.channels.surgery import remove

    small = remove(model, coupling, removed)
    repaired = reconstruct(small, Cut(model, coupling, removed), data)
    x = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        cut, left = (float((m(x) - model(x)).norm() / model(x).norm()) for m in (small, repaired))
    assert cut > 0.05 and left < 0.02 * cut + 2e-3
    assert torch.equal(small.a.weight, repaired.a.weight)


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


SETTINGS = settings_of(macs=0.6, criterion="l1", align=1, repair=None)


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
    data = labeled(count=4, n=16, size=x.shape[-1], dtype=torch.float64)
    small, coupling, removed = plan(model, x, SETTINGS)[:3]
    repaired = reconstruct(small, Cut(model, coupling, removed), data)
    assert error(repaired, model, data[:3]) < 0.5 * error(small, model, data[:3])
    assert error(repaired, model, data[3:]) < 0.7 * error(
        small, model, data[3:]
    )  # samples that it was not solved on


def test_what_does_not_fit_into_memory_is_computed_again(monkeypatch):
    model, x = make("bottlenecks")
    data = labeled(count=2, size=16, dtype=torch.float64)
    small, coupling, removed = plan(model.eval(), x, SETTINGS)[:3]
    held = reconstruct(small, Cut(model, coupling, removed), data)
    monkeypatch.setattr(import_module("mirabelle.fitting.least_squares"), "MEMORY", 0)
    again = reconstruct(small, Cut(model, coupling, removed), data)
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
    data = labeled(count=2, n=16, dtype=torch.float64)
    coupling = analyze(model, as_batch(image().double()))
    removed = {"a.0": torch.arange(5)}
    small = remove(model, coupling, removed)
    cut = Cut(model, coupling, removed)
    together = reconstruct(small, cut, data)
    monkeypatch.setattr(Pair, "added_to", lambda self, node: None)
    alone = reconstruct(small, cut, data)

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
    with pytest.raises(InputError, match="batch 0 of data is nan"):
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
    repaired, plain = (
        prune(model, image(), **options, repair=repair) for repair in ("least-squares", None)
    )
    with torch.no_grad():
        error = [float((m(data[0]) - model(data[0])).square().mean()) for m in (repaired, plain)]
    assert error[0] < 0.7 * error[1]


def test_least_squares_where_heads_and_samples_share_a_dimension():
    """nn.MultiheadAttention folds its heads into the batch: channels were followed through one of
    two samples, so the data is read in as many at once, whatever its batches are.
    """
    torch.manual_seed(3)
    model = Net(
        lambda s, x: s.fc(s.a(*[s.c(x).flatten(2).transpose(1, 2)] * 3)[0].mean(1)),
        c=conv_bn(3, 32),
        a=nn.MultiheadAttention(32, 4, batch_first=True),
        fc=nn.Linear(32, 4),
    ).eval()
    x = torch.randn(32, *image().shape[1:])
    options = {"macs": 0.6, "criterion": "l1", "align": 4}
    repaired, pairs, plain = (
        prune(model, x[:2], **options, data=data, repair=repair)
        for data, repair in (
            (x.split(16), "least-squares"),
            (x.split(2), "least-squares"),
            (x.split(16), None),
        )
    )
    with torch.no_grad():
        error = [float((m(x) - model(x)).square().mean()) for m in (repaired, plain)]
        torch.testing.assert_close(repaired(x[:5]), pairs(x[:5]))
    assert error[0] < 0.3 * error[1]
