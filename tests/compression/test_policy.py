"""What is tried next. Networks are stood in for by a rule: what is lost at which cost."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from mirabelle.compression.budget import Budget, Steps
from mirabelle.compression.depths import Depths
from mirabelle.compression.limits import Goal
from mirabelle.compression.policy import DEPTHS, Policy
from tests.compression.test_limits import point

GRID = Depths.of(lambda share: 0.01 / share**2, 0.05, 0.6)
AROUND = 20.0  # seconds of a trial beside training
STEP = 0.2  # seconds


class Plans:
    """A table of plans: integers take 0.6 of the cost."""

    prices = dict.fromkeys(("latency", "macs"), SimpleNamespace(forms={"float": 0, "int8": 0}))

    def uncut(self, quantity):
        return 0.6

    def plan(self, limits, mixed=True):
        share = next(iter(limits.values()))
        return SimpleNamespace(loss=0.01 / share**2, costs=dict(limits))


class Made:
    """A study in memory, on which time passes as the trials say."""

    def __init__(self, minutes, drop, **limits):
        self.facts = {DEPTHS: [list(GRID.shares), list(GRID.losses)]}
        self.found, self.busy, self.drop, self.spent = [], [], drop, 100.0
        self.seconds = 60 * minutes
        given = {"accuracy_drop": None, "latency": None, "size": None, "macs": None}
        goal = Goal.of({**given, "minimize": None, **limits})
        setting = SimpleNamespace(goal=goal, table=Plans(), losses={"mse": {"mse": 1.0}})
        clock = SimpleNamespace(tick=lambda: self.seconds - self.spent)
        self.budget = Budget(clock, self.seconds, Steps(STEP, 0.0), 100.0, 2.0)
        self.policy = Policy(setting, self, self.budget)

    def points(self):
        return self.found

    def running(self):
        return self.busy

    def learn(self, name, value):
        self.facts[name] = value

    def carry_out(self, proposal):
        """The trial takes its time, and its point is known."""
        share, own = proposal.knobs["share"], round(proposal.seconds / STEP)
        start = proposal.start
        steps = own + (0 if start is None else start.steps)
        number = len(self.found)
        made = replace(
            point(share, self.drop(share, steps), half=0.0005),
            trial=number,
            steps=steps,
            own=own,
            start="" if start is None else start.folder,
            folder=str(number),
            knobs=dict(proposal.knobs),
            plan={
                "loss": 0.0 if share >= 0.6 else 0.01 / share**2,
                "floats": [],
                "skipped": [],
                "costs": {"latency": share},
            },
            costs={"latency": share, "size": 0.2, "macs": min(1.0, share / 0.6)},
            took={"cut": 8.0, "write": 6.0, "validate": 3.0},
        )
        self.spent += AROUND + proposal.seconds
        self.found.append(made)
        return made

    def all(self):
        """Every proposal until none fits."""
        proposals = []
        while (proposal := self.policy.next()) is not None:
            assert len(proposals) < 60
            proposals.append(proposal)
            self.carry_out(proposal)
        return proposals


def law(share, steps):
    """At 0.25 of the cost half a point is lost after 1500 steps; more steps leave less."""
    return 0.005 * (0.25 / share) ** 3 * (1500 / max(steps, 20)) ** 0.5 if share < 0.59 else 0.0


def test_a_middle_depth_is_trained_for_long_right_after_the_network_as_it_is():
    made = Made(15, law, accuracy_drop=0.005)
    first, second = made.all()[:2]
    assert first.share == 0.6 and first.seconds == 0
    assert 0.2 < second.share < 0.45 and second.start is None
    assert second.seconds > 0.25 * (made.seconds - 200)


@pytest.mark.parametrize("minutes", [10, 15, 30, 60])
def test_the_time_is_kept_and_the_limit_found(minutes):
    made = Made(minutes, law, accuracy_drop=0.005)
    made.all()
    assert made.spent + made.budget.end(made.found) <= 1.001 * made.seconds
    assert made.spent > 0.6 * made.seconds
    held = [p.costs["latency"] for p in made.found if p.drop <= 0.005]
    assert min(held) < 0.33


def test_deeper_networks_go_on_from_trained_ones():
    made = Made(30, law, accuracy_drop=0.005)
    made.all()
    trained = [p for p in made.found if p.steps]
    by_folder = {p.folder: p for p in made.found}
    later = [p for p in trained if p.start]
    assert later
    assert all(by_folder[p.start].costs["latency"] >= p.costs["latency"] * 0.94 for p in later)
    assert max(p.steps for p in trained) > 1.5 * max(p.own for p in trained)


def test_a_network_that_just_misses_the_limit_is_trained_further():
    """It lost 0.6 points; with more than twice the steps it is expected to lose less than half."""
    made = Made(8, lambda share, steps: 0.0 if share > 0.59 else 0.006, accuracy_drop=0.005)
    for _ in range(2):
        made.carry_out(made.policy.next())
    last = made.policy.next()
    assert last.start is made.found[1] and not last.cut
    left = made.budget.left(made.found) - made.budget.around(made.found)
    assert last.seconds == pytest.approx(left)


def test_in_little_time_depths_are_tried_without_training():
    made = Made(
        3,
        lambda share, steps: 0.0 if share >= 0.59 else 0.02 * (0.25 / share) ** 2,
        accuracy_drop=0.005,
    )
    made.budget = replace(made.budget, steps=Steps(10.0, 10.0))
    made.policy = Policy(made.policy.setting, made, made.budget)
    assert all(p.seconds == 0 for p in made.all())
    assert any(p.drop <= 0.005 for p in made.found)


def test_where_integers_lose_too_much_the_float_network_is_there_too():
    made = Made(
        10, lambda share, steps: 0.2 if share == 0.6 else law(share, steps), accuracy_drop=0.005
    )
    first, second = made.all()[:2]
    assert first.share == 0.6 and second.share == 1.0 and second.seconds == 0


def test_under_a_limit_of_cost_all_trainings_end_there():
    made = Made(20, law, latency=0.15)
    proposals = made.all()
    assert proposals[0].share == 0.15 and proposals[0].seconds == 0
    assert 0.15 < proposals[1].share < 0.6, "a deep cut is made in two"
    assert proposals[2].share == 0.15 and proposals[2].start is made.found[1]
    assert proposals[-1].cut is False and proposals[-1].seconds >= max(
        p.seconds for p in proposals[2:]
    )


def test_two_processes_do_not_try_the_same():
    made = Made(30, law, accuracy_drop=0.005)
    for _ in range(2):
        made.carry_out(made.policy.next())
    one = made.policy.next()
    made.busy = [dict(one.knobs)]
    assert abs(made.policy.next().share / one.share - 1) > 0.05


def test_nothing_begins_that_is_not_expected_to_end():
    made = Made(15, law, accuracy_drop=0.005)
    made.carry_out(made.policy.next())
    made.carry_out(made.policy.next())
    made.spent = made.seconds - made.budget.end(made.found) - made.budget.around(made.found)
    assert made.policy.next() is None
