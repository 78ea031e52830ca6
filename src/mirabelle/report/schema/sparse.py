"""Sparse layers, their forms, and when sparse is faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mirabelle.report.schema.part import Part


@dataclass(frozen=True)
class SparseLayer(Part):
    layer: str | None
    size: float | None
    zeros: float | None
    block: Any


@dataclass(frozen=True)
class Sparsity(Part):
    layers: list[SparseLayer]


@dataclass(frozen=True)
class LayerForms(Part):
    """milliseconds: in each form."""

    name: str | None
    kind: str | None
    zeros: float | None
    form: str | None
    milliseconds: dict[str, float | None]
    shape: Any


@dataclass(frozen=True)
class Forms(Part):
    """The form in which each sparse layer runs. sparse: whether any runs as sparse."""

    sparse: bool | None
    layers: list[LayerForms]
    runtime: str | None
    file: str | None
    threads: float | None
    milliseconds: Any


@dataclass(frozen=True)
class MachineLimits(Part):
    gmacs: float | None
    gigabytes: float | None


@dataclass(frozen=True)
class BreakEven(Part):
    """speedups, break_even: by kind of layer, then by form."""

    sparsities: list[float | None]
    speedups: dict[str, dict[str, list[float | None]]]
    break_even: dict[str, dict[str, float | None]]
    limits: MachineLimits
