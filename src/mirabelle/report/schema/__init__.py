"""What `report.json` says, with a name and a type for every key: what the page reads.

A file may be older than the page or written by others, so nothing is trusted: what is missing or of
another kind is None or empty. A part of which nothing is known is false.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mirabelle.base.version import __version__
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
    Look,
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
    "Look",
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


@dataclass(frozen=True, kw_only=True)
class Report(Part):
    """All of a run. failed: by runtime, why it has no file. files: by folder. handoff and profile:
    by runtime. timings: seconds by step.
    """

    format: Any = 1
    mirabelle: str | None = __version__
    title: str | None
    recipe: Any = None
    machine: Machine
    versions: dict[str, Any]
    network: Network
    stages: list[Stage]
    channels: list[LayerSize]
    training: list[Training]
    looks: list[Look] = field(default_factory=list)
    verification: list[Check]
    profile: dict[str, Profile] = field(default_factory=dict)
    timings: dict[str, float | None] = field(default_factory=dict)
    quantization: Quantization
    sparsity: Sparsity = field(default_factory=Sparsity.nothing)
    forms: Forms = field(default_factory=Forms.nothing)
    break_even: BreakEven = field(default_factory=BreakEven.nothing)
    handoff: dict[str, Handoff] = field(default_factory=dict)
    result: Result
    limits: list[Limit]
    missed: Any = None
    advice: list[Any] = field(default_factory=list)
    failed: dict[str, str | None] = field(default_factory=dict)
    stopped: str | None = None
    changed: Changed = field(default_factory=Changed.nothing)
    data: Data = field(default_factory=Data.nothing)
    files: dict[str, Any] = field(default_factory=dict)
    inputs: Any = None
    front: list[Trial] = field(default_factory=list)
    search: Search = field(default_factory=Search.nothing)

    def to_dict(self) -> dict[str, Any]:
        """What `report.json` holds: without the parts of which nothing is known."""
        return {name: value for name, value in super().to_dict().items() if value is not None}

    @property
    def steps(self) -> list[str]:
        """The names of the recipe's steps."""
        found = self.recipe.get("steps") if isinstance(self.recipe, dict) else None
        steps = found if isinstance(found, list) else []
        return [str(next(iter(s), "")) for s in steps if isinstance(s, dict)]
