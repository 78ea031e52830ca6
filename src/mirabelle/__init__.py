"""Mirabelle: a trained network in, one that fits a phone out. The public names are the functions below."""

from mirabelle.distill import distill
from mirabelle.export import export
from mirabelle.graph.explain import explain
from mirabelle.measure import measure
from mirabelle.pipeline import run
from mirabelle.prune import prune
from mirabelle.quantize import quantize
from mirabelle.report.picture import picture
from mirabelle.sparsify import sparsify
from mirabelle.store import load, save
from mirabelle.train import fit
from mirabelle.verify import verify
from mirabelle.version import __version__

__all__ = [
    "__version__", "distill", "explain", "export", "fit", "load", "measure", "picture", "prune", "quantize", "run", "save", "sparsify", "verify",
]  # fmt: skip
