"""Channels removed: `mb.prune`."""

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
    "prune",
]
