"""Size, multiply-accumulates, latency, memory and accuracy: `mb.measure`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mirabelle.measurement.api import measure
from mirabelle.measurement.latency import Latency, Speedup, alternate, speedup
from mirabelle.measurement.macs import count_macs, count_parameters, fvcore_macs
from mirabelle.measurement.memory import PeakMemory, peak_memory
from mirabelle.measurement.onnx_macs import OnnxMacs, count_onnx_macs, count_onnx_parameters
from mirabelle.measurement.result import Measurement

if TYPE_CHECKING:
    from mirabelle.measurement.accuracy import METRICS


def __getattr__(name: str) -> Any:
    """`METRICS` brings torch along, which the process that measures a runtime's memory lacks."""
    if name != "METRICS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mirabelle.measurement.accuracy import METRICS

    return METRICS


__all__ = [
    "METRICS",
    "Latency",
    "Measurement",
    "OnnxMacs",
    "PeakMemory",
    "Speedup",
    "alternate",
    "count_macs",
    "count_onnx_macs",
    "count_onnx_parameters",
    "count_parameters",
    "fvcore_macs",
    "measure",
    "peak_memory",
    "speedup",
]
