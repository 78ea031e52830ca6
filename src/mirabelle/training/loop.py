"""The one training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import check_runs, clone, load_state, running, tensors_of
from mirabelle.base.data import Batch, as_batch, device_of, length_of, seed_epoch, seed_everything
from mirabelle.base.errors import InputError, MirabelleError
from mirabelle.base.identity import data_identity, function_identity, network_identity
from mirabelle.base.modes import mixed
from mirabelle.base.names import calling
from mirabelle.base.progress import Bar, bar
from mirabelle.base.reading import items
from mirabelle.measurement.accuracy import as_tensor
from mirabelle.sparsity import masks
from mirabelle.sparsity.gradual import Gradual
from mirabelle.training import distributed
from mirabelle.training.checkpoint import (
    load_checkpoint,
    restore_generators,
    save_checkpoint,
    saved_choices,
)
from mirabelle.training.choices import RangeTest, choose
from mirabelle.training.holdout import SHARE, split
from mirabelle.training.judge import CHECKS, DivergedError, Judge, diverges, outcome
from mirabelle.training.logs import EVERY, logger
from mirabelle.training.norms import train_mode
from mirabelle.training.plan import Plan, Settings, autocast_type
from mirabelle.training.state import Objective, State, Step, differentiable, placed

FEW = 3  # steps, after which it is known how long one takes


@dataclass(frozen=True)
class Trained:
    """The trained network and what was seen on the way: one dict per epoch (mean of each loss part,
    the score on validation or held-back data). choices: what was decided where no learning rate
    was given, why, and what became of it. curve: loss, rate and scores by step, see `Curve`.
    steps: so many were taken.
    """

    model: nn.Module
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    choices: dict[str, Any] = field(default_factory=dict)
    curve: dict[str, Any] = field(default_factory=dict)
    steps: int = 0


class Loop:
    """One training run of `model`, in place. size: samples of the first batch."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable,
        objective: Objective,
        settings: Settings,
        size: int,
    ):
        self.begun = time.monotonic()
        self.model, self.settings = model, settings
        self.world = distributed.start()
        self.log = logger(settings.log if self.world.rank == 0 else None)
        self.where = (
            torch.device(settings.device) if settings.device is not None else device_of(model)
        )
        self.dtype = autocast_type(settings.precision, self.where)
        seed_everything(settings.seed)
        extra = settings.extra.to(self.where) if settings.extra is not None else None
        step = Step(model.to(self.where), objective, extra)
        for p in step.parameters():
            if p.ndim == 4:  # only images have channels last: Module.to asks it of volumes too
                p.data = p.data.to(memory_format=torch.channels_last)
        self.identity = self._identity(loader, objective) if settings.checkpoint else {}
        self.loader, self.judge = self._hold_back(loader, objective)
        choices = self._choose(step, size)
        self.freeze = choices["freeze"]
        self.settings = replace(settings, lr=choices["lr"], accumulate=choices["accumulate"])
        self.plan = Plan.of(self.loader, self.settings)
        self.wrapped = distributed.wrap(step, self.world)
        self.state = State.of(step, self.settings, self.where, self.dtype is torch.float16)
        self.state.choices = choices
        self.gradual = (
            Gradual(settings.sparsify, model, self.loader, self.plan.total, settings.seed)
            if settings.sparsify is not None
            else None
        )
        if self.gradual is not None and self.identity:
            self.identity["sparsify"] = json.loads(json.dumps(self.gradual.identity()))
        self.generators = load_checkpoint(settings.checkpoint, self.state, self.identity)
        if self.gradual is not None:
            self.gradual.resume(model, self.state.done)
        self.pruned = masks.zeros(model)
        self.finite, self.last = _finite(model), None
        self.saved_at = time.monotonic()

    def _hold_back(self, loader: Iterable, objective: Objective) -> tuple[Iterable, Judge]:
        """The data that are trained on, and what scores the network."""
        settings, share = self.settings, self.settings.holdout
        if share is None:
            alone = settings.validation is None and self.world.size == 1
            share = SHARE if settings.lr is None and alone else 0.0
        held: list[Batch] = []
        if share:
            loader, held = split(loader, share, settings.seed, settings.batches)
            held = [placed(b, self.where) for b in held]
        self.judged = bool(held) or (settings.lr is None and settings.validation is not None)
        return loader, Judge(
            objective, held, settings.validation, settings.metric, self._autocast, self.where
        )

    def _choose(self, step: Step, size: int) -> dict[str, Any]:
        """What nobody gave; that of the checkpoint where there is one."""
        settings = self.settings
        if found := saved_choices(settings.checkpoint):
            return found
        trial = None
        if settings.lr is None and self.judge and self.world.size == 1:
            parts = (settings.optimizer, settings.weight_decay, self.where, self.dtype)
            trial = RangeTest(step, self.judge.loss, *parts)
        chosen = choose(self.model, self.loader, size, settings, trial).to_dict()
        return chosen | {"held_out": sum(b.size for b in self.judge.held)}

    def _autocast(self) -> torch.autocast:
        return mixed(self.where, self.dtype)

    def _identity(self, loader: Iterable, objective: Objective) -> dict[str, Any]:
        """What tells this run from others, as JSON: the network at the start, the data, the loss
        and every option that changes the result.
        """
        settings = self.settings
        names = (
            "epochs steps seed optimizer lr weight_decay schedule warmup ema clip accumulate "
            "holdout batchnorm patience"
        )
        found = {name: getattr(settings, name) for name in names.split()}
        found["precision"] = str(self.dtype)
        found |= {f"the network's {k}": v for k, v in network_identity(self.model).items()}
        found["data"] = data_identity(loader, settings.seed * 1_000_003)
        found["validation"] = data_identity(settings.validation, settings.seed)
        found["metric"] = function_identity(settings.metric)
        found |= getattr(objective, "identity", {"loss": function_identity(objective)})
        return json.loads(json.dumps(found))

    def run(self) -> Trained:
        """Trains to the end, and returns what was asked for."""
        settings, state = self.settings, self.state
        self.started = (time.monotonic(), state.done)
        if self.judged and not state.done:
            self._check_start()
        before = state.choices.setdefault("before", state.checks[0] if state.checks else None)
        with bar(settings.progress, self.plan.total, show=self.world.rank == 0) as shown:
            shown.advance(state.done)
            while state.done < self.plan.total and not self._stale():
                try:
                    self._epoch(shown)
                except DivergedError as error:
                    if not self.judged or state.best.state is None:
                        raise MirabelleError(str(error)) from None
                    state.choices["stopped"] = str(error)
                    break
        result = state.result
        if (settings.patience is not None or self.judged) and state.best.state is not None:
            load_state(result, state.best.state)
        if self.judged:
            state.choices |= outcome(self.judge, state, self.plan.total, before)
        self._check_outputs(result)
        result = clone(result).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        seconds, curve = time.monotonic() - self.begun, state.curve.to_dict(self.judge.name)
        return Trained(result, state.history, seconds, state.choices, curve, state.done)

    def _stale(self) -> bool:
        return self.settings.patience is not None and self.state.stale >= self.settings.patience

    def _epoch(self, shown: Bar) -> None:
        """One epoch, or what is left of it."""
        plan, state = self.plan, self.state
        epoch, skip = plan.place(state.done)
        seed_epoch(self.loader, self.settings.seed * 1_000_003 + epoch)
        if hasattr(sampler := getattr(self.loader, "sampler", None), "set_epoch"):
            sampler.set_epoch(epoch)  # type: ignore[union-attr]
        train_mode(state.step, self.freeze)
        if not skip:
            state.totals = {}
        number = -1
        bound = plan.length if length_of(self.loader) is None else None
        for number, item in enumerate(islice(items(self.loader, "the training loader"), bound)):
            if number < skip:
                if number == skip - 1 and self.generators is not None:
                    # Before the next batch is read: reading it may draw, for augmentation.
                    restore_generators(self.generators)
                continue
            if number % plan.accumulate == 0:
                self._grow_sparser()
            place = f"batch {number} of the training loader"
            self._backward(number, as_batch(item, place, squares=True))
            if not plan.closes(number):
                continue
            self._update()
            shown.advance()
            means = {k: v / (number + 1) for k, v in state.totals.items()}
            shown.note(**means)
            if state.done % EVERY == 0:
                self._log(means)
            if state.done >= self.plan.total:
                break
            if (
                self.judged
                and state.done % max(1, self.plan.total // CHECKS) == 0
                and self.judge.held
            ):
                self._check()
            if state.done % plan.per_epoch and self._due():
                self._save()
        if number + 1 != plan.length and state.done < self.plan.total:
            raise InputError(
                f"the training loader promised {plan.length} batches and gave {number + 1} in "
                f"epoch {epoch}; it must give as many in every epoch"
            )
        self._close_epoch(number + 1)

    def _log(self, figures: dict[str, float]) -> None:
        if self.log is not None:
            rate = self.state.optimizer.param_groups[0]["lr"]
            with calling("log"):
                self.log(self.state.done, {**figures, "lr": rate})

    def _check_start(self) -> None:
        """Scores the network before the first step."""
        try:
            self._check()
        except DivergedError:
            raise InputError(
                f"the loss on held-back data is {self.state.checks[0]:.3g} before any training; "
                "look for samples that have no loss, such as those whose labels are all -100, and "
                "for huge numbers in the data"
            ) from None

    def _check(self) -> None:
        """Scores the network within an epoch. Raises `DivergedError`."""
        state = self.state
        value = self.judge.score(state.result)
        state.note(self.judge.figure(value))
        if self.gradual is None or self.gradual.finished(state.done):
            state.watch(value, keep=True, epoch=False)
        if self.judge.held and self.gradual is None and diverges(state.checks[0], state.checks):
            raise DivergedError(
                f"training diverges: the loss on held-back data was {state.checks[0]:.3g} at the "
                f"start and is {state.checks[-1]:.3g} at step {state.done} of {self.plan.total}, "
                f"with lr {self.settings.lr:.2g}"
            )

    def _grow_sparser(self) -> None:
        """The cut that is due before this step, if any."""
        if self.gradual is None or not self.gradual.before_step(self.model, self.state.done):
            return
        train_mode(self.state.step, self.freeze)
        self.pruned = masks.zeros(self.model)
        if self.state.average is not None:
            masks.mark(self.state.average.module, masks.blocks(self.model))
            masks.enforce(self.state.average.module, self.pruned)

    def _backward(self, number: int, batch: Batch) -> None:
        """Adds the gradients of one batch of the epoch."""
        size, state = batch.size, self.state
        batch, share = distributed.share(batch, self.world)
        batch = self.last = placed(batch, self.where)
        alone = self.plan.closes(number) or self.world.size == 1
        with nullcontext() if alone else self.wrapped.no_sync():  # type: ignore[operator]
            place = f"batch {number} of the training loader, or its loss on it"
            with self._autocast(), running(batch, place):
                parts = self.wrapped(batch.args, batch.kwargs, batch.target)
            loss = differentiable(parts, place.partition(",")[0])
            with running(batch, place):
                state.scaler.scale(loss * share / self.plan.together(number)).backward()
        losses = {name: float(part.detach()) for name, part in parts.items()}
        for name, value in losses.items():
            state.totals[name] = state.totals.get(name, 0.0) + value
        if not math.isfinite(sum(state.totals.values())):
            raise DivergedError(
                f"the loss is not finite at step {state.done} of {self.plan.total} "
                f"({', '.join(f'{k} {v:.3g}' for k, v in losses.items())}; "
                f"batch of {size}, lr {self.settings.lr:g}); lower lr, set clip=1.0, or look for "
                "NaN in the data"
            )
        state.curve.batch(losses)

    def _update(self) -> None:
        """One step of the optimizer."""
        state, settings = self.state, self.settings
        for group in state.optimizer.param_groups:
            group["lr"] = self.plan.rate(state.done, settings)
        masks.enforce_gradients(self.model, self.pruned)
        if settings.clip is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.step.parameters(), settings.clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        masks.enforce(self.model, self.pruned)
        if state.average is not None:
            state.average.update_parameters(self.model)
        state.done += 1
        state.curve.step(state.done, self.plan.rate(state.done - 1, settings))
        if settings.seconds is not None:
            self._keep_time(settings.seconds)

    def _keep_time(self, seconds: float) -> None:
        """Shortens the plan to what fits, as the steps so far have shown."""
        now, (start, before) = time.monotonic(), self.started
        done, left = self.state.done, seconds - (now - self.begun)
        each = (now - start) / max(1, done - before)
        if done - before >= FEW or left <= 0:
            self.plan = self.plan.within(done, max(0, int(left / each)))

    def _close_epoch(self, count: int) -> None:
        """Scores, and writes down, an epoch of `count` batches."""
        settings, state = self.settings, self.state
        distributed.share_buffers(state.step, self.world)
        self._check_finite()
        record = {k: v / max(1, count) for k, v in state.totals.items()}
        if self.judge:
            value = self.judge.score(state.result)
            record[self.judge.name] = self.judge.figure(value)
            state.note(self.judge.figure(value))
            if self.gradual is None or self.gradual.finished(state.done):
                state.watch(value, keep=settings.patience is not None or self.judged)
        state.history.append(record)
        self._log({f"epoch/{k}": v for k, v in record.items()})
        state.totals = {}
        if settings.checkpoint and self.world.rank == 0:
            self._save()

    def _check_outputs(self, result: nn.Module) -> None:
        """`MirabelleError` where finite weights have become so large that outputs are not: losses
        are those from before a step, so that none has seen the last one.
        """
        if self.last is None:
            return
        output = as_tensor(check_runs(result, self.last, "the last batch of the training loader"))
        if bool((output.isnan() | output.isposinf()).any()):
            raise MirabelleError(
                f"training made the network's outputs NaN or infinite by step {self.state.done} of "
                f"{self.plan.total}, with lr {self.settings.lr:g} and weight_decay "
                f"{self.settings.weight_decay:g}; lower them, or set clip=1.0"
            )

    def _check_finite(self) -> None:
        """`MirabelleError` for weights or statistics that training has made infinite or NaN."""
        if lost := sorted(self.finite - _finite(self.state.result)):
            raise DivergedError(
                f"training made {lost[0]} NaN or infinite (and {len(lost) - 1} more) by step "
                f"{self.state.done} of {self.plan.total}, with lr {self.settings.lr:g}; lower lr, "
                "set clip=1.0, or look for huge values in the data"
            )

    def _due(self) -> bool:
        """Whether a checkpoint is due within an epoch."""
        waited = time.monotonic() - self.saved_at
        return bool(
            self.settings.checkpoint
            and self.world.rank == 0
            and waited > self.settings.checkpoint_seconds
        )

    def _save(self) -> None:
        save_checkpoint(self.settings.checkpoint, self.state, self.identity)  # type: ignore[arg-type]
        self.saved_at = time.monotonic()


def _finite(model: nn.Module) -> set[str]:
    """The tensors of a network that hold nothing but finite numbers."""
    return {n for n, t in tensors_of(model).items() if bool(torch.isfinite(t).all())}
