"""Size, multiply-accumulates, latency, memory and accuracy: `mb.measure`."""

from mirabelle.measurement.accuracy import METRICS
from mirabelle.measurement.api import measure
from mirabelle.measurement.latency import Latency, Speedup, alternate, speedup
from mirabelle.measurement.macs import (
    OnnxMacs,
    count_macs,
    count_onnx_macs,
    count_onnx_parameters,
    count_parameters,
    fvcore_macs,
)
from mirabelle.measurement.memory import PeakMemory, peak_memory
from mirabelle.measurement.result import Measurement

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
