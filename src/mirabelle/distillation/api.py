"""Distillation: `mb.distill`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import nn
from typing_extensions import Doc

from mirabelle.base.checks import check_network
from mirabelle.base.data import Batch, batches, device_of, seed_everything
from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.base.names import resolve
from mirabelle.base.options import Expected, FromRun, OneOf, declared, options_of
from mirabelle.distillation.cache import Cache
from mirabelle.distillation.ensembles import ENSEMBLES, RANDOM
from mirabelle.distillation.features import FEATURE_LOSSES
from mirabelle.distillation.losses import LOSSES, SOFTMAX
from mirabelle.distillation.objective import HEAD, OTHERS, Distillation
from mirabelle.distillation.outputs import PRECISIONS, Encoding, fingerprints, write_segment
from mirabelle.distillation.teachers import Teachers
from mirabelle.distillation.views import Views
from mirabelle.fitting.gradients import LOSSES as LABEL_LOSSES
from mirabelle.training.api import train, with_loss
from mirabelle.training.loop import Trained
from mirabelle.training.plan import autocast_type

Teacher = nn.Module | str | Path


def _together(options: Mapping[str, Any]) -> None:
    """What `distill` asks of several options at once."""
    parts, features = parts_of(options["losses"], options["features"]), options["features"]
    check_losses(parts, features, options["head"] is not None)
    check_cache(parts, options["cache"], options["cache_precision"], options["cache_top"])


def parts_of(
    losses: Mapping[str, float] | None, features: Mapping[str, str] | None
) -> dict[str, float]:
    """The losses that count, with their weights."""
    parts = dict(losses or {"dist": 1.0})
    if features and not set(FEATURE_LOSSES) & set(parts):
        parts["features"] = 1.0
    return parts


@declared(_together, rest=train)
def distill(
    student: nn.Module,
    teacher: Teacher | Sequence[Teacher],
    data: Iterable,
    *,
    losses: Annotated[
        Mapping[str, float] | None,
        Expected("weights of at least 0 by name, such as {dist: 1.0}"),
        Doc("weights by name; None is {dist: 1.0}"),
    ] = None,
    temperature: Annotated[float, Gt(0), Doc("of the softmax")] = 1.0,
    features: Annotated[
        Mapping[str, str] | None,
        Expected("student layers and their teacher layers, such as {layer3: layer3}"),
        Doc("layers to compare: the student's module path and the teacher's"),
    ] = None,
    head: Annotated[
        nn.Module | None, Doc("a frozen classifier of the teacher's embeddings")
    ] = None,
    ensemble: Annotated[
        str | None,
        OneOf(lambda: (*ENSEMBLES, RANDOM)),
        Doc("how several teachers become one; None is what the losses read"),
    ] = None,
    weights: Annotated[
        Sequence[float] | None,
        Expected("a list of numbers, one for each teacher"),
        Doc("how much each teacher counts, of any sum; None is equally"),
    ] = None,
    teacher_temperatures: Annotated[
        Sequence[float] | None,
        Expected("a list of numbers, one for each teacher"),
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
    **options: Any,
) -> nn.Module:
    """Trains a copy of `student` on what `teacher` says of `data`, and returns it. No labels are
    needed.

    teacher: a network, the path of an .onnx file, the path of a .safetensors file written by
    `save_outputs`, or a list of these: an ensemble.
    options: those that `mirabelle.training.train` declares. The signature says what the others are;
    what it does not say:

    losses: those of `LOSSES` (outputs) and `FEATURE_LOSSES` (layers, with `features=`),
    `"package.module:function"`, `head` and `head_labels` (with `head=`), `labels` (needs targets).
    head: it judges the student's embeddings too.
    ensemble: a name of `ENSEMBLES`, or `random`, one teacher for each batch. None is the mean of
    probabilities for losses of a softmax, of sigmoids for `binary_kd`, else of the outputs.
    cache: a view is a sample with its augmentation; later epochs, students and runs know it.
    cache_top: for `kd`, `dist`, `decoupled_kd`.
    views: without it every epoch is new, and a cache helps only where nothing is augmented.

    Raises `InputError` before training for unknown losses or layers (with the nearest names),
    outputs that cannot be compared (with both shapes), and missing targets.
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

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Lesson:
        known = {**options_of(distill).defaults, **options}
        own = {f.name: known[f.name] for f in fields(cls) if f.name in known}
        return cls(parts_of(known["losses"], known["features"]), **own)


