"""Distillation: `mb.distill`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import nn
from typing_extensions import Doc

from mirabelle.base import structures
from mirabelle.base.checks import check_network, running, shell
from mirabelle.base.data import Batch, batches, check_finite, device_of, seed_everything
from mirabelle.base.declarations import StepOption
from mirabelle.base.errors import InputError
from mirabelle.base.modes import mixed
from mirabelle.base.names import resolve
from mirabelle.base.options import Expected, FromRun, OneOf, declared, options_of
from mirabelle.base.progress import say
from mirabelle.distillation.cache import Cache, Remembering
from mirabelle.distillation.checks import check_cache, check_losses, default_ensemble, parts_of
from mirabelle.distillation.choices import choose_losses
from mirabelle.distillation.declarations import (
    EnsembleOption,
    TeacherWeightsOption,
    TemperatureOption,
)
from mirabelle.distillation.objective import Distillation
from mirabelle.distillation.outputs import PRECISIONS, Encoding
from mirabelle.distillation.teachers import Teachers
from mirabelle.distillation.views import Views
from mirabelle.fitting.gradients import LOSSES as LABEL_LOSSES
from mirabelle.fitting.gradients import StepLoss, evaluated
from mirabelle.sources.networks import for_data, module
from mirabelle.training.api import train, with_loss
from mirabelle.training.loop import Trained
from mirabelle.training.plan import autocast_type

Teacher = nn.Module | str | Path


def _together(options: Mapping[str, Any]) -> None:
    """What `distill` asks of several options at once."""
    parts, features = parts_of(options["losses"], options["features"]), options["features"]
    check_losses(parts, features, options["head"] is not None)
    if options["step"] is not None and not parts.get("labels"):
        raise InputError(
            "step computes the loss that losses calls labels; give it a weight, such as "
            "losses={'kd': 1.0, 'labels': 1.0}"
        )
    check_cache(parts, options["cache"], options["cache_precision"], options["cache_top"])


@declared(_together, rest=train)
def distill(
    student: nn.Module | str | Path,
    teacher: Teacher | Sequence[Teacher],
    data: Iterable,
    *,
    losses: Annotated[
        Mapping[str, float] | None,
        Expected("weights of at least 0 by name, such as {dist: 1.0}"),
        Doc("weights by name; None is chosen by a look at the first batch"),
    ] = None,
    temperature: TemperatureOption = 1.0,
    features: Annotated[
        Mapping[str, str] | None,
        Expected("student layers and their teacher layers, such as {layer3: layer3}"),
        Doc("layers to compare: the student's module path and the teacher's"),
    ] = None,
    head: Annotated[
        nn.Module | None, Doc("a frozen classifier of the teacher's embeddings")
    ] = None,
    ensemble: EnsembleOption = None,
    weights: TeacherWeightsOption = None,
    teacher_temperatures: Annotated[
        TeacherWeightsOption,
        Doc("by which each teacher's outputs are divided before they are mixed"),
    ] = None,
    cache: Annotated[
        str | Path | None,
        Expected("a folder"),
        Doc("a folder that keeps what the teachers say of each view"),
    ] = None,
    cache_precision: Annotated[
        str, OneOf(PRECISIONS), Doc("how outputs are kept: float32 or float16")
    ] = "float32",
    cache_top: Annotated[
        int | None, Ge(1), Doc("keep only so many classes, the most probable ones; None is all")
    ] = None,
    views: Annotated[
        int | None, Ge(1), Doc("so many epochs have augmentation of their own, then they come back")
    ] = None,
    label_loss: Annotated[
        str | Callable,
        OneOf(LABEL_LOSSES, plugin=True),
        FromRun,
        Doc("the loss behind labels and head_labels"),
    ] = "cross_entropy",
    step: Annotated[
        StepOption, Doc("(network, batch) -> loss, behind labels in place of it")
    ] = None,
    **options: Any,
) -> nn.Module:
    """Trains a copy of `student` on what `teacher` says of `data`, and returns it.

    No labels are needed. Without options losses, rate and batch are chosen by a short look at the
    data.

    - student: a network, or a name of one (`sources.networks`).
    - teacher: a network, a name of one, the path of an .onnx file, that of a .safetensors file
      written by `save_outputs`, or a list of these: an ensemble. Teachers stay as they are.
    - data: batches of inputs or (inputs, target).
    - losses: weights by name, of `LOSSES` (outputs) and `FEATURE_LOSSES` (layers, with
      `features=`), `"package.module:function"`, `head` and `head_labels` (with `head=`), `labels`
      (needs targets).
    - temperature: of the softmax, 1 by default.
    - features: the student's module paths and those of the teacher's that they are compared with.
    - head: a frozen classifier of the teacher's embeddings; it judges the student's too.
    - ensemble: a name of `ENSEMBLES`, or `random`, one teacher for each batch. None is the mean of
      probabilities for losses of a softmax, of sigmoids for `binary_kd`, else of the outputs.
    - weights, teacher_temperatures: one number for each teacher.
    - cache: a folder. A view is a sample with its augmentation; later epochs, students and runs
      know it.
    - cache_precision, cache_top: how much of an output is kept; the latter for `kd`, `dist`,
      `decoupled_kd`.
    - views: so many epochs have augmentation of their own. Without it every epoch is new, and a
      cache helps only where nothing is augmented.
    - label_loss: the loss of `labels` and `head_labels`.
    - step: for networks that compute their loss themselves: (network, batch) -> a scalar, or a dict
      of scalars, which are summed. It is then `labels`. The student runs once more for it.
    - options: those that `mirabelle.training.train` declares, as for `mb.fit`.

    Raises `InputError` before training for unknown losses or layers (with the nearest names),
    outputs that cannot be compared (with both shapes), and missing targets.
    Source: Hinton et al. 2015, section 2; each loss names its own.

    Example:

        >>> import mirabelle as mb, torch
        >>> from torch import nn
        >>> teacher = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
        >>> student = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> x = torch.randn(256, 4)
        >>> taught = mb.distill(student, teacher, list(x.split(32)), epochs=5, lr=0.01)
        >>> def error(m):
        ...     return (m(x) - teacher(x)).square().mean().item()
        >>> error(taught) < error(student)
        True
    """
    given = dict(locals())
    return run(**given.pop("options"), **given).model


@dataclass(frozen=True)
class Lesson:
    """`distill`'s own options, as there. parts: the losses that count, with their weights."""

    parts: dict[str, float]
    temperature: float
    features: Mapping[str, str] | None
    head: nn.Module | None
    ensemble: str | None
    weights: Sequence[float] | None
    teacher_temperatures: Sequence[float] | None
    cache: str | Path | None
    cache_precision: str
    cache_top: int | None
    views: int | None
    label_loss: str | Callable
    step: Callable | None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Lesson:
        known = {**options_of(distill).defaults, **options}
        own = {f.name: known[f.name] for f in fields(cls) if f.name in known}
        return cls(parts_of(known["losses"], known["features"]), **own)


