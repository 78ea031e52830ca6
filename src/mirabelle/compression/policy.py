"""What a search tries next: a network without a cut, one at a middle depth that is trained for
long, others between depths that hold the limit and depths that do not, each cut further from one
that was trained, and a last long training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mirabelle.compression.budget import Budget
from mirabelle.compression.depths import Depths, Seen, bracket, first_depth, next_depth
from mirabelle.compression.front import Point
from mirabelle.compression.limits import DROP, sure_of
from mirabelle.compression.prices import INT8
from mirabelle.compression.study import Study
from mirabelle.compression.trial import Proposal, Setting

MOST = 5  # trainings that are planned
WORTH = 8.0  # times what a trial takes beside it: a training is to take as long
FIRST, LAST = 0.3, 0.4  # of the time for training: the first one, and the last
ONLY = 0.45  # the first one, where there are two
AGAIN = 1.5  # times the time for training that was known: it is shared out anew
LEFT = 0.8  # of a drop is expected to be left by the last training, with a cut before it
POWER, LEAST = 0.35, 0.5  # of the steps drops fall with, without a cut; and at least this is left
AIM = 0.9  # of the limit, in the last training
FEWEST = 40  # steps of training: fewer unsettle a network, and say nothing of it
USUAL_RATE = 1e-3
AROUND = 3.0  # times the known rate, to either side: the rates that Optuna draws
CLOSE = 0.05  # of a cost, in which depths are the same
HURT = 0.3  # of the limit: integers that lose more are trained, too
DEEP = 0.3  # loss before training, from which on two cuts with training between them are better
FACTS = DEPTHS, TRAINING, RATE = "depths", "seconds of training", "rate"  # of a study

Knobs = Mapping[str, Any]


@dataclass(frozen=True)
class Policy:
    """What a process goes by. The study holds all else: its points, and what is under way."""

    setting: Setting
    study: Study
    budget: Budget

    def next(self) -> Proposal | None:
        """What to try next, as the points so far say; None where nothing fits into the time."""
        points, running = self.study.points(), self.study.running()
        if not points and not running:
            limited = self.whole < self.uncut
            why = "cut to the limit, without training" if limited else "without a cut"
            return self._without_training(self.whole, why, self.uncut == 1.0)
        around = self.budget.around(points)
        left = self.budget.left(points) - around
        if left <= 0:
            return None
        step = self.budget.step(_macs(points), points)
        if left < FEWEST * step:
            return None if any(p.steps for p in points) else self._quick(points)
        first, each, last = (max(s, FEWEST * step) for s in self._shares(left, around))
        ends = left - each - around < last
        if self._goal.minimize == DROP:
            return self._at_the_limit(points, left, first, each, ends)
        if self._needs_float(points):
            return self._without_training(1.0, "in float: integers alone lose too much", True)
        if self.depths.shares[0] > (1 - CLOSE) * self.whole:
            return None  # no cut makes it cheaper
        started = [r for r in running if float(r["share"]) < (1 - CLOSE) * self.whole]
        if not any(p.steps for p in points) and not started:
            seconds = min(left, first)
            share = self.depths.share(first_depth(self._limit, seconds / step, self.depths.ends))
            return self._with_training(share, seconds, None, "a middle depth, trained for long")
        taken = [float(r["share"]) for r in running]
        return self._last(points, taken, left) if ends else self._between(points, taken, each)

    # --- with a limit on the drop
    # ----------------------------------------------------------------------------------------------

    def _between(self, points: Sequence[Point], taken: Sequence[float], seconds: float) -> Proposal:
        """Closer to the depth that just holds; where that is known, other ways of training."""
        target, seen = self._target(points) / LEFT, self._seen(points)
        held, failed = bracket(seen, target)
        if held is not None and failed is not None:
            share = self.depths.share(held)
            if self.depths.share(failed) > (1 - CLOSE) * share:
                start = self._start(points, held - CLOSE)
                why = f"other ways of training at {share:.2f} of the cost"
                return Proposal({"share": share}, seconds, start, True, why)
        depth = self._next_depth(points, target)
        share = self.depths.share(depth)
        if any(abs(t / share - 1) < CLOSE for t in taken):
            # Another process is at it: this one looks halfway to what holds.
            share = math.sqrt(share * (self.whole if held is None else self.depths.share(held)))
            depth = self.depths.depth(share)
        why = f"{share:.2f} of the cost; the limit lies {_place(held, failed, self.depths)}"
        return self._with_training(share, seconds, self._start(points, depth), why)

    def _last(
        self, points: Sequence[Point], taken: Sequence[float], seconds: float
    ) -> Proposal | None:
        """The last long training, of what is expected to hold after it."""
        depth = self._next_depth(points, AIM * self._target(points) / LEFT)
        share, sure = self.depths.share(depth), sure_of(self._goal, points)
        if any(abs(t / share - 1) < CLOSE for t in taken):
            share *= 1 + 2 * CLOSE  # another process is at it: this one is on the safe side
            depth = self.depths.depth(share)
        open_ = None if taken else self._promising(points, seconds)
        if open_ is not None and self._cost(open_) <= (1 + CLOSE) * share:
            return self._further(open_, seconds)
        held = [self._cost(p) for p in points if self._goal.holds(p, sure)]
        start = self._start(points, depth + CLOSE)
        if held and share > (1 - CLOSE / 2) * min(held):
            return None
        if start is not None and self._cost(start) <= (1 + CLOSE) * share:
            return self._further(start, seconds)
        why = f"{share:.2f} of the cost, trained to the end"
        return self._with_training(share, seconds, start, why)

    def _quick(self, points: Sequence[Point]) -> Proposal | None:
        """In little time: depths without training."""
        if self._goal.minimize == DROP:
            return None
        if not any(p.plan["loss"] for p in points):
            depth = first_depth(self._limit, 0.0, self.depths.ends)
        else:
            depth = self._next_depth(points, self._target(points))
        share = self.depths.share(depth)
        if any(abs(self._cost(p) / share - 1) < CLOSE for p in points):
            return None
        return self._without_training(share, f"{share:.2f} of the cost, without training")

    def _needs_float(self, points: Sequence[Point]) -> bool:
        """Whether every point loses too much, and the network as it is was not among them."""
        as_it_is = any(p.plan["floats"] is None and not p.plan["loss"] for p in points)
        return bool(points) and not as_it_is and all(p.drop > self._limit for p in points)

    def _next_depth(self, points: Sequence[Point], target: float) -> float:
        return next_depth(self._seen(points), target, self._noise(points), self.depths.ends)

    # --- with a limit on costs
    # ----------------------------------------------------------------------------------------------

    def _at_the_limit(
        self, points: Sequence[Point], left: float, first: float, each: float, last: bool
    ) -> Proposal:
        """Gradually down to the limit, then other ways of training, then the best for long."""
        goal, trained = self._goal, [p for p in points if p.steps]
        at = [p for p in trained if not any(n != DROP for n in goal.missed(p, False))]
        if at and last:
            return self._further(min(at, key=goal.score), left)
        if at:
            start = next((p for p in trained if p.folder == at[0].start), None)
            return Proposal({"share": self.whole}, each, start, True, "other ways of training")
        halfway = math.sqrt(self.whole * self.uncut)
        if not trained and not last and self._deep and halfway > 1.1 * self.whole:
            why = f"halfway to the limit, {halfway:.2f} of the cost"
            return self._with_training(halfway, each, None, why)
        start = min(trained, key=self._cost, default=None)
        return self._with_training(self.whole, min(left, first), start, "cut to the limit")

    @property
    def _deep(self) -> bool:
        return self.setting.table.plan({self._goal.quantity: self.whole}).loss > DEEP

    # --- proposals
    # ----------------------------------------------------------------------------------------------

    def _with_training(
        self, share: float, seconds: float, start: Point | None, why: str
    ) -> Proposal:
        return Proposal({**self.usual, "share": share}, seconds, start, True, why)

    def _without_training(self, share: float, why: str, mixed: bool | None = None) -> Proposal:
        knobs = {**self.usual, "share": share, "integers": False}
        if mixed is not None:
            knobs["mixed"] = mixed and self.integers
        return Proposal(knobs, 0.0, None, True, why)

    def _further(self, start: Point, seconds: float) -> Proposal:
        """More training of what is there."""
        knobs = {**self.usual, **start.knobs, "rate": self.usual["rate"]}
        return Proposal(knobs, seconds, start, False, f"{start.name}, trained further")

    @property
    def usual(self) -> dict[str, Any]:
        """The knobs without a reason for others."""
        whole = [p for p in self.study.points() if not p.steps and not p.plan["skipped"]]
        safe = [p for p in whole if p.plan["floats"] is not None and p.costs["macs"] == 1.0]
        hurt = DROP in self._goal.limits and any(p.drop > HURT * self._limit for p in safe)
        return {
            "rounds": 1,
            "mixed": self.integers,
            "integers": hurt,
            "losses": next(iter(self.setting.losses)),
            "rate": float(self.study.facts.get(RATE, USUAL_RATE)),
        }

    @property
    def space(self) -> dict[str, Any]:
        """The knobs: choices, or the ends of a logarithmic range."""
        rate = float(self.study.facts.get(RATE, USUAL_RATE))
        either = [False, True] if self.integers else [False]
        return {
            "share": (1e-4, 1.0),
            "rounds": [1, 2],
            "mixed": either,
            "integers": either,
            "losses": list(self.setting.losses),
            "rate": (rate / AROUND, rate * AROUND),
        }

    # --- what is known
    # ----------------------------------------------------------------------------------------------

    @property
    def _goal(self) -> Any:
        return self.setting.goal

    @property
    def _limit(self) -> float:
        return float(self._goal.limits[DROP])

    @property
    def integers(self) -> bool:
        """Whether the runtime has them."""
        return INT8 in self.setting.table.prices[self._goal.quantity].forms

    @cached_property
    def uncut(self) -> float:
        """The share of the cost that is left when nothing is cut."""
        return min(1.0, self.setting.table.uncut(self._goal.quantity))

    @property
    def whole(self) -> float:
        """The greatest share of the cost that is of use: the limit, or what is left uncut."""
        most = self._goal.costs.get(self._goal.quantity)
        return self.uncut if most is None else min(most, 1.0)

    @cached_property
    def depths(self) -> Depths:
        """Worked out by the first process that needs them."""
        if (known := self.study.facts.get(DEPTHS)) is not None:
            return Depths(tuple(known[0]), tuple(known[1]))
        quantity, table = self._goal.quantity, self.setting.table
        least = table.plan({quantity: 0.0}, self.integers).costs[quantity]
        found = Depths.of(
            lambda share: table.plan({quantity: share}, self.integers).loss, least, self.whole
        )
        self.study.learn(DEPTHS, [list(found.shares), list(found.losses)])
        return found

    def _shares(self, left: float, around: float) -> tuple[float, float, float]:
        """Seconds of the first training, of others, and of the last, as was found when the first
        one began. Where trials take long beside training, there are fewer of them.
        """
        training, count = self.study.facts.get(TRAINING, (0.0, 2))
        if left > AGAIN * training:  # the first time, or when a search goes on with more minutes
            count = min(MOST, max(2, int(left / ((1 + WORTH) * around))))
            training = max(0.0, left - (count - 1) * around)
            self.study.learn(TRAINING, [training, count])
        if count == 2:
            return ONLY * training, (1 - ONLY) * training, (1 - ONLY) * training
        each = (1 - FIRST - LAST) / (count - 2)
        return FIRST * training, each * training, LAST * training

    def _promising(self, points: Sequence[Point], seconds: float) -> Point | None:
        """The cheapest network that misses the limit, and is expected to hold it after so much more
        training.
        """
        known = []
        for p in points:
            more = seconds / self.budget.step(p.costs["macs"], points)
            left = max(LEAST, (p.steps / (p.steps + more)) ** POWER)
            if p.steps and p.drop * left <= self._target(points) < p.drop:
                known.append(p)
        return min(known, key=self._cost, default=None)

    def _cost(self, point: Point) -> float:
        return float(point.costs[self._goal.quantity])

    def _target(self, points: Sequence[Point]) -> float:
        """The drop that is aimed at: below the limit by the interval, where the data can tell."""
        return self._limit - (self._noise(points) if sure_of(self._goal, points) else 0.0)

    def _noise(self, points: Sequence[Point]) -> float:
        """Half of the interval of a drop."""
        halves = [(p.interval[1] - p.interval[0]) / 2 for p in points if p.plan["loss"]]
        return min(halves[-3:], default=0.0)

    def _seen(self, points: Sequence[Point]) -> list[Seen]:
        """Those that were trained; in little time all."""
        cut = [p for p in points if p.plan["loss"] or p.start]
        trained = [p for p in cut if p.steps]
        return [Seen(self.depths.depth(self._cost(p)), p.drop) for p in trained or cut]

    def _start(self, points: Sequence[Point], depth: float) -> Point | None:
        """The trained network that is cut deepest, but not deeper than this."""
        shallower = [p for p in points if p.steps and self.depths.depth(self._cost(p)) <= depth]
        return min(shallower, key=self._cost, default=None)


def _macs(points: Sequence[Point]) -> float:
    """The share of multiply-accumulates that a network of the search has, for its steps' time."""
    cut = [p.costs["macs"] for p in points if p.costs["macs"] < 1]
    return cut[-1] if cut else 0.5


def _place(held: float | None, failed: float | None, depths: Depths) -> str:
    """Where the limit lies."""
    known = [f"below {depths.share(held):.2f}"] if held is not None else []
    known += [f"above {depths.share(failed):.2f}"] if failed is not None else []
    return " and ".join(known) or "somewhere"