@declared(rest=distill)
def run(
    student: nn.Module, teacher: Teacher | Sequence[Teacher], data: Iterable, **options: Any
) -> Trained:
    """`distill` with its history."""
    lesson = Lesson.of(options)
    parts, head, label_loss = lesson.parts, lesson.head, lesson.label_loss
    options = {k: v for k, v in options.items() if k in options_of(train)}
    student = check_network(student, "student")
    if head is not None:
        check_network(head, "head")
    if isinstance(
        options.get("sparsify"), Mapping
    ):  # it reads between the steps, where `Views` would lose its place
        options = with_loss(
            {**options, "sparsify": {"data": data, **options["sparsify"]}},
            resolve(label_loss, LABEL_LOSSES, "label loss"),
        )
    seed, steps, accumulate = (
        options.get("seed", 0),
        options.get("steps"),
        options.get("accumulate", 1),
    )
    loader = Views(data, seed, lesson.views, None if steps is None else steps * accumulate)
    device = torch.device(options.get("device") or device_of(student))
    seed_everything(seed)  # projections start at random
    teachers = Teachers(
        teacher,
        device,
        ensemble=lesson.ensemble or default_ensemble(parts),
        weights=lesson.weights,
        temperatures=lesson.teacher_temperatures,
        seed=seed,
    )
    first = next(batches(loader, what="the training loader"))
    for name in ("labels", "head_labels"):
        if parts.get(name) and first.target is None:
            raise InputError(f"losses has {name!r}, but the training loader yields no targets")
    hard: Callable | None = (
        resolve(label_loss, LABEL_LOSSES, "label loss")
        if {"labels", "head_labels"} & set(parts)
        else None
    )
    objective = Distillation(
        student, teachers, first, parts, lesson.temperature, lesson.features, hard, head
    )
    objective.position = lambda: loader.position
    kept = (
        _cached(objective, teachers, first, loader, lesson, options)
        if lesson.cache is not None
        else None
    )
    extra = (
        objective.extra
        if any(True for _ in objective.extra.parameters()) or objective.extra.hints is not None
        else None
    )
    try:
        return train(
            student, loader, objective, extra=extra, **{"progress": "distilling", **options}
        )
    finally:
        objective.close()
        if kept is not None:
            kept.flush()


