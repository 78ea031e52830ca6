"""Scores of all groups by the criterion of a cut."""

from __future__ import annotations

import torch
from torch import nn

from mirabelle.base.data import seed_everything
from mirabelle.base.names import resolve
from mirabelle.channels.groups import Coupling
from mirabelle.fitting.gradients import loss_function
from mirabelle.pruning.criteria import CRITERIA, NEEDS_GRADIENTS, NEEDS_SAMPLES, group_scores
from mirabelle.pruning.settings import Settings
from mirabelle.pruning.stats import collect


def scored(model: nn.Module, coupling: Coupling, settings: Settings) -> dict[str, torch.Tensor]:
    """(C,) by group; larger stays."""
    data, criterion = settings.read, settings.criterion
    seed_everything(settings.seed)
    stats = collect(
        model,
        coupling,
        data,
        loss_function(settings.loss),
        needs_gradients=data is not None and (callable(criterion) or criterion in NEEDS_GRADIENTS),
        by_sample=criterion in NEEDS_SAMPLES,
    )
    score = resolve(criterion, CRITERIA, "criterion")
    return {
        g.name: group_scores(criterion, score, g, stats, settings.normalize, settings.aggregate)
        for g in coupling.groups
    }
