"""Channels removed, `mb.prune`, and layers of low rank, `mb.factorize`."""

from mirabelle.pruning.allocation import ALLOCATIONS
from mirabelle.pruning.api import prune
from mirabelle.pruning.criteria import (
    ADDITIVE,
    AGGREGATIONS,
    CRITERIA,
    NEEDS_GRADIENTS,
    NEEDS_SAMPLES,
    NORMALIZATIONS,
)
from mirabelle.pruning.factorization import factorize
from mirabelle.pruning.repair import REPAIRS

__all__ = [
    "ADDITIVE",
    "AGGREGATIONS",
    "ALLOCATIONS",
    "CRITERIA",
    "NEEDS_GRADIENTS",
    "NEEDS_SAMPLES",
    "NORMALIZATIONS",
    "REPAIRS",
    "factorize",
    "prune",
]
