"""The curve of a training: by hand, thinned, joined, and the same after an interruption."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from mirabelle.training import loop
from mirabelle.training.api import LabelsObjective, train
from mirabelle.training.curve import MOST, Curve, joined
from tests.training.test_train import StopError, interrupted, loader, model


def drawn(steps: int, each: int = 1) -> Curve:
    """Batches with the losses 0, 1, 2, ...; `each` of them make a step."""
    curve = Curve()
    for step in range(steps):
        for i in range(each):
            curve.batch({"labels": float(each * step + i)})
        curve.step(step + 1, 0.5)
    return curve


def test_a_step_of_several_batches_is_their_mean():
    found = drawn(3, 2).to_dict()
    assert found["step"] == [1, 2, 3] and found["loss"] == {"labels": [0.5, 2.5, 4.5]}
    assert found["lr"] == [0.5] * 3 and found["score"] == {"name": None, "step": [], "value": []}


def test_many_steps_become_few_points():
    found = drawn(5 * MOST + 1).to_dict("held_out")
    # each of 8 steps, whose last is the point's; one step fills none yet
    assert found["each"] == 8 and MOST / 2 <= len(found["step"]) <= MOST
    assert found["step"][:2] == [8, 16] and found["step"][-1] == 5 * MOST + 1
    assert found["loss"]["labels"][:2] == [3.5, 11.5] and found["loss"]["labels"][-1] == 5 * MOST


def test_scores_stand_at_their_steps():
    curve = drawn(2)
    for done, value in ((0, 1.0), (1, float("inf")), (2, 0.5), (2, 0.25)):
        curve.score(done, value)
    assert curve.to_dict("held_out")["score"] == {
        "name": "held_out",
        "step": [0, 2],
        "value": [1.0, 0.25],
    }
    for done in range(3, 3 * MOST):
        curve.score(done, 0.1)
    steps = [s for s, _ in curve.scores]
    assert steps[0] == 0 and steps[-1] == 3 * MOST - 1 and len(steps) < MOST


def test_trainings_that_follow_each_other_are_one_curve():
    first, second = drawn(2).to_dict(), drawn(MOST - 1)
    second.score(1, 0.5)
    found = joined(first, second.to_dict("held_out"))
    assert found["score"] == {"name": "held_out", "step": [3], "value": [0.5]}
    assert found["step"][0] == 2 and found["step"][-1] == MOST + 1 and found["each"] == 2
    assert len(found["step"]) == len(found["loss"]["labels"]) < MOST


def test_a_training_records_its_curve_and_goes_on_with_it(tmp_path):
    net, objective = model(), LabelsObjective("cross_entropy")
    options = {"epochs": 2, "lr": 0.01, "accumulate": 2, "validation": list(loader())}
    whole = train(net, loader(), objective, **options)
    keep = {"checkpoint": tmp_path, "checkpoint_seconds": -1.0}
    with pytest.raises(StopError):
        train(net, loader(), interrupted(4, objective), **options, **keep)
    resumed = train(net, loader(), objective, **options, **keep)
    found = whole.curve
    assert resumed.curve == found and found["step"] == [1, 2, 3, 4, 5, 6]
    assert found["score"]["name"] == "validation_top1" and found["score"]["step"] == [3, 6]
    epochs = [h["validation_top1"] for h in whole.history]
    assert found["score"]["value"] == epochs
    # an epoch has 5 batches, of which the last is a step by itself
    a, b, c = next(iter(found["loss"].values()))[:3]
    assert (2 * a + 2 * b + c) / 5 == pytest.approx(whole.history[0][next(iter(found["loss"]))])
    assert json.loads(json.dumps(asdict(Curve()))) == asdict(Curve())


class Watch:
    """A clock that a loss moves on: each step takes as long as it says."""

    def __init__(self, seconds):
        self.now, self.seconds, self.count = 0.0, seconds, 0

    def monotonic(self):
        return self.now

    def __call__(self, network, batch):
        self.now += self.seconds(self.count)
        self.count += 1
        return {"loss": network(*batch.args).square().mean()}


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [(lambda i: 1.0, 20), (lambda i: 4.0, 10), (lambda i: 1.0 if i < 8 else 8.0, 12)],
    ids=["it fits", "too slow", "slower later"],
)
def test_time_shortens_a_training_and_its_schedule(monkeypatch, seconds, steps):
    """Of 20 steps in 40 seconds; the rate is at the end of its fall all the same."""
    watch = Watch(seconds)
    monkeypatch.setattr(loop, "time", watch)
    found = train(model(), loader(), watch, steps=20, seconds=40.0, lr=0.01)
    assert found.steps == steps == len(found.curve["lr"])
    assert watch.now <= 40.0
    assert found.curve["lr"][-1] < 0.2 * found.curve["lr"][0]
