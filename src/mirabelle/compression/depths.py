"""Where to cut: what an expert reads off a few networks that were cut to different depths.

A depth is the logarithm of what the plan predicts to be lost before training. The deeper the cut,
the more is lost after training too, up to noise: so depths that hold the limit and depths that do
not close in on the one that just holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FIRST = 0.1  # loss before training that is tried first, for a drop of half a point
ENOUGH = 400  # steps of training, for which that holds; fewer make up for less
UNTRAINED = 0.2  # of it, where no training follows
LEAST, MOST = 1e-3, 1.5  # losses between which depths lie
REACH = math.log(4.0)  # beyond what was seen, at most
STEP = math.log(1.15)  # and at least
EDGE = 0.15  # of what is between two depths: nearer to one of them nothing new is learned
WEIGHT = 0.5  # of the assumption that the drop is in proportion to the loss predicted
GRID = 9  # plans


@dataclass(frozen=True)
class Seen:
    """A network that was tried: its depth, and the drop of the metric after training."""

    depth: float
    drop: float


@dataclass(frozen=True)
class Depths:
    """The shares of a cost and the losses of the plans for them, from the deepest to the whole."""

    shares: tuple[float, ...]
    losses: tuple[float, ...]

    @classmethod
    def of(cls, loss: Callable[[float], float], least: float, most: float) -> Depths:
        """loss: predicted, of the plan for a share of the cost. least, most: shares."""
        shares = np.geomspace(max(least, 1e-4), max(most, least * 1.001), GRID)
        losses = np.maximum.accumulate([loss(float(s)) for s in shares[::-1]])[::-1]
        losses = np.clip(losses, LEAST, None) * np.geomspace(1 + 1e-6, 1, GRID)
        return cls(tuple(float(s) for s in shares), tuple(float(v) for v in losses))

    def depth(self, share: float) -> float:
        """Of the plan for a share."""
        found = np.interp(math.log(share), np.log(self.shares), np.log(self.losses))
        return float(found)

    def share(self, depth: float) -> float:
        """The share of the cost whose plan has this depth."""
        logs = np.log(self.losses)[::-1]
        return float(math.exp(np.interp(depth, logs, np.log(self.shares)[::-1])))

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest depth that are worth a trial."""
        logs = np.log(self.losses)
        return float(logs[-1]), float(min(logs[0], math.log(MOST)))


def first_depth(limit: float, steps: float, ends: tuple[float, float]) -> float:
    """The depth that is tried first. limit: on the drop. steps: of training.

    Rather too shallow than too deep: from there it goes on deeper, and nothing was in vain.
    """
    trained = min(1.0, max(UNTRAINED, math.sqrt(steps / ENOUGH)))
    loss = FIRST * trained * math.sqrt(max(limit, 5e-4) / 0.005)
    return min(ends[1], max(ends[0], math.log(loss)))


def bracket(seen: Sequence[Seen], target: float) -> tuple[float | None, float | None]:
    """The greatest depth that holds the target, and the least beyond it that does not."""
    held = max((s.depth for s in seen if s.drop <= target), default=None)
    failed = [s.depth for s in seen if s.drop > target and (held is None or s.depth > held)]
    return held, min(failed, default=None)


def next_depth(
    seen: Sequence[Seen], target: float, noise: float, ends: tuple[float, float]
) -> float:
    """The depth at which the drop is expected to be the target.

    noise: of a drop, below which drops are not told apart. The drop is taken as a power of the
    loss that was predicted, fitted to the three nearest; where there is one, as proportional. What
    comes out is kept between the depths that hold and do not hold, or within reach of them.
    """
    floor = max(noise / 2, target / 8, 1e-6)
    near = sorted(seen, key=lambda s: abs(s.drop - target))[:3]
    u = np.array([s.depth for s in near])
    v = np.log([max(s.drop, floor) for s in near])
    spread = u - u.mean()
    slope = (spread @ (v - v.mean()) + WEIGHT) / (spread @ spread + WEIGHT)
    wanted = u.mean() + (math.log(max(target, floor)) - v.mean()) / max(slope, 0.2)
    held, failed = bracket(seen, target)
    if held is None and failed is None:
        low, high = ends
    elif held is None:
        assert failed is not None
        low, high = failed - REACH, failed - STEP
    elif failed is None:
        low, high = held + STEP, held + REACH
    else:
        edge = EDGE * (failed - held)
        low, high = held + edge, failed - edge
    return float(min(ends[1], max(ends[0], min(high, max(low, wanted)))))