def _cached(
    objective: Distillation,
    teachers: Teachers,
    first: Batch,
    loader: Views,
    lesson: Lesson,
    options: Mapping[str, Any],
) -> Cache:
    """Puts a cache between the objective and the teachers."""
    assert lesson.cache is not None
    dtype = autocast_type(
        options.get("precision", "auto"), teachers.device
    )  # the teachers run in it too
    kept = Cache(
        lesson.cache,
        teachers,
        {**teachers.identity, "precision of teachers": str(dtype)},
        Encoding(lesson.cache_precision, lesson.cache_top),
        teachers.device,
    )
    with torch.autocast(teachers.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        kept.check(first.to(teachers.device))
    warned = begun = False

    def teach(batch: Batch, position: tuple[int, int]) -> torch.Tensor:
        nonlocal warned, begun
        begun |= position == (0, 0)  # a run that was resumed later has not asked in epoch 0
        taught = kept(batch, position)
        if begun and loader.epoch == (loader.views or 1) and not kept.hits and not warned:
            warned = True
            remedy = (
                "set views= to the number of epochs after which the data may repeat"
                if loader.views is None
                else (
                    "draw augmentation from torch's, NumPy's or Python's generator, or from the "
                    "DataLoader's own"
                )
            )
            warnings.warn(
                f"no input has come back by epoch {loader.epoch}, so the cache saves nothing: "
                f"the data differs each time; {remedy}",
                stacklevel=2,
            )
        return taught

    objective.teach = teach
    return kept


def default_ensemble(losses: Iterable[str]) -> str:
    """The mixture that fits what the losses read."""
    names = set(losses)
    if names & SOFTMAX:
        return "probabilities"
    return "binary" if "binary_kd" in names else "logits"


def check_losses(
    losses: Mapping[str, float], features: Mapping[str, str] | None, head: bool = False
) -> None:
    """`InputError` for losses that do not exist or cannot be weighed; needs no network."""
    for name, weight in losses.items():
        if name not in LOSSES and name not in OTHERS and ":" not in str(name):
            raise InputError(f"losses has {name!r}{did_you_mean(str(name), [*LOSSES, *OTHERS])}")
        if (
            isinstance(weight, bool)
            or not isinstance(weight, (int, float))
            or not 0 <= weight < float("inf")
        ):
            raise InputError(f"losses[{name!r}] is {weight!r}; expected a weight of at least 0")
    if not any(losses.values()):
        raise InputError("all losses have weight 0; there is nothing to learn")
    for name in FEATURE_LOSSES:
        if name in losses and not features:
            raise InputError(
                f"losses has {name!r}; say which with features={{'student layer': 'teacher layer'}}"
            )
    for name in HEAD:
        if name in losses and not head:
            raise InputError(
                f"losses has {name!r}; give the teacher's classifier of embeddings with head="
            )
    if head and not set(HEAD) & set(losses):
        raise InputError(
            "head is given and no loss reads it; add 'head' or 'head_labels' to losses"
        )


def check_cache(
    losses: Mapping[str, float], cache: str | Path | None, precision: str, top: int | None
) -> None:
    """`InputError` for a cache that could not serve these losses; needs no network."""
    if cache is None:
        if top is not None or precision != "float32":
            raise InputError(
                "cache_top and cache_precision say how a cache keeps outputs; name its folder "
                "with cache="
            )
        return
    if Path(cache).exists() and not Path(cache).is_dir():
        raise InputError(f"cache is {str(cache)!r}, which is a file; expected a folder")
    if layers := [n for n in FEATURE_LOSSES if losses.get(n)]:
        raise InputError(
            f"cache keeps the teachers' outputs, and the loss {layers[0]!r} needs their layers; "
            "drop one of the two"
        )
    if top is not None and (
        other := [n for n in losses if n not in ("kd", "dist", "decoupled_kd", "labels")]
    ):
        raise InputError(
            f"cache_top keeps the largest probabilities of a softmax, and the loss {other[0]!r} "
            "reads more than these; leave cache_top out"
        )


def save_outputs(
    path: str | Path,
    data: Iterable,
    teacher: Any,
    *,
    ensemble: str = "probabilities",
    weights: Sequence[float] | None = None,
    precision: str = "float32",
    seed: int = 0,
    views: int = 1,
) -> Path:
    """Writes what a teacher says of `data` into one file, which `distill` then takes for a teacher.

    path: ends in .safetensors. teacher: what `distill` takes, or an array (N, ...) of outputs from
    elsewhere, in the order of `data`, which then must not be shuffled.
    views: so many epochs of the data, with the order and augmentation that `distill(seed=, views=)`
    will show. The outputs are all held in memory.
    Raises `InputError` where the array has more or fewer rows than the data has samples.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path} does not end in .safetensors")
    encoding = Encoding(precision)
    encoding.check()
    given: torch.Tensor | None = None
    teachers: Teachers | None = None
    if isinstance(teacher, (np.ndarray, torch.Tensor)):
        given = torch.as_tensor(teacher)
    else:
        device = device_of(teacher) if isinstance(teacher, nn.Module) else torch.device("cpu")
        teachers = Teachers(teacher, device, ensemble=ensemble, weights=weights, seed=seed)
    loader = Views(data, seed, views)
    found: dict[tuple[int, int], torch.Tensor] = {}
    for epoch in range(views):
        loader.set_epoch(epoch)
        row = 0
        for batch in batches(loader, what="the data"):
            if teachers is not None:
                outputs = teachers(batch, loader.position)
            else:
                assert given is not None
                outputs = given[row : row + batch.size]
                if len(outputs) < batch.size:
                    raise InputError(
                        f"the outputs have {len(given)} rows, and the data has more samples; "
                        "expected one row for each, in their order"
                    )
            row += batch.size
            for key, output in zip(fingerprints(batch).tolist(), outputs.detach().float().cpu()):
                found.setdefault((key[0], key[1]), output)
        if given is not None and row < len(given):
            raise InputError(
                f"the outputs have {len(given)} rows, and the data has {row} samples; expected "
                "one row for each, in their order"
            )
    stacked = torch.stack(list(found.values()))
    write_segment(
        path,
        np.array(list(found), np.int64),
        encoding.encode(stacked),
        encoding,
        tuple(stacked.shape[1:]),
    )
    return path
