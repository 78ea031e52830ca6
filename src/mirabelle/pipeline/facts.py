"""What a run depends on besides its recipe: the network, the data, the code, the versions. And
checks that network, data and metric fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import check_runs, shell, tensors_of
from mirabelle.base.data import Batch, batches, seed_epoch
from mirabelle.base.errors import InputError, RecipeError
from mirabelle.base.files import sha256, tensors_hash
from mirabelle.base.keep import check_keep
from mirabelle.base.names import load, resolve
from mirabelle.base.structures import leaves
from mirabelle.distillation.features import FEATURE_LOSSES, Taps
from mirabelle.distillation.losses import ANY_WIDTH, PROJECTED
from mirabelle.distillation.teachers import Teachers, teacher_files
from mirabelle.fitting.gradients import LOSSES, StepLoss, evaluated, loss_function
from mirabelle.measurement.accumulator import NoFigureError
from mirabelle.measurement.accuracy import METRICS, as_tensor, scores_of
from mirabelle.measurement.machine import versions
from mirabelle.pipeline.declarations import OWN
from mirabelle.pipeline.inputs import data_key, network_key
from mirabelle.pipeline.recipe import OPTIONS, Recipe, Step
from mirabelle.pipeline.sources import PACKAGE, code_hash, files_hash
from mirabelle.pruning.criteria import NEEDS_GRADIENTS
from mirabelle.sources.callables import Loaders
from mirabelle.sources.networks import identity, module
from mirabelle.sparsity.criteria import NEEDS_GRADIENTS as SPARSE_GRADIENTS


def first_batch(loader: Iterable, name: str, labeled: bool) -> Batch:
    try:
        return next(iter(batches(loader, 1, labeled=labeled, what=f"the {name} loader")))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"the {name} loader failed on its first batch: {type(error).__name__}: {error}"
        ) from error


def _needs_labels(step: Step) -> bool:
    criterion = step.options.get("criterion", OPTIONS[step.name].get("criterion"))
    if criterion_of_cuts(step) in SPARSE_GRADIENTS or (
        step.name == "sparsify" and criterion in SPARSE_GRADIENTS
    ):
        return True
    if step.name == "prune":
        return criterion in NEEDS_GRADIENTS or ":" in (criterion or "")
    return step.name == "fit" or "labels" in (step.options.get("losses") or {})


def criterion_of_cuts(step: Step) -> Any:
    """The criterion of the sparsity that grows during a training step, if there is one."""
    return (step.options.get("sparsify") or {}).get("criterion")


def check_fit(recipe: Recipe, model: nn.Module, loaders: Loaders) -> Batch:
    """Runs one batch of each loader through the network, the metric and the loss. Returns an
    example of one sample.

    `RecipeError` says which loader does not fit and how: before any step has started.
    """
    labels_needed = recipe.step is None and any(_needs_labels(s) for s in recipe.steps)
    try:
        example = _check_loaders(recipe, model, loaders, labels_needed)
        for i, step in enumerate(recipe.steps, 1):
            _check_kept(i, step, model)
            if features := step.options.get("features"):
                Taps(model, list(features), "student").close()
            if step.name == "distill":
                _check_teachers(step, model, example)
        return example
    except InputError as error:
        raise RecipeError(f"{recipe.path}: {error}") from error


def _check_loaders(
    recipe: Recipe, model: nn.Module, loaders: Loaders, labels_needed: bool
) -> Batch:
    """An example of one sample, once a batch of each loader has run through the network."""
    example: Batch | None = None
    shapes: dict[str, list] = {}
    for name in loaders.given:
        labeled = recipe.has_data and (name == "test" or (name == "train" and labels_needed))
        seed_epoch(getattr(loaders, name), recipe.seed)
        batch = first_batch(getattr(loaders, name), name, labeled)
        few = batch.head(4)
        output = check_runs(model, few, f"the {name} loader's first batch")
        shapes[name] = [tuple(t.shape[1:]) for t in few.tensors]
        if name == "train" and labeled:
            _check_loss(recipe, model, output, few)
        if labeled and name == "test":
            _check_metric(recipe, output, few)
        if name == "test":
            example = few.head(1)
    if len(set(map(str, shapes.values()))) > 1:
        raise InputError(
            "the loaders yield different shapes: "
            + ", ".join(f"{n} {s}" for n, s in shapes.items())
        )
    assert example is not None
    return example


def loss_in(recipe: Recipe) -> Callable:
    """What the recipe's training and criteria minimize."""
    if recipe.step is not None:
        return loss_function(None, load(recipe.step, "step"))
    return resolve(recipe.loss, LOSSES, "loss")


def _check_loss(recipe: Recipe, model: nn.Module, output: object, few: Batch) -> None:
    loss = loss_in(recipe)
    name = f"loss {recipe.loss!r}" if recipe.step is None else f"step {recipe.step!r}"
    try:
        if isinstance(loss, StepLoss):
            network = shell(model)
            with torch.no_grad(), evaluated(network, loss):
                loss(network, few)
        else:
            loss(output, few.target)
    except Exception as error:
        raise InputError(
            f"{name} does not take outputs of {_form(output)} and "
            f"the train loader's targets: {error}"
        ) from error


