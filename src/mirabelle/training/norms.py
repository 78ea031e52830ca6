"""BatchNorm while others train: whose statistics follow the batches, and whose stay."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BATCHNORM = ("train", "freeze")  # what their statistics do


def norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorms that keep statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def is_frozen(norm: nn.Module) -> bool:
    """Whether none of its parameters is trained: who freezes a layer wants what it computes."""
    own = list(norm.parameters(recurse=False))
    return bool(own) and not any(p.requires_grad for p in own)


def train_mode(model: nn.Module, freeze: bool = False) -> None:
    """Training mode, but for BatchNorms that are frozen; all of them where `freeze` says so."""
    model.train()
    keep_still(model, freeze)


def keep_still(model: nn.Module, freeze: bool = False) -> None:
    """Evaluation mode for BatchNorms that are frozen; for all of them where `freeze` says so."""
    for norm in norms(model):
        if freeze or is_frozen(norm):
            norm.eval()
