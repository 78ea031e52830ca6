"""The one training loop: `mb.fit`."""

from mirabelle.fitting.gradients import LOSSES
from mirabelle.training.api import fit, train

__all__ = ["LOSSES", "fit", "train"]
