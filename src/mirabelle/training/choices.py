"""What training decides by itself where no learning rate is given: the rate, how many batches make
a step, and whether BatchNorm's statistics follow the batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import clone, load_state, running, tensors_of
from mirabelle.base.data import Batch, as_batch, preserved, seed_epoch
from mirabelle.base.modes import mixed
from mirabelle.base.progress import say
from mirabelle.base.reading import items
from mirabelle.sparsity import masks
from mirabelle.training.norms import is_frozen, norms, train_mode
from mirabelle.training.optimizers import OPTIMIZERS, parameter_groups
from mirabelle.training.plan import Plan, Settings
from mirabelle.training.state import Step, differentiable, placed

USUAL_RATE = 1e-3  # where nothing can be tried out
RANGES = {"adamw": (1e-5, 1e-1), "sgd": (1e-4, 1.0)}
FEWEST_STEPS, MOST_STEPS = 12, 30  # of the range test, between which it is a twentieth of all
BELOW_BEST = 2.0  # of few data: so much less than the rate at which the ramp was best
ENOUGH_IN_STEP = 16  # samples of a step
ENOUGH = 2000  # samples: fewer are few, and BatchNorm's statistics not worth learning anew
DIVERGED = 4.0  # so many times the loss at the start: the ramp ends


@dataclass(frozen=True)
class Choices:
    """lr: the highest learning rate. accumulate: batches of a step. freeze: BatchNorm keeps its
    statistics. why: by name, for what was chosen and not given.
    """

    lr: float
    accumulate: int
    freeze: bool
    why: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        named = {"lr": f"lr {self.lr:.2g}", "accumulate": f"accumulate {self.accumulate}"}
        named["batchnorm"] = "BatchNorm's statistics " + ("stay" if self.freeze else "are learned")
        return "; ".join(f"{named[k]} ({reason})" for k, reason in self.why.items())


def choose_accumulation(size: int, length: int) -> tuple[int, str]:
    """So many batches of `size` that a step has enough samples, and an epoch ten steps or more."""
    wanted = min(math.ceil(ENOUGH_IN_STEP / max(1, size)), max(1, length // 10))
    return wanted, f"batches of {size}" if wanted > 1 else ""


def choose_statistics(model: nn.Module, samples: int, size: int) -> tuple[bool, str]:
    """Whether BatchNorm keeps its statistics: where they were learned before, and these data, or
    these batches, are too few for better ones. Statistics that were never set are learned.
    """
    own = [n for n in norms(model) if not is_frozen(n)]
    if not own or not all(_was_trained(n) for n in own):
        return False, ""
    if samples >= ENOUGH and size >= ENOUGH_IN_STEP // 2:
        return False, ""
    few = f"{samples} samples" if samples < ENOUGH else f"batches of {size}"
    return True, f"they come from more than these {few}"


def _was_trained(norm: nn.Module) -> bool:
    return bool((norm.running_mean != 0).any() or (norm.running_var != 1).any())  # type: ignore[union-attr, operator]


def choose(
    model: nn.Module, loader: Any, size: int, settings: Settings, trial: RangeTest | None
) -> Choices:
    """What the settings leave open. size: samples of a batch. trial: tries rates out, where
    there are data to judge by. What is chosen is said.
    """
    if settings.lr is not None:
        return Choices(settings.lr, settings.accumulate or 1, settings.batchnorm == "freeze", {})
    plan, why = Plan.of(loader, settings), {}
    accumulate, freeze = settings.accumulate or 1, settings.batchnorm == "freeze"
    if settings.accumulate is None and settings.steps is None:
        accumulate, why["accumulate"] = choose_accumulation(size, plan.length)
    if settings.batchnorm is None:
        freeze, why["batchnorm"] = choose_statistics(model, plan.length * size, size)
    plan = Plan.of(loader, replace(settings, accumulate=accumulate))
    few = plan.length * size < ENOUGH
    rate, why["lr"] = USUAL_RATE, "the usual one: too few data to try rates out"
    if trial is not None:
        rate, why["lr"] = trial(loader, settings.seed * 1_000_003, plan.total, freeze, few)
    chosen = Choices(rate, accumulate, freeze, {k: v for k, v in why.items() if v})
    say(f"{settings.progress}: {chosen}")
    return chosen


class RangeTest:
    """The learning rate, by a ramp of steps on a copy: each step's rate is a constant factor above
    the one before, and the loss on data that are held back says which rates help. Smith 2017,
    section 3.3, with held-back data in place of the training loss.

    score: (network) -> loss on data held back.
    """

    def __init__(
        self,
        step: Step,
        score: Callable[[nn.Module], float],
        optimizer: str,
        weight_decay: float,
        where: torch.device,
        dtype: torch.dtype | None,
    ):
        self.step, self.score, self.optimizer = step, score, optimizer
        self.weight_decay, self.where = weight_decay, where
        self.dtype = dtype if dtype is torch.bfloat16 else None

    def __call__(
        self, loader: Any, seed: int, total: int, freeze: bool, few: bool
    ) -> tuple[float, str]:
        """The rate, and why. total: steps of the training to come. few: so are the data."""
        low, high = RANGES[self.optimizer]
        count = min(MOST_STEPS, max(FEWEST_STEPS, total // 20))
        rates = [low * (high / low) ** (i / (count - 1)) for i in range(count)]
        extra = self.step.extra
        before = None if extra is None else {k: v.clone() for k, v in tensors_of(extra).items()}
        trial = Step(clone(self.step.model), self.step.objective, extra)
        try:
            with preserved(loader):
                seed_epoch(loader, seed)
                start = self.score(trial.model)
                losses = list(self._ramp(trial, rates, _again(loader), start, freeze))
        finally:
            if extra is not None and before is not None:
                load_state(extra, before)
                extra.zero_grad(set_to_none=True)
        return best_rate(rates, losses, start, BELOW_BEST if few else 1.0)

    def _ramp(
        self, trial: Step, rates: list[float], data: Iterator[Batch], start: float, freeze: bool
    ) -> Iterator[float]:
        """The loss on held-back data after each step, until it has left all bounds."""
        groups = parameter_groups(trial, self.weight_decay)
        optimizer = OPTIMIZERS[self.optimizer](groups, rates[0], self.weight_decay)
        pruned = masks.zeros(trial.model)
        for norm in norms(trial.model):
            norm.momentum = 1.0  # else the statistics lag behind weights that change so fast
        for rate, batch in zip(rates, data):
            train_mode(trial, freeze)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            batch = placed(batch, self.where)
            with (
                mixed(self.where, self.dtype),
                running(batch, "a training batch, or its loss on it"),
            ):
                parts = trial(batch.args, batch.kwargs, batch.target)
            differentiable(parts, "a training batch").backward()
            masks.enforce_gradients(trial.model, pruned)
            optimizer.step()
            masks.enforce(trial.model, pruned)
            loss = self.score(trial.model)
            yield loss
            if not math.isfinite(loss) or loss > DIVERGED * max(start, 1e-12):
                return


def best_rate(
    rates: list[float], losses: list[float], start: float, below: float
) -> tuple[float, str]:
    """The rate of a ramp, from the loss on held-back data after each of its steps. below: how far
    under the best one it is.
    """
    smooth = [
        sorted(losses[max(0, i - 1) : i + 2])[len(losses[max(0, i - 1) : i + 2]) // 2]
        for i in range(len(losses))
    ]
    finite = [(v, i) for i, v in enumerate(smooth) if math.isfinite(v)]
    best, place = min(finite, default=(math.inf, 0))
    if best < start:
        return (
            rates[place] / below,
            f"a ramp of {len(losses)} steps was best at {rates[place]:.2g}: "
            f"{best:.3g} on held-back data, {start:.3g} before",
        )
    return rates[0], f"no step of a ramp from {rates[0]:.2g} made held-back data better"


def _again(loader: Iterable) -> Iterator[Batch]:
    """The batches of a loader, again and again."""
    while True:
        for i, item in enumerate(items(loader, "the training loader")):
            place = f"batch {i} of the training loader"
            yield as_batch(item, place, squares=True)
