"""What a search has found: every network that was tried, and those that no other beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Point:
    """One network that was tried.

    trial: its number. start: the folder of the point that it goes on from; "" is the original.
    steps: of training, with those of its starts; own: of these, its own. why: it was tried. knobs:
    what the search chose; plan: see `plan.Plan`. costs: shares of the original's, measured:
    `latency` on the runtime, `size` of the file, `macs`. milliseconds, bytes, macs: the same,
    absolute. drop: of the metric on validation data, as a fraction, with its paired 95 % interval;
    accuracy: the metric; n: samples. loss: the squared error of the outputs relative to their
    energy, measured before training; None where it was not. folder: where its files are, in the
    study's. took: seconds of each phase, and of a step. history, curve: of all training, see
    `Trained`.
    """

    trial: int
    steps: int
    knobs: Mapping[str, Any]
    plan: Mapping[str, Any]
    costs: Mapping[str, float]
    milliseconds: float
    bytes: int
    macs: int
    drop: float
    interval: tuple[float, float]
    accuracy: float
    n: int
    folder: str
    loss: float | None = None
    start: str = ""
    own: int = 0
    why: str = ""
    seconds: float = 0.0
    took: Mapping[str, float] = field(default_factory=dict, repr=False)
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)
    curve: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return f"trial {self.trial}, {self.steps} steps"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"name": self.name, "interval": list(self.interval)}

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Point:
        known = {k: v for k, v in found.items() if k in cls.__dataclass_fields__}
        return cls(**{**known, "interval": tuple(known["interval"])})

    def __str__(self) -> str:
        sign = "lost" if self.drop >= 0 else "gained"
        return (
            f"{self.milliseconds:.3f} ms ({self.costs['latency']:.2f} of the original), "
            f"{self.bytes / 1e6:.2f} MB, {100 * abs(self.drop):.2f} points {sign}"
        )


def front(points: Sequence[Point], quantity: str = "latency") -> list[Point]:
    """The points that no other beats in both: at most their cost and a smaller drop, the cheapest
    first.
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.costs[quantity], p.drop)):
        if not found or point.drop < found[-1].drop:
            found.append(point)
    return found
