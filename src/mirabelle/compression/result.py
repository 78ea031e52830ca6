"""What `mb.compress` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from mirabelle.compression.front import Point
from mirabelle.runtimes import Artifact


@dataclass(frozen=True)
class Compressed:
    """The best network that was found.

    model: a network, with integers where the plan has them. artifact: its file, ready to call;
    `.path` is where it lies. front: every point that no other beats, the cheapest first; points:
    all of them. report: the page; recipe: what makes the best one again, for `mb.run`. missed: a
    sentence for each limit that was missed. numbers: what `report.json` holds. folder: of the
    study.
    """

    model: nn.Module = field(repr=False)
    artifact: Artifact
    best: Point
    front: list[Point]
    points: list[Point] = field(repr=False)
    report: Path
    recipe: Path
    missed: list[str]
    numbers: dict[str, Any] = field(repr=False)
    folder: Path

    def __str__(self) -> str:
        end = "".join(f"\nlimit missed: {m}" for m in self.missed)
        return (
            f"{self.artifact.path}: {self.best}\nreport: {self.report}\nrecipe: {self.recipe}{end}"
        )
