"""What goes along with a training that is not ours: zeros stay zeros, BatchNorm stands still where
it should, and a teacher's losses join the trainer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import nn
from typing_extensions import Doc

from mirabelle.base.data import Batch, device_of
from mirabelle.base.declarations import SeedOption
from mirabelle.base.errors import InputError
from mirabelle.base.options import Expected, OneOf, declared
from mirabelle.distillation.api import networks_of
from mirabelle.distillation.checks import check_losses, default_ensemble
from mirabelle.distillation.declarations import (
    EnsembleOption,
    TeacherWeightsOption,
    TemperatureOption,
)
from mirabelle.distillation.features import FEATURE_LOSSES
from mirabelle.distillation.objective import HEAD, Distillation
from mirabelle.distillation.teachers import Teachers
from mirabelle.integrations.limits import Limit, check_limits, limits_of
from mirabelle.sparsity import masks
from mirabelle.sparsity.gradual import Gradual, SparsifyOption
from mirabelle.training.logs import LOGS, Log, logger
from mirabelle.training.norms import BATCHNORM, keep_still

Teacher = nn.Module | str | Path
OWN = "labels"  # the loss that the trainer computes by itself
NOT_INPUTS = (OWN, "label_ids", "num_items_in_batch")  # what Hugging Face's Trainer gives besides


class Call(NamedTuple):
    """What a network was given in a forward pass of the training, and what it made of it."""

    batch: Batch
    output: Any


@dataclass(frozen=True)
class Plan:
    """The options of `companion`, as there."""

    teacher: Teacher | Sequence[Teacher] | None
    losses: Mapping[str, float]
    temperature: float
    ensemble: str | None
    weights: Sequence[float] | None
    sparsify: Mapping[str, Any] | None
    batchnorm: str
    limits: list[Limit]
    log: Log | None
    seed: int


def _together(options: Mapping[str, Any]) -> None:
    limits_of(options["limits"])
    losses = options["losses"]
    if (options["teacher"] is None) != (losses is None):
        raise InputError(
            "teacher and losses belong together, such as teacher=network, "
            "losses={'kd': 1.0, 'labels': 1.0}; labels is the trainer's own loss"
        )
    if losses is None:
        return
    check_losses(losses, None)
    if apart := {*FEATURE_LOSSES, *HEAD} & set(losses):
        raise InputError(
            f"losses has {min(apart)!r}, which trains modules beside the student; a callback "
            "takes losses of outputs, mb.distill takes all"
        )


@declared(_together)
def companion(
    *,
    teacher: Annotated[Any, Doc("a network, a file, or a list of these; frozen")] = None,
    losses: Annotated[
        Mapping[str, float] | None,
        Expected("weights of at least 0 by name, such as {kd: 1.0, labels: 1.0}"),
        Doc("weights by name; labels is the loss that the trainer computes, 0 where not named"),
    ] = None,
    temperature: TemperatureOption = 1.0,
    ensemble: EnsembleOption = None,
    weights: TeacherWeightsOption = None,
    sparsify: SparsifyOption = None,
    batchnorm: Annotated[
        str, OneOf(BATCHNORM), Doc("whether BatchNorm's statistics follow the batches")
    ] = "train",
    limits: Annotated[
        Sequence[str],
        Expected("a list such as ['val_accuracy >= 0.9']"),
        Doc("what must hold of the last figures that were logged"),
    ] = (),
    log: Annotated[
        str | Callable | None,
        Expected(f"one of {', '.join(LOGS)}, or (step, figures) -> None"),
        Doc("where our figures go besides the trainer's own loggers"),
    ] = None,
    seed: Annotated[SeedOption, Doc("of what cuts and teachers draw")] = 0,
) -> Companion:
    """What the callbacks put beside a training; use it by hand in a loop of your own.

    The zeros of a sparse network stay zeros, and frozen BatchNorms keep their statistics, without
    any option. A quantized network needs nothing here: its steps are parameters.

    losses: those of `mirabelle.distillation.LOSSES`. The teacher sees the student's own inputs.
    limits: `LimitError` at the end of the training where one is missed.

    Raises `InputError` for options that do not fit together.
    Example, in a loop of your own:

        keep = companion(); keep.start(network, total=100)
        for step, (x, y) in enumerate(batches):
            keep.before_step(step); loss(network(x), y).backward(); optimizer.step()
            keep.after_step(); optimizer.zero_grad()
        keep.close()
    """
    given = dict(locals())
    return Companion(
        Plan(
            **{
                **given,
                "losses": dict(losses or {}),
                "limits": limits_of(limits),
                "log": logger(log),
            }
        )
    )


class Companion:
    """One training's company. Between `start` and `close` it has hooks on the network."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.network: nn.Module | None = None
        self.pruned: dict[str, torch.Tensor] = {}
        self.gradual: Gradual | None = None
        self.objective: Distillation | None = None
        self.calls: list[Call] = []
        self.parts: dict[str, float] = {}
        self.done = 0
        self._busy = False
        self._hooks: dict[str, Any] = {}

    @property
    def teaches(self) -> bool:
        """Whether there is a teacher whose losses count."""
        return bool({n: w for n, w in self.plan.losses.items() if w and n != OWN})

    def start(
        self, network: nn.Module, total: int, data: Iterable | None = None, done: int = 0
    ) -> None:
        """total: steps of the optimizer in all. data: what criteria and repairs of `sparsify` read,
        unless it names data of its own. done: steps that were made before. A network that is in
        evaluation mode as a whole goes into training mode; parts of it may stay in evaluation.
        """
        self.close()
        self.network, self.done = network, done
        if not network.training:  # as all that Mirabelle returns, and Lightning lets it be
            network.train()
        if self.plan.sparsify is not None:
            self.gradual = Gradual(
                self.plan.sparsify, network, () if data is None else data, total, self.plan.seed
            )
            self.gradual.resume(network, done)
        self._hooks["before forward"] = network.register_forward_pre_hook(
            self._before_forward, with_kwargs=True
        )
        self._hold()

    def close(self) -> None:
        """Takes the hooks off."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks, self.calls, self.objective = {}, [], None

    def _hold(self) -> None:
        """The zeros of now stay: their gradients are zero before anybody adds, clips or averages
        them.
        """
        assert self.network is not None
        self.pruned = masks.zeros(self.network)
        masks.enforce(self.network, self.pruned)
        for name in self.pruned:
            parameter = self.network.get_parameter(name)
            if name not in self._hooks and parameter.requires_grad:
                self._hooks[name] = parameter.register_hook(
                    lambda g, name=name: g.masked_fill(self.pruned[name], 0.0)
                )

    def _before_forward(self, network: nn.Module, args: tuple, kwargs: dict) -> None:
        if not network.training or self._busy:
            return
        keep_still(network, self.plan.batchnorm == "freeze")
        if self.teaches and torch.is_grad_enabled():
            self.calls.append(Call(_batch(args, kwargs), None))

    def watch(self) -> None:
        """Keeps what the network gives, for `loss`: where nobody hands the outputs over."""
        assert self.network is not None

        def keep(network: nn.Module, args: tuple, output: Any) -> None:
            if self.calls and network.training and not self._busy and torch.is_grad_enabled():
                self.calls[-1] = self.calls[-1]._replace(output=output)

        self._hooks["after forward"] = self.network.register_forward_hook(keep)

    def before_step(self, done: int) -> None:
        """Makes the cut that is due before the step after `done` ones, if any."""
        self.done = done
        if self.network is None:
            raise InputError("the companion has no network yet; call start(network, total) first")
        if self.gradual is not None:
            with self._apart():
                if self.gradual.before_step(self.network, done):
                    self._hold()

    def after_step(self) -> None:
        """Behind a step of the optimizer: what it made of zeros becomes zero again."""
        if self.network is not None:
            masks.enforce(self.network, self.pruned)

    @contextmanager
    def _apart(self):
        """What runs inside is not the training."""
        self._busy, before = True, self._busy
        try:
            yield
        finally:
            self._busy = before

    def loss(self, own: torch.Tensor, divisor: float = 1.0) -> torch.Tensor:
        """The trainer's own loss, weighed, and the teacher's for the forward passes since the last
        call: the mean over them.

        own: a scalar. divisor: of the teacher's losses, where the trainer has divided its own.
        Raises `InputError` where the network did not run, or gives what cannot be compared.
        """
        if not self.teaches:
            return own
        calls, self.calls = [c for c in self.calls if c.output is not None], []
        if not calls:
            raise InputError(
                "the network that is distilled did not run in the training step; name the one "
                "that does, such as network='model'"
            )
        found = [self._lesson(call) for call in calls]
        parts = {n: sum(f[n] for f in found) / len(found) for n in found[0]}
        self.parts = {n: float(torch.as_tensor(v).detach()) for n, v in parts.items()}
        total = torch.stack([torch.as_tensor(p).float() for p in parts.values()]).sum() / divisor
        weight = self.plan.losses.get(OWN, 0.0)
        return total + weight * own.float() if weight else total

    def _lesson(self, call: Call) -> dict[str, torch.Tensor]:
        assert self.network is not None
        with self._apart():
            if self.objective is None:
                self.objective = self._objective(call.batch)
            self.objective.position = lambda: (0, self.done)
            return self.objective.of(call.output, call.batch)

    def _objective(self, first: Batch) -> Distillation:
        plan, network = self.plan, self.network
        assert network is not None and plan.teacher is not None
        parts = {n: w for n, w in plan.losses.items() if n != OWN}
        teachers = Teachers(
            networks_of(plan.teacher),
            device_of(network),
            ensemble=plan.ensemble or default_ensemble(parts),
            weights=plan.weights,
            seed=plan.seed,
        )
        with torch.no_grad():
            found = Distillation(
                network, teachers, first, parts, plan.temperature, None, None, None
            )
        if found.extra.used:
            raise InputError(
                "the student's outputs are of another width than the teacher's, which a trained "
                f"projection would bridge for {sorted(parts)}; mb.distill has one, or take rkd_"
                "distance and rkd_angle, which compare any widths"
            )
        return found

    def figures(self) -> dict[str, float]:
        """What is worth a line in a log: the share of zeros in the sparse parameters, and the parts
        of the teacher's losses in the last step.
        """
        found = {f"mirabelle/{n}": v for n, v in self.parts.items()}
        if self.pruned:
            zeros = sum(int(m.sum()) for m in self.pruned.values())
            found["mirabelle/sparsity"] = zeros / sum(m.numel() for m in self.pruned.values())
        return found

    def log(self) -> dict[str, float]:
        """The figures, sent to `log=` too."""
        found = self.figures()
        if self.plan.log is not None and found:
            self.plan.log(self.done, found)
        return found

    def check(self, figures: Mapping[str, float]) -> None:
        """`LimitError` where a limit is missed by the figures that were logged, or by ours."""
        check_limits(self.plan.limits, {**figures, **self.figures()})


def _batch(args: tuple, kwargs: dict) -> Batch:
    """Copies of the tensors that a network was given: a forward may write into them."""
    named = {
        k: v.detach().clone()
        for k, v in kwargs.items()
        if isinstance(v, torch.Tensor) and k not in NOT_INPUTS
    }
    places = tuple(v.detach().clone() for v in args if isinstance(v, torch.Tensor))
    return Batch(places, named, None)
