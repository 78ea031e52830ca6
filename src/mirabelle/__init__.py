"""Mirabelle: a trained network in, one that fits a phone out. The public names are the functions below."""

from mirabelle.distill import distill
from mirabelle.export import export
from mirabelle.graph.explain import explain
from mirabelle.measure import measure
from mirabelle.prune import prune
from mirabelle.quantize import quantize
from mirabelle.store import load, save
from mirabelle.train import fit
from mirabelle.verify import verify

__version__ = "0.1.0"

from mirabelle.pipeline import run  # noqa: E402  reads the version
__all__ = ["distill", "explain", "export", "fit", "load", "measure", "prune", "quantize", "run", "save", "verify"]
