"""The one training loop: fine-tuning, distillation and quantisation-aware training; one process or many."""

from mirabelle.gradients import LOSSES
from mirabelle.train.loop import fit, train

__all__ = ["LOSSES", "fit", "train"]
