"""Teachers left alone, modes, layers by name, and errors before any training. The losses are in
`test_distill_losses.py`.
"""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mirabelle as mb
from mirabelle.base.data import as_batch
from mirabelle.base.errors import InputError
from mirabelle.distillation.api import run
from mirabelle.distillation.teachers import Teachers
from tests.tiny import model, other_classes, teacher


def images(count: int = 3) -> list:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(6, 1, 8, 8, generator=g) for _ in range(count)]


class Constant(nn.Module):
    def __init__(self, probabilities):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def test_ensemble_is_the_mean_of_probabilities():
    taught = Teachers([Constant([0.2, 0.8]), Constant([0.6, 0.4])], torch.device("cpu"))(
        as_batch(torch.zeros(3, 1))
    )
    torch.testing.assert_close(taught.softmax(1), torch.tensor([[0.4, 0.6]] * 3))
    with pytest.raises(InputError, match=r"\(3, 2\), \(3, 3\)"):
        Teachers([Constant([0.2, 0.8]), Constant([0.2, 0.4, 0.4])], torch.device("cpu"))(
            as_batch(torch.zeros(3, 1))
        )


def watched(net: nn.Module) -> tuple[nn.Module, list[bool]]:
    """The modes in which the first layer (and copies of it) ran."""
    modes: list[bool] = []
    net[1].register_forward_hook(lambda module, i, o: modes.append(module.training))
    return net, modes


def test_teacher_and_student_are_left_as_they_were():
    t, s = teacher(), model()
    t.train()
    before = copy.deepcopy(t), copy.deepcopy(s)
    mb.distill(
        s, t, images(), losses={"kd": 1, "features": 1}, features={"2": "2"}, epochs=2, lr=0.1
    )
    for now, then in zip((t, s), before, strict=True):
        assert all(
            torch.equal(a, b)
            for a, b in zip(now.state_dict().values(), then.state_dict().values(), strict=True)
        )
        assert all(p.grad is None for p in now.parameters())
    assert t.training, "the teacher given keeps its mode"
    assert not t[2]._forward_hooks and not s[2]._forward_hooks


def test_modes():
    t, teaches = watched(teacher().train())
    s, learns = watched(model().eval())
    validation = [(images(1)[0], torch.zeros(6, dtype=torch.long))]
    mb.distill(s, t, images(3), epochs=3, validation=validation)
    assert teaches and not any(teaches)
    # Two checks before, then three batches and one validation for each epoch, and the outputs of
    # what is returned.
    assert learns[-13:] == [True, True, True, False] * 3 + [False]


def test_learns_from_unlabeled_data():
    student, data = model(), images(4)
    trained = run(student, teacher(), data, losses={"kd": 1.0}, epochs=15, lr=0.02)
    assert trained.history[-1]["kd"] < 0.5 * trained.history[0]["kd"]
    assert set(trained.history[0]) == {"kd"}


def test_the_student_may_be_its_own_teacher():
    """Hints of a network against itself: different while it learns from labels, so its teacher
    stayed what it was.
    """
    net = model()
    batches = [(x, torch.zeros(6, dtype=torch.long)) for x in images(3)]
    trained = run(
        net,
        net,
        batches,
        losses={"features": 1e-3, "labels": 1.0},
        features={"3": "3"},
        epochs=6,
        lr=0.1,
        precision="float32",
    )
    assert trained.history[-1]["features"] > 1e-5


def test_same_seed_gives_the_same_projections():
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        found.append(
            mb.distill(
                model(), teacher(), images(), losses={"features": 1.0}, features={"2": "2"}
            ).state_dict()
        )
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


def test_weights_and_own_losses(monkeypatch):
    x = images(1)
    both = run(
        model(),
        teacher(),
        x,
        losses={"mse": 2.0, "tests.distillation.test_distill:own": 0.5},
        precision="float32",
    ).history[0]
    one = run(model(), teacher(), x, losses={"mse": 1.0}, precision="float32").history[0]
    assert both["mse"] == pytest.approx(2 * one["mse"], rel=1e-5) and both[
        "tests.distillation.test_distill:own"
    ] == pytest.approx(0.5 * one["mse"], rel=1e-5)


def own(student, taught, temperature):
    return F.mse_loss(student, taught)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"losses": {"kdd": 1}}, "did you mean 'kd'"),
        ({"losses": {"kd": -1}}, "weight of at least 0"),
        ({"losses": {"kd": math.nan}}, "weights of at least 0"),
        ({"losses": {"kd": 0}}, "nothing to learn"),
        ({"losses": {"features": 1}}, "say which"),
        ({"losses": {"labels": 1}}, "no targets"),
        ({"temperature": 0}, "temperature"),
        ({"features": {"2": "layer"}}, "no module of the teacher"),
        ({"features": {"22": "2"}}, "did you mean '2'"),
        ({"teacher": []}, "at least one teacher"),
        ({"teacher": other_classes()}, r"\(2, 3\).*\(2, 5\)"),
        ({"teacher": [teacher(), teacher()], "features": {"2": "2"}}, "single teacher"),
        ({"teacher": 3}, "teacher is a int"),
        ({"data": []}, "no batch"),
        ({"data": [torch.randn(2, 7, 8, 8)]}, r"\(2, 7, 8, 8\)"),
    ],
)
def test_errors_before_training(options, words):
    options = {"teacher": teacher(), "data": images(), **options}
    with pytest.raises(InputError, match=words):
        mb.distill(model(), options.pop("teacher"), options.pop("data"), **options)
