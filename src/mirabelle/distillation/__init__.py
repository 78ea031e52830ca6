"""A student that learns from teachers: `mb.distill`."""

from mirabelle.distillation.api import distill
from mirabelle.distillation.checks import check_cache, check_losses, default_ensemble
from mirabelle.distillation.ensembles import ENSEMBLES
from mirabelle.distillation.features import FEATURE_LOSSES
from mirabelle.distillation.losses import LOSSES
from mirabelle.distillation.saving import save_outputs
from mirabelle.distillation.teachers import check_mixture

__all__ = [
    "ENSEMBLES",
    "FEATURE_LOSSES",
    "LOSSES",
    "check_cache",
    "check_losses",
    "check_mixture",
    "default_ensemble",
    "distill",
    "save_outputs",
]
