"""Channels removed: `mb.prune`."""

from mirabelle.pruning.allocation import ALLOCATIONS
from mirabelle.pruning.api import prune
from mirabelle.pruning.criteria import AGGREGATIONS, CRITERIA, NORMALIZATIONS
from mirabelle.pruning.repair import REPAIRS

__all__ = ["AGGREGATIONS", "ALLOCATIONS", "CRITERIA", "NORMALIZATIONS", "REPAIRS", "prune"]
