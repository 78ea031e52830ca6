"""The one training loop: fine-tuning, distillation and quantisation-aware training; one process or
many.
"""

from mirabelle.fitting.gradients import LOSSES
from mirabelle.training.loop import fit, train

__all__ = ["LOSSES", "fit", "train"]
