"""What training saw step by step, thinned to some hundred points."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

MOST = 200  # points; an even number, since pairs of them are merged beyond it


@dataclass
class Curve:
    """The loss and the learning rate by step, and the scores on held-out data.

    each: steps that a point is the mean of; it doubles when there are `MOST` points, so that memory
    does not grow with the training, and the same steps give the same points however often they
    were interrupted. points: {"step" (the last of them), "lr", and each part of the loss}. open:
    points of steps that fill none yet. batches: the losses of a step that is not taken yet.
    scores: (steps before it, score).
    """

    each: int = 1
    points: list[dict[str, float]] = field(default_factory=list)
    open: list[dict[str, float]] = field(default_factory=list)
    batches: list[dict[str, float]] = field(default_factory=list)
    scores: list[tuple[int, float]] = field(default_factory=list)

    def batch(self, parts: dict[str, float]) -> None:
        """Takes note of the parts of one batch's loss."""
        self.batches.append(parts)

    def step(self, done: int, rate: float) -> None:
        """Takes note of an optimizer step with this rate, of the batches since the last one."""
        losses, self.batches = mean(self.batches), []
        self.open.append({"step": done, "lr": rate, **losses})
        if len(self.open) < self.each:
            return
        self.points.append(merged(self.open))
        self.open = []
        if len(self.points) == MOST:
            self.points = [merged(self.points[i : i + 2]) for i in range(0, MOST, 2)]
            self.each *= 2

    def score(self, done: int, value: float) -> None:
        """Takes note of a score after `done` steps; the last one of a step counts."""
        if not math.isfinite(value):
            return
        if self.scores and self.scores[-1][0] == done:
            self.scores.pop()
        self.scores.append((done, value))
        if len(self.scores) == MOST:
            self.scores = [self.scores[0], *self.scores[1::2]]

    def to_dict(self, name: str | None = None) -> dict[str, Any]:
        """Columns for a report. name: what the scores are; None where there are none."""
        points = self.points + ([merged(self.open)] if self.open else [])
        losses = [k for k in (points[0] if points else ()) if k not in ("step", "lr")]
        return {
            "each": self.each,
            "step": [int(p["step"]) for p in points],
            "lr": [p["lr"] for p in points],
            "loss": {k: [p[k] for p in points] for k in losses},
            "score": {
                "name": name if self.scores else None,
                "step": [s for s, _ in self.scores],
                "value": [v for _, v in self.scores],
            },
        }


def mean(parts: list[dict[str, float]]) -> dict[str, float]:
    return {k: sum(p[k] for p in parts) / len(parts) for k in (parts[0] if parts else ())}


def merged(points: list[dict[str, float]]) -> dict[str, float]:
    """One point for several: the mean of each column, the last step."""
    return {**mean(points), "step": points[-1]["step"]}


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """One curve of two trainings that followed each other, from their `to_dict`; steps count on. A
    loss that one of them lacks is left out. Pairs of points are merged beyond `MOST`.
    """
    ends = [c["step"][-1] if c["step"] else 0 for c in (first, second)]
    kept = [k for k in first["loss"] if k in second["loss"]]
    found = Curve(max(first["each"], second["each"]))
    for curve, done in ((first, 0), (second, ends[0])):
        columns = [curve["lr"], *(curve["loss"][k] for k in kept)]
        for step, rate, *losses in zip(curve["step"], *columns, strict=True):
            point = {"step": done + step, "lr": rate, **dict(zip(kept, losses, strict=True))}
            found.points.append(point)
        for step, value in zip(curve["score"]["step"], curve["score"]["value"], strict=True):
            found.score(done + step, value)
    if len(found.points) > MOST:
        points = found.points
        found.points = [merged(points[i : i + 2]) for i in range(0, len(points), 2)]
        found.each *= 2
    return found.to_dict(second["score"]["name"] or first["score"]["name"])
