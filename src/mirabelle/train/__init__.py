"""The one training loop: fine-tuning, distillation and quantisation-aware training; one process or many."""

from mirabelle.train.loop import LOSSES, fit, train

__all__ = ["LOSSES", "fit", "train"]