def _check_metric(recipe: Recipe, output: object, few: Batch) -> None:
    metric = resolve(recipe.metric, METRICS, "metric")
    try:
        scores_of(lambda b: output, [few], metric, intervals=False)
    except NoFigureError:
        return  # few samples may lack what the whole has
    except InputError as error:
        raise InputError(f"metric {recipe.metric!r}: {error}") from error
    except Exception as error:
        raise InputError(
            f"metric {recipe.metric!r} does not take outputs of {_form(output)} "
            f"and the test loader's targets: {error}"
        ) from error


def _form(output: object) -> str:
    return ", ".join(str(tuple(t.shape)) for t in leaves(output)) or type(output).__name__


def _check_kept(number: int, step: Step, model: nn.Module) -> None:
    grown = step.options.get("sparsify") or {}
    for keep in (step.options.get("keep") or (), grown.get("keep") or ()):
        try:
            check_keep(model, keep)
        except InputError as error:
            raise InputError(f"step {number} ({step.name}): {error}") from error


def _check_teachers(step: Step, model: nn.Module, example: Batch) -> None:
    ours = as_tensor(check_runs(model, example, "an example")).shape
    losses = step.options.get("losses") or {"dist": 1.0}
    for teacher in build_teachers(step.options.get("teacher"), model, model):
        features = step.options.get("features")
        if isinstance(teacher, Path):
            if features:
                raise InputError(
                    f"features needs a teacher that is a network; {teacher} has no layers to read"
                )
            member = Teachers(
                teacher, torch.device("cpu")
            )  # opens the file; what it says of the data, training sees to
            if teacher.suffix != ".onnx":
                continue
            theirs = member(example).shape
        else:
            theirs = as_tensor(check_runs(teacher, example, "an example")).shape
            if features:
                Taps(teacher, list(features.values()), "teacher").close()
        if theirs != ours and set(losses) - {*FEATURE_LOSSES, "labels", *ANY_WIDTH, *PROJECTED}:
            raise InputError(
                f"the network gives {tuple(ours)} and the teacher {tuple(theirs)}; their "
                "outputs must have the same shape"
            )


def depends(step: Step) -> dict[str, Any]:
    """What a step's result hangs on besides its options: the code and the weights behind the
    references in them.
    """
    found: dict[str, Any] = {}
    for key, value in [*step.options.items(), ("criterion", criterion_of_cuts(step))]:
        for name in value if isinstance(value, (list, dict)) else [value]:
            if (
                key in ("criterion", "threshold", "weight_threshold", "losses", "teacher")
                and isinstance(name, str)
                and ":" in name
            ):
                code = identity(name)[0] if key == "teacher" else name
                found[name] = [
                    None if code is None else code_hash(code),
                    _weights_hash(module(name)) if key == "teacher" else None,
                ]
            elif key == "teacher" and name is not None and name not in OWN:
                found[name] = sorted(sha256(f) for f in teacher_files(Path(name)))
    return found


def build_teachers(
    names: str | list[str] | None, original: nn.Module, before: nn.Module | None = None
) -> list[nn.Module | Path]:
    """Networks, and the paths of teachers that are files. before: for a quantized student, the
    float network that it was, which is then the teacher by default.
    """
    found: list[nn.Module | Path] = []
    for name in (
        ["original" if before is None else "float"]
        if names is None
        else [names]
        if isinstance(names, str)
        else names
    ):
        own = {"original": original, "float": before}.get(name)
        named = ":" in name or Path(name).suffix == ".pt2"
        found.append(own if own is not None else module(name) if named else Path(name))
    return found


def _weights_hash(model: nn.Module) -> str:
    return tensors_hash(tensors_of(model))


def _batch_hash(loader: Iterable, name: str, seed: int) -> str:
    """A loader is known by its length and its first batch: reading it all could take as long as the
    run.
    """
    seed_epoch(loader, seed)
    batch = first_batch(loader, name, False)
    tensors = [(str(i), t) for i, t in enumerate(batch.tensors)]
    tensors += [(f"target {i}", t) for i, t in enumerate(leaves(batch.target))]
    length = getattr(loader, "__len__", lambda: None)()
    return f"{length} {tensors_hash(dict(tensors))}"


def root_facts(recipe: Recipe, model: nn.Module, loaders: Loaders) -> dict[str, Any]:
    """Everything that all steps depend on, by name or as SHA-256; a run's report keeps it."""
    return {
        "model": [*network_key(recipe), _weights_hash(model)],
        "data": [
            *data_key(recipe),
            *(_batch_hash(getattr(loaders, n), n, recipe.seed) for n in loaders.given),
        ],
        "seed": recipe.seed,
        "metric": [recipe.metric, code_hash(recipe.metric) if ":" in recipe.metric else None],
        "loss": [recipe.loss, code_hash(recipe.loss) if ":" in recipe.loss else None],
        "step": [recipe.step, code_hash(recipe.step) if recipe.step else None],
        "threads": torch.get_num_threads(),
        "code": files_hash(*PACKAGE.rglob("*.py")),
        "versions": versions(
            "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "openvino", "MNN"
        ),
    }
