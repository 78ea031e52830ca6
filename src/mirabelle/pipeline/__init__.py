"""Recipes, carried out step by step: `mb.run`."""

from mirabelle.pipeline.api import Run, run
from mirabelle.pipeline.summary import without_timings

__all__ = ["Run", "run", "without_timings"]
