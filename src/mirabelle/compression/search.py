"""The search over the few knobs that no plan decides: how deep to cut, in how many rounds, what to
train with; then the best ones are trained longer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirabelle.base.data import Batch, batches
from mirabelle.base.errors import MirabelleError
from mirabelle.base.interruption import check as check_interrupted
from mirabelle.base.progress import console
from mirabelle.compression.clock import Clock
from mirabelle.compression.front import Point
from mirabelle.compression.limits import DROP, LEFT
from mirabelle.compression.prices import INT8
from mirabelle.compression.study import FACTOR, Study
from mirabelle.compression.trial import Setting, Trial, restored
from mirabelle.measurement.accuracy import predictor

STAGES = 3  # before training, after a short one, after a longer one
FIRST = 1 / 60  # of the time, for the training of the first stage
SEARCH, ALL = 0.65, 0.92  # of the time: until then new trials begin; until then trials are trained
USUAL_RATE = 1e-3
RATES = (3e-4, 6e-3)  # of learning: what students take that are close to their teachers
LONGEST = 4  # of the longest stage of the search: training at the end
POLISHED = 3  # trials, at most, that are trained longer at the end
LEAST = 60  # steps of the first training: fewer unsettle a network, and say nothing of it
SEEN = 3  # trials that must show what training leaves before it is believed


@dataclass(frozen=True)
class Search:
    """What a process needs to take part. seconds: of the whole; step: seconds of a step of training
    of the original.
    """

    setting: Setting
    study: Study
    clock: Clock
    seconds: float
    step: float

    # --- the space
    # ----------------------------------------------------------------------------------------------

    def space(self) -> dict[str, Any]:
        """The knobs: choices, or the ends of a logarithmic range."""
        setting = self.setting
        table, goal = setting.table, setting.goal
        uncut = min(1.0, table.plan({goal.quantity: 1.0}, mixed=False).costs[goal.quantity])
        least = table.plan({goal.quantity: 0.0}).costs[goal.quantity]
        most = goal.costs.get(goal.quantity, uncut)
        low = 0.8 * most if goal.minimize == DROP else least * 1.02
        integers = INT8 in table.prices[goal.quantity].forms
        return {
            "share": (min(max(low, least), 0.99 * most), most),
            "rounds": [1, 2],
            "mixed": [False, True] if integers else [False],
            "integers": [False, True] if integers else [False],
            "losses": list(setting.losses),
            "rate": RATES,
        }

    def begin(self) -> None:
        """The first trials: without a cut, and at depths from which the others follow."""
        space = self.space()
        low, high = space["share"]
        middle = (low * high) ** 0.5
        shares = [high, (high * middle) ** 0.5, middle]
        usual = {"rounds": 1, "mixed": False, "integers": False, "rate": USUAL_RATE}
        for share in shares:
            knobs = {"share": share, "losses": space["losses"][0], **usual}
            self.study.study.enqueue_trial(knobs, skip_if_exists=True)

    # --- the trials
    # ----------------------------------------------------------------------------------------------

    def run(self, share: float = SEARCH) -> None:
        """Trials, one after the other, until this share of the time is over."""
        space = self.space()
        while not self.study.points() or self._left(share) > self._usual_seconds():
            check_interrupted()
            asked, knobs = self.study.ask(space)
            try:
                self._one(asked, knobs)
            except MirabelleError as error:
                console.print(f"trial {asked.number} failed: {error}", style="yellow")
                self.study.failed(asked)
                if self._failures() >= 3 and not self.study.points():
                    raise

    def _one(self, asked: Any, knobs: Mapping[str, Any]) -> None:
        """One trial, through as many stages as it deserves."""
        goal = self.setting.goal
        points = self.study.points()
        trial = Trial.begun(self.setting, asked.number, knobs, ratio(points, goal.quantity, knobs))
        for stage in range(STAGES):
            steps = 0 if stage == 0 else self.steps(trial, stage)
            if stage:
                trial.train(steps, float(knobs["rate"]))
            point = trial.judged(steps)
            self.study.add(point)
            score = goal.score(point, left_of(self.study.points()))
            self._say(point)
            asked.report(score, FACTOR**stage)
            ended = stage == STAGES - 1 or self._enough(point) or not self._time_for(trial, stage)
            if ended or asked.should_prune():
                self.study.ended(asked, None if not ended else score)
                return

    def _enough(self, point: Point) -> bool:
        """Whether training can make a point no better: it holds, and its costs are what counts."""
        goal = self.setting.goal
        return goal.minimize != DROP and point.drop <= 0.5 * goal.limits[DROP]

    def _time_for(self, trial: Trial, stage: int) -> bool:
        """Whether the training of the stage that comes next fits in."""
        return self._left(ALL) > 1.5 * self._seconds(trial, stage + 1)

    def _seconds(self, trial: Trial, stage: int) -> float:
        """What the training of a stage takes: its share of the time, and no less than teaches."""
        share = max(self.seconds * FIRST, LEAST * self._step(trial))
        return share * FACTOR ** (stage - 1)

    def steps(self, trial: Trial, stage: int) -> int:
        """So many fit into the time of a stage."""
        return self._steps_in(trial, self._seconds(trial, stage))

    def _step(self, trial: Trial) -> float:
        """Seconds of a step of training."""
        return self.step * (0.3 + 0.7 * trial.costs["macs"])

    def _steps_in(self, trial: Trial, seconds: float) -> int:
        return max(1, round(seconds / self._step(trial)))

    # --- longer training of the best
    # ----------------------------------------------------------------------------------------------

    def polish(self) -> None:
        """Trains the most promising trials further, while there is time; where none is, or time is
        left, there are more trials.
        """
        for _ in range(POLISHED):
            check_interrupted()
            point = self._promising()
            if point is None:
                break
            trial = restored(self.setting, point)
            longest = self._seconds(trial, STAGES - 1)
            seconds = min(LONGEST * longest, 0.8 * self._left(ALL))
            if seconds < longest / 2:
                break
            steps = self._steps_in(trial, seconds)
            trial.train(steps, float(point.knobs["rate"]) / 2)
            found = trial.judged(steps)
            self.study.add(found)
            self._say(found)
        self.run(ALL)

    def _promising(self) -> Point | None:
        """The last point of the trial that may become the best, which is not trained long yet."""
        goal, points = self.setting.goal, self.study.points()
        last = list({p.trial: p for p in points}.values())
        left = left_of(points)
        held = [p for p in points if goal.holds(p, False)]
        best = min((goal.score(p, (1.0,)) for p in held), default=float("inf"))
        open_ = [p for p in last if p.stage < STAGES and not self._enough(p)]
        open_ = [p for p in open_ if goal.score(p, left) < best and p.plan["loss"] > 0]
        return min(open_, key=lambda p: goal.score(p, left), default=None)

    # --- time
    # ----------------------------------------------------------------------------------------------

    def _left(self, share: float) -> float:
        """Seconds until `share` of the time is over."""
        return self.clock.tick() - (1 - share) * self.seconds

    def _usual_seconds(self) -> float:
        """What a trial takes at the least."""
        begun = [p.seconds for p in self.study.points() if p.stage == 0]
        return statistics.median(begun) if begun else 0.0

    def _failures(self) -> int:
        return len(self.study.study.get_trials(deepcopy=False)) - len(
            {p.trial for p in self.study.points()}
        )

    def _say(self, point: Point) -> None:
        left = max(0.0, self.clock.tick()) / 60
        console.print(f"{point.name}: {point}; {left:.1f} min left")


def ratio(points: Sequence[Point], quantity: str, knobs: Mapping[str, Any]) -> float:
    """Measured over predicted cost, the median of the trials before with the same `mixed`."""
    seen = [
        p.costs[quantity] / p.plan["costs"][quantity]
        for p in points
        if p.stage == 0 and p.knobs["mixed"] == knobs["mixed"]
    ]
    return min(2.0, max(0.5, statistics.median(seen))) if seen else 1.0


def left_of(points: Sequence[Point]) -> tuple[float, ...]:
    """By stage: the share of the drop that further training leaves, as the trials have shown."""
    by_trial: dict[int, dict[int, Point]] = {}
    for p in points:
        by_trial.setdefault(p.trial, {})[p.stage] = p
    found = list(LEFT)
    for stage in range(STAGES - 1):
        ratios = [
            max(0.0, t[STAGES - 1].drop) / t[stage].drop
            for t in by_trial.values()
            if STAGES - 1 in t and stage in t and t[stage].drop > 0
        ]
        if len(ratios) >= SEEN:
            found[stage] = min(1.0, max(0.02, LEFT[-2] * statistics.median(ratios)))
    return tuple(found)


def step_seconds(setting: Setting) -> float:
    """A step of distilling the original into itself: three passes and the teacher's, roughly."""
    run = predictor(setting.model)
    batch: Batch = next(batches(setting.parts.train, 1))
    run(batch)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    return 4 * statistics.median(times)
