"""What `mb.compress` tried and found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mirabelle.report.schema.part import Part


@dataclass(frozen=True)
class Tested(Part):
    drop: float | None
    interval: list[float | None]
    n: float | None


@dataclass(frozen=True)
class Trial(Part):
    """A point of a search. plan: a mapping for each layer."""

    name: str | None
    accuracy: float | None
    drop: float | None
    interval: list[float | None]
    milliseconds: float | None
    bytes: float | None
    macs: float | None
    on_front: bool | None
    why: str | None
    best: bool | None
    knobs: dict[str, Any]
    plan: list[dict[str, Any]]
    test: Tested


@dataclass(frozen=True)
class Foretold(Part):
    """costs: by quantity, as shares of the original's."""

    loss: float | None
    costs: dict[str, float | None]


@dataclass(frozen=True)
class Search(Part):
    limits: dict[str, Any]
    minimize: str | None
    quantity: str | None
    data: dict[str, Any]
    metric: Any
    trials: float | None
    points: float | None
    validation: dict[str, Any]
    plan: list[dict[str, Any]]
    predicted: Foretold
    measured: Foretold
