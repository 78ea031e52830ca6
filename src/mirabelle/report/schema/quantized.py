"""What quantization did, and what verification says of the files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mirabelle.report.schema.part import Part
from mirabelle.report.schema.run import Score


@dataclass(frozen=True)
class CheckedLayer(Part):
    """max_off_by: in steps. exact: the share of values that are equal."""

    layer: str | None
    operator: str | None
    max_off_by: float | None
    exact: float | None
    sqnr_db: float | None
    float_sqnr_db: float | None
    cause: str | None
    why: str | None
    note: str | None
    simulation_off_by: float | None
    simulation_exact: float | None


@dataclass(frozen=True)
class Check(Part):
    """A file compared with the integer reference. saturated: by layer, the share of its sums."""

    runtime: str | None
    samples: float | None
    agreement: Score
    ties: float | None
    sqnr_db: float | None
    note: str | None
    saturated: dict[str, float | None]
    tolerance: float | None
    first_departure: CheckedLayer
    layers: list[CheckedLayer]
    float_agreement: Score
    float_sqnr_db: float | None
    simulation_agreement: Score
    simulation_sqnr_db: float | None
    float_operators: Any
    shipped: Any


@dataclass(frozen=True)
class Histogram(Part):
    low: float | None
    high: float | None
    counts: list[Any]


@dataclass(frozen=True)
class Unclipped(Part):
    """What a tensor would be like with nothing clipped."""

    range: list[float | None]
    sqnr_db: float | None
    scale: float | None


@dataclass(frozen=True)
class QuantizedTensor(Part):
    """kind: weight or activation. threshold, maximum, scale, zero_point: a number, or a list."""

    name: str | None
    kind: str | None
    bits: float | None
    rule: str | None
    chosen: bool | None
    threshold: Any
    maximum: Any
    scale: Any
    zero_point: Any
    levels: list[float | None]
    range: list[float | None]
    sqnr_db: float | None
    unclipped: Unclipped
    histogram: Histogram


@dataclass(frozen=True)
class Timing(Part):
    """Placement by time. milliseconds: of a call, by form."""

    runtime: str | None
    layers: list[str]
    milliseconds: dict[str, float | None]


@dataclass(frozen=True)
class Sensitivity(Part):
    layer: str | None
    sqnr_db: float | None


@dataclass(frozen=True)
class Fallback(Part):
    """What a limit on the accuracy brought about."""

    metric: str | None
    limit: float | None
    all_quantized: float | None
    drop: float | None
    interval: list[float | None]
    n: float | None
    precision: str | None
    layers: list[str]
    sensitivity: list[Sensitivity]
    runtime: str | None
    milliseconds: dict[str, float | None]


@dataclass(frozen=True)
class Quantization(Part):
    bits: float | None
    threshold: str | None
    target: str | None
    samples: float | None
    repair: list[Any]
    keep: list[Any]
    timing: Timing
    fallback: Fallback
    tensors: list[QuantizedTensor]
    weight_bits: float | None
    symmetric: bool | None
    weight_symmetric: bool | None
    per_channel: bool | None
    precision: Any
    rules: Any
    pair_sums: Any
    grids: Any
    float_operators: dict[str, Any]
