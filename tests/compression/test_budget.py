"""What phases are expected to take, by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mirabelle.compression.budget import (
    END,
    FILES,
    SPARE,
    Budget,
    Steps,
    measured_steps,
    share_of_test,
)
from tests.compression.test_limits import point

CLOCK = SimpleNamespace(tick=lambda: 300.0)
BUDGET = Budget(CLOCK, 600.0, Steps(1.0, 0.5), 60.0, 2.0)


def tried(macs=0.5, **took):
    made = point(macs, 0.001)
    return replace(made, costs={**made.costs, "macs": macs}, took=took)


def test_a_step_costs_its_multiply_accumulates_and_the_teacher():
    assert Steps(1.0, 0.5).at(1.0) == pytest.approx(1.5)
    assert Steps(1.0, 0.5).at(0.0) == pytest.approx(0.8)


def test_what_steps_took_corrects_what_is_expected():
    points = [tried(0.5, step=2 * BUDGET.steps.at(0.5))]
    assert BUDGET.step(0.2, points) == pytest.approx(2 * BUDGET.steps.at(0.2))
    assert BUDGET.step(0.2, []) == BUDGET.steps.at(0.2)


def test_the_end_is_kept_back_from_what_is_left():
    points = [tried(validate=3.0, write=10.0, cut=5.0)]
    end = END * 600 + SPARE * (10.0 + FILES * 3.0 * 2.0)
    assert BUDGET.left(points) == pytest.approx(300.0 - end)
    assert BUDGET.around(points) == pytest.approx(SPARE * (13.0 + BUDGET.timing + 5.0))
    assert BUDGET.around(points, cut=False) == pytest.approx(SPARE * (13.0 + BUDGET.timing))


def test_before_the_first_trial_it_is_guessed_from_the_tables():
    assert 0 < BUDGET.around([]) < BUDGET.prepared * 2
    assert BUDGET.end([]) > END * 600


def test_steps_and_the_share_of_the_test_data_are_measured():
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    train = [torch.randn(16, 4) for _ in range(4)]
    parts = SimpleNamespace(train=train, test=train, validation=train[:2])
    setting = SimpleNamespace(model=network, parts=parts)
    steps = measured_steps(setting)
    assert steps.student > 0 and steps.teacher > 0
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert share_of_test(setting) == pytest.approx(2.0)
