"""Scores of a network on data that it is not trained on, and when these say to stop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from mirabelle.base.data import Batch, preserved, samples
from mirabelle.base.progress import say
from mirabelle.measurement.accuracy import evaluate, metric_name, predictor
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
        metric: str | Callable,
        autocast: Callable[[], torch.autocast],
        where: torch.device,
    ):
        self.objective, self.held, self.autocast = objective, held, autocast
        self.validation, self.metric, self.where = validation, metric, where
        self.few: list[Batch] = []
        self.name = "held_out" if validation is None else f"validation_{metric_name(metric)}"

    def __bool__(self) -> bool:
        return bool(self.held) or self.validation is not None

    def score(self, model: nn.Module) -> float:
        if self.validation is not None:
            return evaluate(predictor(model), self.validation, self.metric, "validating").value
        return -self.loss(model)

    def loss(self, model: nn.Module) -> float:
        """The mean of the objective over samples that are not trained on, in eval mode."""
        batches = self.held or self._few()
        modes = {m: m.training for m in model.modules()}
        model.eval()
        try:
            with torch.no_grad(), self.autocast():
                sums = [
                    float(torch.stack([p.float() for p in parts.values()]).sum()) * batch.size
                    for batch in batches
                    for parts in [self.objective(model, batch)]
                ]
        finally:
            for module, mode in modes.items():
                module.training = mode
        return sum(sums) / sum(b.size for b in batches)

    def _few(self) -> list[Batch]:
        """The first samples that are validated with, for many quick looks."""
        if not self.few and self.validation is not None:
            with preserved(self.validation):
                found = samples(self.validation, FEW, "the validation loader")
                self.few = [placed(b, self.where) for b in found]
        return self.few

    def figure(self, score: float) -> float:
        """As it is shown: the loss where it is one."""
        return score if self.validation is not None else -score


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
        best = min if judge.validation is None else max
        tried = f"{best(found):.4g}" if found else "not finite"
        why = f"; {state.choices['stopped']}" if "stopped" in state.choices else ""
        warnings.warn(
            f"training made the network worse on data that it did not see ({what.split(',')[0]}"
            f", at best {tried} on the way), so the network is returned as it was{why}; give more "
            "data, or an lr of your own",
            stacklevel=2,
        )
    say(f"{what}; {kept}")
    return {"after": after, "kept": kept}
