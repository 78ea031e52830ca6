"""Scores of a network on data that it is not trained on, and when these say to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import running
from mirabelle.base.data import Batch, preserved, samples
from mirabelle.base.errors import warn
from mirabelle.base.names import resolve
from mirabelle.base.progress import say
from mirabelle.fitting.gradients import evaluated
from mirabelle.measurement.accumulator import is_higher_better, metric_name
from mirabelle.measurement.accuracy import METRICS, Metric, predictor, scores_of
from mirabelle.training.state import Objective, State, placed

FEW = 256  # samples of validation for a quick look
CHECKS = 4  # in the whole training, besides those after each epoch
WORSE = 1.5  # times the loss at the start
PATIENCE = 3  # checks in a row that are so much worse, and become no better: it diverges


class DivergedError(Exception):
    """Training has left what can still become good."""


class Judge:
    """Scores networks, higher is better, by what is validated with, or minus the objective on
    batches that are held back.
    """

    def __init__(
        self,
        objective: Objective,
        held: list[Batch],
        validation: Iterable | None,
        metric: Metric,
        autocast: Callable[[], torch.autocast],
        where: torch.device,
    ):
        self.objective, self.held, self.autocast = objective, held, autocast
        self.validation, self.metric, self.where = validation, metric, where
        self.few: list[Batch] = []
        self.higher = validation is not None and is_higher_better(
            resolve(metric, METRICS, "metric") if isinstance(metric, str) else metric
        )
        self.name = "held_out" if validation is None else f"validation_{metric_name(metric)}"

    def __bool__(self) -> bool:
        return bool(self.held) or self.validation is not None

    def score(self, model: nn.Module) -> float:
        if self.validation is not None:
            found = (predictor(model), self.validation, self.metric, "validating")
            return scores_of(*found, intervals=False).rank
        return -self.loss(model)

    def loss(self, model: nn.Module) -> float:
        """The mean of the objective over samples that are not trained on, in eval mode."""
        batches = self.held or self._few()
        # For one that computes its loss itself, the objective knows how it is evaluated.
        scored = getattr(self.objective, "evaluated", lambda m: evaluated(m, self.objective))
        with scored(model), torch.no_grad(), self.autocast():
            sums = [
                float(torch.stack([p.float() for p in parts.values()]).sum()) * batch.size
                for batch in batches
                for parts in [self._parts(model, batch)]
            ]
        return sum(sums) / sum(b.size for b in batches)

    def _parts(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        with running(batch, "held-back samples, or its loss on them"):
            return self.objective(model, batch)

    def _few(self) -> list[Batch]:
        """The first samples that are validated with, for many quick looks."""
        if not self.few and self.validation is not None:
            with preserved(self.validation):
                found = samples(self.validation, FEW, "the validation loader")
                self.few = [placed(b, self.where) for b in found]
        return self.few

    def figure(self, score: float) -> float:
        """As it is shown: a loss, or a metric of which less is better, as itself."""
        return score if self.higher else -score


def diverges(start: float, losses: list[float]) -> bool:
    """Whether the losses of the checks so far say that nothing good will come of it."""
    if losses and not math.isfinite(losses[-1]):
        return True
    last = losses[-PATIENCE:]
    far = len(last) == PATIENCE and all(v > WORSE * start + 1e-9 for v in last)
    return far and last[-1] >= last[0]


def outcome(judge: Judge, state: State, total: int, before: float | None) -> dict[str, Any]:
    """What became of the training, for `Trained.choices`; said, and warned of where nothing was
    better than the start.
    """
    if state.best.score is None:
        return {}
    after = judge.figure(state.best.score)
    kept = f"the weights after step {state.best.done} of {total}"
    what = f"{judge.name.replace('_', ' ')} {before:.4g} before, {after:.4g} after"
    if state.best.done == 0:
        kept = "the network as it was"
        found = [c for c in state.checks[1:] if math.isfinite(c)]
        best = max if judge.higher else min
        tried = f"{best(found):.4g}" if found else "not finite"
        why = f"; {state.choices['stopped']}" if "stopped" in state.choices else ""
        warn(
            f"training made the network worse on data that it did not see ({what.split(',')[0]}"
            f", at best {tried} on the way), so the network is returned as it was{why}; give more "
            "data, or an lr of your own"
        )
    say(f"{what}; {kept}")
    return {"after": after, "kept": kept}