@declared(rest=distill)
def run(
    student: nn.Module | str | Path,
    teacher: Teacher | Sequence[Teacher],
    data: Iterable,
    **options: Any,
) -> Trained:
    """`distill` with its history."""
    lesson, teacher = Lesson.of(options), networks_of(teacher)
    student = check_network(for_data(student, data, "student"), "student")
    if lesson.head is not None:
        check_network(lesson.head, "head")
    options_given, options = options, _for_training(options, lesson, data, _is_saved(teacher))
    seed, steps = options.get("seed", 0), options.get("steps")
    limit = None if steps is None else steps * (options.get("accumulate") or 1)
    loader = Views(data, seed, lesson.views, limit)
    seed_everything(seed)  # projections start at random
    teachers = Teachers(
        teacher,
        torch.device(options.get("device") or device_of(student)),
        ensemble=lesson.ensemble or default_ensemble(lesson.parts),
        weights=lesson.weights,
        temperatures=lesson.teacher_temperatures,
        seed=seed,
    )
    first = next(batches(loader, what="the training loader"))
    check_finite(first, "batch 0 of the training loader", squares=True)
    lesson, why = _with_losses(lesson, options_given, student, teachers, first)
    objective = _objective(student, teachers, first, lesson)
    objective.position = lambda: loader.position
    kept = None
    if lesson.cache is not None:
        kept = _cache(teachers, first, lesson, options.get("precision", "auto"))
        objective.teach = Remembering(kept, loader)
    try:
        trained = train(
            student,
            loader,
            objective,
            extra=objective.extra if objective.extra.used else None,
            **{"progress": "distilling", **options},
        )
        return replace(trained, choices={"losses": lesson.parts, **why, **trained.choices})
    finally:
        objective.close()
        if kept is not None:
            kept.flush()


