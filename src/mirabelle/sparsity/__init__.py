"""Weights that are zero, and stay so: `mb.sparsify`."""

from mirabelle.sparsity.allocation import ALLOCATIONS
from mirabelle.sparsity.api import REPAIRS, cut, ramp, share_of_zeros, sparsify
from mirabelle.sparsity.criteria import CRITERIA
from mirabelle.sparsity.layers import ScoredLayer

__all__ = [
    "ALLOCATIONS",
    "CRITERIA",
    "REPAIRS",
    "ScoredLayer",
    "cut",
    "ramp",
    "share_of_zeros",
    "sparsify",
]
