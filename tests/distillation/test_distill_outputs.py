"""Outputs of every kind, through the whole of `mb.distill`: dense, binary, multi-label, embeddings
with and without a classifier, layers of all shapes.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.distillation import FEATURE_LOSSES
from mirabelle.distillation.api import run
from tests.tiny import model, teacher

FAST = {"epochs": 25, "lr": 0.02, "precision": "float32"}


def images(count: int = 3, n: int = 6) -> list:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(n, 1, 8, 8, generator=g) for _ in range(count)]


def seeded(build, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build()


def dense(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1)
    )


def embedder(width: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, outputs))


@pytest.mark.parametrize(
    "name", ["kd", "standardized_kd", "dist", "decoupled_kd", "binary_kd", "channelwise", "mse"]
)
def test_segmentation(name):
    trained = run(
        seeded(lambda: dense(4), 0),
        seeded(lambda: dense(8), 1),
        images(),
        losses={name: 1.0},
        **FAST,
    )
    assert trained.history[-1][name] < 0.5 * trained.history[0][name]


def test_segmentation_with_labels_some_of_which_are_no_class():
    g = torch.Generator().manual_seed(1)
    data = [
        (
            x,
            torch.randint(0, 3, (6, 8, 8), generator=g).masked_fill(
                torch.rand(6, 8, 8, generator=g) < 0.2, -100
            ),
        )
        for x in images()
    ]
    found = run(
        seeded(lambda: dense(4), 0),
        seeded(lambda: dense(8), 1),
        data,
        losses={"decoupled_kd": 1.0, "labels": 0.1},
        **FAST,
    ).history
    assert found[-1]["decoupled_kd"] < found[0]["decoupled_kd"]


@pytest.mark.parametrize("outputs", [1, 4])
def test_binary_and_multilabel_with_an_ensemble(outputs):
    teachers = [seeded(lambda: embedder(16, outputs), s) for s in (1, 2)]
    data = [(x, (x.mean((1, 2, 3)) > 0).float()[:, None].expand(-1, outputs)) for x in images()]
    found = run(
        seeded(lambda: embedder(8, outputs), 0),
        teachers,
        data,
        losses={"binary_kd": 1.0, "labels": 0.1},
        label_loss="binary_cross_entropy",
        **FAST,
    )
    assert found.history[-1]["binary_kd"] < 0.3 * found.history[0]["binary_kd"]


@pytest.mark.parametrize("name", ["cosine", "l2"])
def test_embeddings_of_another_width_are_projected(name):
    student = seeded(lambda: embedder(8, 5), 0)
    trained = run(
        student, seeded(lambda: embedder(32, 12), 1), images(), losses={name: 1.0}, **FAST
    )
    assert trained.history[-1][name] < 0.5 * trained.history[0][name]
    assert trained.model.state_dict().keys() == student.state_dict().keys() and trained.model(
        images(1)[0]
    ).shape == (6, 5)


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle", "similarity"])
def test_relations_of_embeddings_of_another_width(name):
    trained = run(
        seeded(lambda: embedder(8, 5), 0),
        seeded(lambda: embedder(32, 12), 1),
        images(),
        losses={name: 1.0},
        **FAST,
    )
    assert trained.history[-1][name] < 0.7 * trained.history[0][name]


@pytest.mark.parametrize("width", [12, 5])
def test_a_frozen_head_judges_the_students_embedding(width):
    """The teacher gives embeddings; its classifier reads those of both. Of another width, a
    projection stands between.
    """
    whole, head = seeded(lambda: embedder(32, 12), 1), seeded(lambda: nn.Linear(12, 3), 2)
    before = head.weight.clone()
    data = [(x, head(whole(x)).argmax(1)) for x in images()]
    options = {"losses": {"head": 1.0, "head_labels": 0.001}, "head": head, **FAST}
    trained = run(seeded(lambda: embedder(8, width), 0), whole, data, **options)
    assert trained.history[-1]["head"] < 0.5 * trained.history[0]["head"]
    assert (
        torch.equal(head.weight, before) and head.weight.requires_grad and head.weight.grad is None
    )
    # A teacher that gives the scores themselves teaches the same.
    scores = run(seeded(lambda: embedder(8, width), 0), nn.Sequential(whole, head), data, **options)
    for a, b in zip(scores.history, trained.history, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_a_head_in_train_mode_by_hand():
    """KL of the classifier's probabilities: student (1/4, 3/4) against the teacher's (1/2, 1/2),
    whatever mode the head came in.
    """
    head = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Dropout(0.9)).train()
    head[0].weight.data = torch.eye(2)

    class Says(nn.Module):
        def __init__(self, *values):
            super().__init__()
            self.values = nn.Parameter(torch.tensor(values))

        def forward(self, x):
            return self.values.expand(len(x), -1)

    import math

    found = run(
        Says(0.0, math.log(3.0)),
        Says(0.0, 0.0),
        [torch.zeros(4, 1)],
        losses={"head": 1.0},
        head=head,
        precision="float32",
    )
    assert found.history[0]["head"] == pytest.approx(
        0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-5
    )
    assert head.training


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_layers_of_images_and_tokens(name):
    class Tokens(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.embed, self.out = nn.Linear(4, width), nn.Linear(width, 3)

        def forward(self, x):
            return self.out(self.embed(x.reshape(len(x), 16, 4)).mean(1))

    for student, taught, pairs in (
        (model(0, 4), teacher(), {"1": "1", "4": "4"}),
        (seeded(lambda: Tokens(5), 0), seeded(lambda: Tokens(9), 1), {"embed": "embed"}),
    ):
        trained = run(student, taught, images(), losses={name: 1.0}, features=pairs, **FAST)
        assert 0 < trained.history[-1][name] < trained.history[0][name]
        assert trained.model.state_dict().keys() == student.state_dict().keys()


def test_a_layer_that_is_not_run_is_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.spare = model(), nn.Linear(2, 2)

        def forward(self, x):
            return self.net(x)

    with pytest.raises(InputError, match="'spare', which the student has and does not run"):
        mb.distill(Idle(), teacher(), images(), features={"spare": "2"})
    with pytest.raises(InputError, match="'spare', which the teacher has and does not run"):
        mb.distill(model(), Idle(), images(), features={"2": "spare"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"losses": {"head": 1.0}}, "head="),
        ({"head": nn.Linear(3, 2)}, "no loss reads it"),
        ({"losses": {"head": 1.0}, "head": nn.ReLU()}, "no matrix"),
        ({"losses": {"head": 1.0}, "head": nn.Linear(7, 2)}, r"\(2, 3\).*width 7.*width 2"),
        ({"losses": {"head_labels": 1.0}, "head": nn.Linear(3, 2)}, "no targets"),
        ({"losses": {"attention": 1.0}}, "say which"),
        ({"losses": {"attention": 1.0}, "features": {"9": "9"}}, "positions"),
        ({"features": {"1": "9"}}, r"\(6, 8, 8, 8\).*\(6, 3\)"),
        ({"losses": {"channelwise": 1.0}}, "dense outputs"),
        (
            {"losses": {"tests.distillation.test_distill_outputs:not_scalar": 1.0}},
            r"shape \(2,\); expected a scalar",
        ),
        (
            {"losses": {"tests.distillation.test_distill_outputs:fails": 1.0}},
            r"does not take outputs \(2, 3\).*boom",
        ),
    ],
)
def test_errors_before_training(options, words):
    with pytest.raises(InputError, match=words):
        mb.distill(model(), teacher(), images(), **options)


def not_scalar(student, taught, temperature):
    return F.mse_loss(student, taught, reduction="none").sum(1)


def fails(student, taught, temperature):
    raise ValueError("boom")