def networks_of(teacher: Any) -> Any:
    """The teachers, with networks in the place of their names; ONNX files answer as they are."""
    if isinstance(teacher, (list, tuple)):
        return [networks_of(t) for t in teacher]
    if isinstance(teacher, (str, Path)) and (":" in str(teacher) or Path(teacher).suffix == ".pt2"):
        return module(teacher)
    return teacher


def _is_saved(teacher: Any) -> bool:
    """Whether one of the teachers is a file of saved outputs."""
    given = teacher if isinstance(teacher, (list, tuple)) else [teacher]
    return any(isinstance(t, (str, Path)) and Path(t).suffix == ".safetensors" for t in given)


def _for_training(
    options: Mapping[str, Any], lesson: Lesson, data: Iterable, saved: bool
) -> dict[str, Any]:
    """Those of `train`. saved: the teacher is a file of saved outputs."""
    own = {k: v for k, v in options.items() if k in options_of(train)}
    if own.pop("extra", None) is not None:
        raise InputError(
            "extra is for mb.fit and train; mb.distill trains modules of its own beside the "
            "student: put yours into the student"
        )
    if saved and type(data) is not list:
        own.setdefault("holdout", 0.0)  # else other samples draw the augmentation that was saved
    if not isinstance(own.get("sparsify"), Mapping):
        return own
    # It reads between the steps, where `Views` would lose its place.
    own["sparsify"] = {"data": data, **own["sparsify"]}
    if lesson.step is not None:
        return with_loss(own, StepLoss(lesson.step))
    return with_loss(own, resolve(lesson.label_loss, LABEL_LOSSES, "label loss"))


def _with_losses(
    lesson: Lesson, given: Mapping[str, Any], student: nn.Module, teachers: Teachers, first: Batch
) -> tuple[Lesson, dict[str, str]]:
    """The lesson with the losses that suit what it is about, where none are given; and why. What
    is chosen is said.
    """
    several = len(teachers.networks) > 1
    if given.get("losses") is not None or lesson.head or lesson.cache_top or several:
        return lesson, {}
    parts, why = choose_losses(student, teachers, first)
    say(f"distilling: losses {parts} ({why})")
    return replace(lesson, parts=parts_of(parts, lesson.features)), {"why of losses": why}


def _objective(
    student: nn.Module, teachers: Teachers, first: Batch, lesson: Lesson
) -> Distillation:
    parts, hard = lesson.parts, None
    step = None if lesson.step is None else StepLoss(lesson.step)
    for name in ("head_labels",) if step is not None else ("labels", "head_labels"):
        if parts.get(name) and first.target is None:
            raise InputError(f"losses has {name!r}, but the training loader yields no targets")
    if {"labels", "head_labels"} & set(parts):
        hard = resolve(lesson.label_loss, LABEL_LOSSES, "label loss")
    if step is not None:
        _check_step(step, student, first.head(2).to(teachers.device))
    return Distillation(
        student,
        teachers,
        first,
        parts,
        lesson.temperature,
        lesson.features,
        hard,
        lesson.head,
        step,
    )


def _check_step(step: StepLoss, student: nn.Module, few: Batch) -> None:
    """`InputError` where the step does not take the network and the batch."""
    network = shell(student)
    few = few._replace(target=structures.mapped(few.target, lambda t: t.to(device_of(student))))
    with torch.no_grad(), evaluated(network, step), running(few, "the first training batch"):
        step(network, few)


def _cache(teachers: Teachers, first: Batch, lesson: Lesson, precision: str) -> Cache:
    """A cache of what the teachers say, compared with them on the first batch."""
    assert lesson.cache is not None
    device = teachers.device
    dtype = autocast_type(precision, device)  # the teachers run in it too
    kept = Cache(
        lesson.cache,
        teachers,
        {**teachers.identity, "precision of teachers": str(dtype)},
        Encoding(lesson.cache_precision, lesson.cache_top),
        device,
    )
    with mixed(device, dtype):
        kept.check(first.to(device))
    return kept
