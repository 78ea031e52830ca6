"""Integers in place of floats: `mb.quantize`."""

from mirabelle.quantization.api import PLACEMENTS, quantize
from mirabelle.quantization.calibration.thresholds import THRESHOLDS
from mirabelle.quantization.repairs.table import REPAIRS, check_repairs
from mirabelle.quantization.simulation.description import Quantization, quantization
from mirabelle.quantization.simulation.graph import rebuild
from mirabelle.quantization.targets import TARGETS

__all__ = [
    "PLACEMENTS",
    "REPAIRS",
    "TARGETS",
    "THRESHOLDS",
    "Quantization",
    "check_repairs",
    "quantization",
    "quantize",
    "rebuild",
]
