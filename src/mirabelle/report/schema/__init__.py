"""What `report.json` says, with a name and a type for every key: what the page reads.

A file may be older than the page or written by others, so nothing is trusted: what is missing or of
another kind is None or empty. A part of which nothing is known is false.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mirabelle.report.schema.data import Answers, Changed, Data, Example, Preprocessing, Sheet
from mirabelle.report.schema.part import Part, unknown
from mirabelle.report.schema.quantized import (
    Check,
    CheckedLayer,
    Fallback,
    Histogram,
    Quantization,
    QuantizedTensor,
    Sensitivity,
    Timing,
    Unclipped,
)
from mirabelle.report.schema.run import (
    NO_FIGURES,
    Curve,
    CurveScore,
    Figures,
    Handoff,
    Latency,
    LayerSize,
    LayerTime,
    Limit,
    Machine,
    Network,
    Node,
    PeakMemory,
    Profile,
    Result,
    Score,
    Speedup,
    Stage,
    Tensor,
    Training,
)
from mirabelle.report.schema.search import Foretold, Search, Tested, Trial
from mirabelle.report.schema.sparse import (
    BreakEven,
    Forms,
    LayerForms,
    MachineLimits,
    SparseLayer,
    Sparsity,
)

__all__ = [
    "NO_FIGURES",
    "Answers",
    "BreakEven",
    "Changed",
    "Check",
    "CheckedLayer",
    "Curve",
    "CurveScore",
    "Data",
    "Example",
    "Fallback",
    "Figures",
    "Foretold",
    "Forms",
    "Handoff",
    "Histogram",
    "Latency",
    "LayerForms",
    "LayerSize",
    "LayerTime",
    "Limit",
    "Machine",
    "MachineLimits",
    "Network",
    "Node",
    "Part",
    "PeakMemory",
    "Preprocessing",
    "Profile",
    "Quantization",
    "QuantizedTensor",
    "Report",
    "Result",
    "Score",
    "Search",
    "Sensitivity",
    "Sheet",
    "SparseLayer",
    "Sparsity",
    "Speedup",
    "Stage",
    "Tensor",
    "Tested",
    "Timing",
    "Training",
    "Trial",
    "Unclipped",
    "unknown",
]


@dataclass(frozen=True)
class Report(Part):
    """All of a run. failed: by runtime, why it has no file. files: by folder. handoff and profile:
    by runtime. timings: seconds by step.
    """

    format: Any
    mirabelle: str | None
    title: str | None
    recipe: Any
    machine: Machine
    versions: dict[str, Any]
    network: Network
    stages: list[Stage]
    channels: list[LayerSize]
    training: list[Training]
    looks: Any
    verification: list[Check]
    profile: dict[str, Profile]
    timings: dict[str, float | None]
    quantization: Quantization
    sparsity: Sparsity
    forms: Forms
    break_even: BreakEven
    handoff: dict[str, Handoff]
    result: Result
    limits: list[Limit]
    missed: Any
    advice: list[Any]
    failed: dict[str, str | None]
    stopped: str | None
    changed: Changed
    data: Data
    files: dict[str, Any]
    inputs: Any
    front: list[Trial]
    search: Search

    @property
    def steps(self) -> list[str]:
        """The names of the recipe's steps."""
        found = self.recipe.get("steps") if isinstance(self.recipe, dict) else None
        steps = found if isinstance(found, list) else []
        return [str(next(iter(s), "")) for s in steps if isinstance(s, dict)]
