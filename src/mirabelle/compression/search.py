"""The search: trials, one after the other, as long as one is expected to end in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mirabelle.base.errors import MirabelleError
from mirabelle.base.interruption import check as check_interrupted
from mirabelle.base.progress import console
from mirabelle.compression.budget import Budget
from mirabelle.compression.clock import locked
from mirabelle.compression.front import Point
from mirabelle.compression.policy import RATE, USUAL_RATE, Policy
from mirabelle.compression.study import Study
from mirabelle.compression.trial import Proposal, Setting, Trial

FAILED = 3  # trials of this process, after which there is no use in more
TRIED = 300  # steps of a training, from which on rates are tried out before it
SPEED = 2  # steps may take half of what was predicted
LOOK = 0.05  # of a trial's time, at most, for measuring what the cut has lost


@dataclass(frozen=True)
class Search:
    """What a process needs to take part."""

    setting: Setting
    study: Study
    budget: Budget

    def run(self) -> None:
        """Trials, until none fits into the time that is left."""
        policy, failed = Policy(self.setting, self.study, self.budget), 0
        while True:
            check_interrupted()
            with locked(self.setting.folder / "ask.lock"):
                proposal = policy.next()
                if proposal is None:
                    return
                asked, knobs = self.study.ask(policy.space, proposal.knobs, proposal.why)
            console.print(f"trial {asked.number}: {proposal.why}")
            try:
                point = self._tried(asked.number, replace(proposal, knobs=knobs))
            except MirabelleError as error:
                console.print(f"trial {asked.number} failed: {error}", style="yellow")
                self.study.failed(asked)
                failed += 1
                if failed < FAILED:
                    continue
                if not self.study.points():
                    raise
                return
            self.study.add(point)
            self.study.ended(asked, self.setting.goal.score(point))
            left = max(0.0, self.budget.clock.tick()) / 60
            console.print(f"{point.name}: {point}; {left:.1f} min left")

    def _tried(self, number: int, proposal: Proposal) -> Point:
        """One trial, from the cut to the judgment."""
        points, budget = self.study.points(), self.budget
        quantity = self.setting.goal.quantity
        known = RATE in self.study.facts
        trial = Trial.begin(
            self.setting,
            number,
            proposal,
            ratio(points, quantity, proposal.share),
            float(proposal.knobs["rate"]) if known else None,
            budget.timing,
        )
        judging = budget.around(points, cut=False)
        seconds = min(proposal.seconds, budget.left(points) - judging)
        steps = int(seconds / budget.step(trial.macs, points))
        if steps < 1:
            return trial.judged()
        if proposal.cut and proposal.start is None and judging < LOOK * seconds:
            trial.measure_loss()
        if trial.rate is None and steps < TRIED:
            trial.rate = USUAL_RATE
        trial.train(seconds, SPEED * steps)
        if not known and steps >= TRIED:
            # where no rate helped at once, the usual one is no worse a guess
            self.study.learn(RATE, max(trial.rate or USUAL_RATE, USUAL_RATE / 10))
        return trial.judged()


def ratio(points: Sequence[Point], quantity: str, share: float) -> float:
    """Measured over predicted cost, of the cut network before that was nearest to this share."""
    cut = [p for p in points if p.plan["loss"]] or list(points)
    if not cut:
        return 1.0
    near = min(cut, key=lambda p: abs(p.costs[quantity] - share))
    return min(2.0, max(0.5, near.costs[quantity] / near.plan["costs"][quantity]))
