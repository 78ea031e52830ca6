"""Float, simulation, integer reference and runtime, layer by layer: `mb.verify`."""

from mirabelle.verification.api import LayerCheck, Verification, sqnr, verify

__all__ = ["LayerCheck", "Verification", "sqnr", "verify"]
