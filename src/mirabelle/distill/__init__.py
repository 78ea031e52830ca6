"""Distillation: `mb.distill`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mirabelle.checks import check_network, check_runs
from mirabelle.data import Batch, batches, seed_everything
from mirabelle.distill.features import Hints, Taps
from mirabelle.distill.losses import LOSSES, Loss
from mirabelle.distill.teachers import Teachers
from mirabelle.errors import InputError, did_you_mean
from mirabelle.measure.accuracy import as_tensor
from mirabelle.plugins import resolve
from mirabelle.train import train
from mirabelle.train.loop import LOSSES as LABEL_LOSSES
from mirabelle.train.loop import Trained


def distill(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module],
    data: Iterable,
    *,
    losses: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    features: Mapping[str, str] | None = None,
    label_loss: str | Callable = "cross_entropy",
    **options: Any,
) -> nn.Module:
    """Trains a copy of `student` on what `teacher` says of `data`, and returns it. No labels are needed.

    teacher: one network, or several, whose probabilities are averaged. losses: weights by name: those of `LOSSES`, `"package.module:function"`,
    `features` (with `features=`) and `labels` (needs targets); `{"dist": 1.0}` by default. temperature: of the softmax.
    features: student's layer -> teacher's layer, by module path. label_loss: the loss behind `labels`. options: those of `mirabelle.train.train`.

    Raises `InputError` before training for unknown losses or layers (with the nearest names), outputs that cannot be compared (with both shapes),
    and missing targets.
    """
    return run(student, teacher, data, losses=losses, temperature=temperature, features=features, label_loss=label_loss, **options).model


def run(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module],
    data: Iterable,
    *,
    losses: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    features: Mapping[str, str] | None = None,
    label_loss: str | Callable = "cross_entropy",
    **options: Any,
) -> Trained:
    """`distill` with its history."""
    weights = dict(losses or {"dist": 1.0})
    check_weights(weights, temperature, features)
    if features and "features" not in weights:
        weights["features"] = 1.0
    student = check_network(student, "student")
    device = torch.device(options.get("device") or next((p.device for p in student.parameters()), torch.device("cpu")))
    seed_everything(options.get("seed", 0))  # projections start at random
    teachers = Teachers(teacher, device)
    first = next(batches(data, what="the training loader"))
    if "labels" in weights and first.target is None:
        raise InputError("losses has 'labels', but the training loader yields no targets")
    few = first.head(2)
    taps, hints = _hints(student, teachers, few, features)
    functions = {n: resolve(n, LOSSES, "loss") for n in weights if n not in ("labels", "features")}
    _check_outputs(student, teachers, few, functions, temperature)
    hard: Callable | None = resolve(label_loss, LABEL_LOSSES, "label loss") if "labels" in weights else None

    def objective(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        taught = teachers(batch)
        student_taps = Taps(network, list(features), "student") if features else None
        try:
            output = as_tensor(network(*batch.args, **batch.kwargs))
        finally:
            if student_taps is not None:
                student_taps.close()
        parts = {n: weights[n] * f(output, taught, temperature) for n, f in functions.items()}
        if hints is not None and student_taps is not None and taps is not None:
            parts["features"] = weights["features"] * hints(student_taps.seen, taps.seen)
        if hard is not None:
            parts["labels"] = weights["labels"] * hard(output, batch.target)
        return parts

    try:
        return train(student, data, objective, extra=hints, **{"progress": "distilling", **options})
    finally:
        if taps is not None:
            taps.close()


def check_weights(weights: Mapping[str, float], temperature: float, features: Mapping[str, str] | None) -> None:
    """`InputError` for losses that do not exist or cannot be weighed; needs no network."""
    for name, weight in weights.items():
        if name not in LOSSES and name not in ("labels", "features") and ":" not in str(name):
            raise InputError(f"losses has {name!r}{did_you_mean(str(name), [*LOSSES, 'labels', 'features'])}")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise InputError(f"losses[{name!r}] is {weight!r}; expected a weight of at least 0")
    if not any(weights.values()):
        raise InputError("all losses have weight 0; there is nothing to learn")
    if not isinstance(temperature, (int, float)) or not 0 < temperature < float("inf"):
        raise InputError(f"temperature must be positive, got {temperature!r}")
    if "features" in weights and not features:
        raise InputError("losses has 'features'; say which with features={'student layer': 'teacher layer'}")


def _hints(student: nn.Module, teachers: Teachers, few: Batch, features: Mapping[str, str] | None) -> tuple[Taps | None, Hints | None]:
    """The teacher's taps, left open for training, and the hints with their projections."""
    if not features:
        return None, None
    if len(teachers.networks) > 1:
        raise InputError("features needs a single teacher; of an ensemble it is not clear which layer is meant")
    mine = Taps(student, list(features), "student")
    try:
        check_runs(student, few.map(lambda t: t.to(teachers.device)), "the first training batch")
    finally:
        mine.close()
    theirs = Taps(teachers.networks[0], list(features.values()), "teacher")
    teachers(few)
    return theirs, Hints(features, mine.seen, theirs.seen)


def _check_outputs(student: nn.Module, teachers: Teachers, few: Batch, functions: Mapping[str, Loss], temperature: float) -> None:
    taught = teachers(few)
    output = as_tensor(check_runs(student, few.map(lambda t: t.to(teachers.device)), "the first training batch"))
    if functions and output.shape != taught.shape:
        raise InputError(f"the student gives {tuple(output.shape)} and the teacher {tuple(taught.shape)}; their outputs must have the same shape")
    for name, function in functions.items():
        if function(output, taught, temperature).shape != ():
            raise InputError(f"loss {name!r} gave a tensor of shape {tuple(function(output, taught, temperature).shape)}; expected a scalar")


__all__ = ["LOSSES", "distill"]
