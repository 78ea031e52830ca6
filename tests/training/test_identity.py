"""A checkpoint belongs to one training: its network, data, loss, teachers and options."""

import functools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import mirabelle as mb
from mirabelle.base.errors import CheckpointError
from mirabelle.base.identity import code_hash, data_identity, differences, function_identity
from tests.tiny import Noisy, model, teacher


def pairs(seed: int = 0, count: int = 2) -> list:
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(4, 1, 8, 8, generator=g), torch.randint(0, 3, (4,), generator=g))
        for _ in range(count)
    ]


def squares(output, target):
    return output.square().mean()


def weighed(weight):
    return lambda output, target: weight * output.square().mean()


def loader(count: int = 24, **options) -> DataLoader:
    return DataLoader(Noisy(count), **{"batch_size": 8, "shuffle": True, **options})


FIT = {"lr": 0.01, "steps": 4}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model": model(1)}, "the network's weights"),
        ({"data": pairs(1)}, "data"),
        ({"data": pairs(count=3)}, "data"),
        ({"loss": "mse"}, "loss"),
        ({"loss": squares}, "loss"),
        ({"steps": 5}, r"steps \(4 there, 5 here\)"),
        ({"lr": 0.02}, r"lr \(0.01 there, 0.02 here\)"),
        ({"clip": 1.0}, r"clip \(None there, 1.0 here\)"),
        ({"sparsify": {"sparsity": 0.5}}, "sparsify"),
        ({"validation": pairs(3)}, "validation"),
    ],
)
def test_another_training_is_not_taken_for_its_own(change, part, tmp_path):
    given = {"model": model(), "data": pairs(), "loss": "cross_entropy", **FIT}
    verbs = {"checkpoint": tmp_path}
    mb.fit(given.pop("model"), given.pop("data"), given.pop("loss"), **given, **verbs)
    given = {"model": model(), "data": pairs(), "loss": "cross_entropy", **FIT, **change}
    with pytest.raises(CheckpointError, match=f"differs in.*{part}"):
        mb.fit(given.pop("model"), given.pop("data"), given.pop("loss"), **given, **verbs)


def test_a_chained_fit_says_so(tmp_path):
    first = mb.fit(model(), pairs(), checkpoint=tmp_path, **FIT)
    with pytest.raises(CheckpointError, match="differs in the network's weights"):
        mb.fit(first, pairs(), checkpoint=tmp_path, **FIT)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (loader(batch_size=6), "data"),
        (loader(shuffle=False), "data"),
        (loader(count=32), "data"),
        (loader(drop_last=True), "data"),
    ],
    ids=["batch size", "order", "length", "drop_last"],
)
def test_another_loader(data, part, tmp_path):
    mb.fit(model(), loader(), checkpoint=tmp_path, **FIT)
    with pytest.raises(CheckpointError, match=part):
        mb.fit(model(), data, checkpoint=tmp_path, **FIT)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"teacher": model(7, 12)}, "teacher"),
        ({"teacher": [teacher(), model(5)]}, "teacher"),
        ({"losses": {"kd": 2.0}}, "losses"),
        ({"losses": {"mse": 1.0}}, "losses"),
        ({"temperature": 2.0}, r"temperature \(1.0 there, 2.0 here\)"),
        ({"data": pairs(1)}, "data"),
        ({"views": 1}, "data"),
    ],
)
def test_another_lesson(change, part, tmp_path):
    def lesson(**change):
        given = {"teacher": teacher(), "data": pairs(), "losses": {"kd": 1.0}, **FIT, **change}
        mb.distill(model(), given.pop("teacher"), given.pop("data"), checkpoint=tmp_path, **given)

    lesson()
    lesson()
    with pytest.raises(CheckpointError, match=f"differs in.*{part}"):
        lesson(**change)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"data": pairs(1)}, "data"),
        ({"loss": squares}, "loss"),
        ({"train": {"lr": 0.02}}, "train"),
        ({"train": lambda net: net}, "train"),
        ({"criterion": lambda group, stats: torch.ones(group.channels)}, "criterion"),
        ({"keep": ["9"]}, "keep"),
        ({"model": model(4)}, "weights"),
    ],
)
def test_another_pruning(change, part, tmp_path):
    def cut(**change):
        given = {"data": pairs(), "train": {"lr": 0.01}, "macs": 0.8, "align": 1, **change}
        net = given.pop("model", model()).eval()
        return mb.prune(net, torch.zeros(2, 1, 8, 8), checkpoint=tmp_path, **given)

    first, again = cut(), cut()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    with pytest.raises(CheckpointError, match=f"differs in.*{part}"):
        cut(**change)


def test_data_that_draw_from_outside_are_known_by_their_form():
    """No seed repeats them, so a resumed run would never be recognized by the first batch."""

    class Unseeded:
        def __len__(self):
            return 2

        def __iter__(self):
            g = torch.Generator()
            g.seed()
            return iter([torch.randn(4, 3, generator=g), torch.randn(4, 3, generator=g)])

    a, b = (data_identity(Unseeded(), 0) for _ in range(2))
    assert a == b and a["first batch"] == {"0": [[4, 3], "torch.float32"]}


FACTOR = 1.0


def helped(x):
    return x * FACTOR


def test_identity_of_functions(monkeypatch):
    assert function_identity("mse") == "mse"
    assert function_identity(squares) == function_identity(squares)
    assert function_identity(weighed(1.0)) == function_identity(weighed(1.0))
    assert function_identity(weighed(1.0)) != function_identity(weighed(2.0))
    partials = [functools.partial(squares, target=t) for t in (1, 2)]
    assert function_identity(partials[0]) != function_identity(partials[1])
    smooth = [nn.CrossEntropyLoss(label_smoothing=s) for s in (0.0, 0.1)]
    assert function_identity(smooth[0]) != function_identity(nn.MSELoss())
    before = function_identity(lambda x: helped(x)), function_identity(helped)
    monkeypatch.setattr("tests.training.test_identity.FACTOR", 2.0)
    assert function_identity(helped) != before[1], "a constant of its module"
    calls = 0

    def counting(x):
        nonlocal calls
        calls += 1
        return x

    one = function_identity(counting)
    counting(3)
    assert function_identity(counting) == one, "what it counts itself is no part of it"


def test_identity_of_code(monkeypatch):
    class Net(nn.Module):
        def __init__(self, power=1):
            super().__init__()
            self.power, self.calls = power, 0

        def forward(self, x):
            self.calls += 1
            return helped(x) ** self.power

    net = Net()
    before = code_hash(net)
    net(torch.ones(1))
    assert code_hash(net) == before == code_hash(Net())
    assert code_hash(Net(2)) != before
    monkeypatch.setattr(Net, "forward", lambda self, x: x)
    assert code_hash(net) != before


def test_differences_in_words():
    assert differences({"a": 1, "b": [1]}, {"a": 1, "b": [1]}) == ""
    assert differences({"a": 1, "b": [1]}, {"a": 2, "b": [1]}) == "a (1 there, 2 here)"
    assert differences({"a": 1, "b": [1]}, {"a": 1, "b": [2]}) == "b"
    assert differences({"a": 1, "b": [1], "c": {}}, {"a": 2, "b": [2]}) == (
        "a (1 there, 2 here), b and c"
    )
    assert differences(None, {}) == "everything"
