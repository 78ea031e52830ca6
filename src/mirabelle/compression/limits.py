"""What must hold, and what is made as small as it can be within that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirabelle.base.errors import InputError
from mirabelle.compression.front import Point

COSTS = ("latency", "size", "macs")
DROP = "accuracy_drop"
SMALLEST = (
    0.002  # of a drop, as a scale: smaller limits are not told apart by a few thousand images
)


@dataclass(frozen=True)
class Goal:
    """limits: by quantity, the most of it: of `accuracy_drop` a fraction of the metric, of the
    costs the share of the original's that is kept. minimize: a quantity.
    """

    limits: Mapping[str, float]
    minimize: str

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Goal:
        limits = {n: float(options[n]) for n in (DROP, *COSTS) if options[n] is not None}
        if not limits:
            raise InputError(
                "compress needs what must hold: accuracy_drop=, latency=, size= or macs=, such as "
                "accuracy_drop=0.005"
            )
        usual = "latency" if DROP in limits and "latency" not in limits else DROP
        if DROP in limits and usual == DROP:
            usual = next((c for c in COSTS if c not in limits), DROP)
        goal = cls(limits, options["minimize"] or usual)
        if goal.minimize != DROP and DROP not in limits:
            raise InputError(
                f"minimize={goal.minimize!r} without accuracy_drop= would leave nothing of the "
                "network; say how much accuracy may be lost"
            )
        if goal.minimize == DROP and not goal.costs:
            raise InputError(
                "minimize='accuracy_drop' keeps the network as it is without a limit on its cost; "
                "give latency=, size= or macs="
            )
        return goal

    @property
    def costs(self) -> dict[str, float]:
        """The limits of costs, what is minimized first."""
        found = {n: self.limits[n] for n in COSTS if n in self.limits}
        return dict(sorted(found.items(), key=lambda item: item[0] != self.minimize))

    @property
    def quantity(self) -> str:
        """The cost by which plans are made: what is minimized, else the first that is limited."""
        return self.minimize if self.minimize != DROP else next(iter(self.costs))

    def score(self, point: Point) -> float:
        """How far a point is from what is wanted, smaller is better."""
        expected = max(0.0, point.drop)
        over = sum(max(0.0, point.costs[n] / limit - 1) for n, limit in self.costs.items())
        if self.minimize == DROP:
            return expected + 10 * over
        limit = self.limits[DROP]
        beyond = max(0.0, expected - limit) / max(limit, SMALLEST)
        return point.costs[self.minimize] * (1 + beyond) + 10 * over

    def holds(self, point: Point, sure: bool) -> bool:
        return not self.missed(point, sure)

    def missed(self, point: Point, sure: bool) -> list[str]:
        """The limits that a point misses. sure: the upper end of the drop's interval counts."""
        found = [n for n, limit in self.costs.items() if point.costs[n] > 1.03 * limit]
        drop = point.interval[1] if sure else point.drop
        return [*found, *([DROP] if drop > self.limits.get(DROP, 1.0) else [])]

    def best(self, points: Sequence[Point], sure: bool) -> Point:
        """Of the points that hold the limits the one with least of what is minimized; where none
        does, the nearest.
        """
        fits = [p for p in points if self.holds(p, sure)]
        if not fits:
            return min(points, key=self.score)
        if self.minimize == DROP:
            return min(fits, key=lambda p: (p.drop, p.costs[self.quantity]))
        return min(fits, key=lambda p: (p.costs[self.minimize], p.drop))


def sure_of(goal: Goal, points: Sequence[Point]) -> bool:
    """Whether the validation data can tell: the interval of a drop is no wider than the limit on
    it, to either side half.
    """
    limit = goal.limits.get(DROP)
    if limit is None or not points:
        return False
    halves = sorted((p.interval[1] - p.interval[0]) / 2 for p in points if p.drop < 4 * limit)
    return bool(halves) and halves[len(halves) // 2] <= limit / 2
