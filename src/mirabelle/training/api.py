"""`mb.fit`, and `train`, through which everything goes that is trained in Mirabelle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import nn
from typing_extensions import Doc

from mirabelle.base.checks import check_network, check_python, check_runs, clone, running
from mirabelle.base.data import Batch, batches, check_finite, device_of
from mirabelle.base.declarations import CheckpointOption, SeedOption, StepOption
from mirabelle.base.errors import InputError
from mirabelle.base.identity import function_identity
from mirabelle.base.options import Check, Expected, FromRun, OneOf, declared
from mirabelle.fitting.gradients import (
    LOSSES,
    Loss,
    LossOption,
    StepLoss,
    evaluated,
    loss_function,
    loss_of,
)
from mirabelle.measurement.accuracy import MetricOption
from mirabelle.onnx_files.source import source_of
from mirabelle.sources.networks import for_data
from mirabelle.sparsity.gradual import SparsifyOption
from mirabelle.training.loop import Loop, Trained
from mirabelle.training.norms import BATCHNORM
from mirabelle.training.optimizers import OPTIMIZERS, SCHEDULES
from mirabelle.training.plan import PRECISIONS, Settings
from mirabelle.training.state import Objective, placed


def _together(options: Mapping[str, Any]) -> None:
    if options["patience"] is not None and options["validation"] is None:
        raise InputError("patience needs a validation loader to watch")
    if options["holdout"] and options["validation"] is not None:
        raise InputError(
            "holdout and validation both score the network; give one of them, or holdout=0"
        )


def check_device(device: Any) -> None:
    """`InputError` for what torch takes for no device."""
    try:
        torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device is {device!r}; expected one such as cpu or cuda") from None


@declared(_together)
def train(
    model: nn.Module | str | Path,
    data: Iterable,
    objective: Objective,
    *,
    epochs: Annotated[int, Ge(1), Doc("passes over the data")] = 1,
    steps: Annotated[
        int | None, Ge(1), Doc("optimizer steps in all, instead of epochs; the schedule spans them")
    ] = None,
    seconds: Annotated[
        float | None,
        Gt(0),
        FromRun,
        Doc("how long it takes at most: the schedule ends earlier where steps take longer"),
    ] = None,
    optimizer: Annotated[
        str, OneOf(OPTIMIZERS), Doc("adamw, or sgd with Nesterov momentum 0.9")
    ] = "adamw",
    lr: Annotated[
        float | None,
        Gt(0),
        Doc("the highest learning rate; None is chosen by a short trial on a copy"),
    ] = None,
    weight_decay: Annotated[
        float, Ge(0), Doc("of matrices and filters; vectors are never decayed")
    ] = 1e-4,
    schedule: Annotated[str, OneOf(SCHEDULES), Doc("how the learning rate falls")] = "cosine",
    warmup: Annotated[
        float, Ge(0), Le(1), Doc("the fraction of the steps over which the rate rises linearly")
    ] = 0.0,
    ema: Annotated[
        float | None,
        Ge(0),
        Lt(1),
        Doc("decay of an exponential moving average of the weights, which is then the result"),
    ] = None,
    precision: Annotated[
        str, OneOf(PRECISIONS), Doc("auto is bfloat16 where the device computes in it natively")
    ] = "auto",
    clip: Annotated[float | None, Gt(0), Doc("the largest norm of the gradient")] = None,
    accumulate: Annotated[
        int | None,
        Ge(1),
        Doc("batches for each optimizer step; None is 1, or more of tiny ones where lr is None"),
    ] = None,
    seed: Annotated[SeedOption, FromRun] = 0,
    holdout: Annotated[
        float | None,
        Ge(0),
        Le(0.5),
        Doc(
            "the share of the data that scores the network instead of training it; None is 0.1 "
            "where lr is None, else 0"
        ),
    ] = None,
    batchnorm: Annotated[
        str | None,
        OneOf(BATCHNORM),
        Doc(
            "whether BatchNorm's statistics follow the batches; None is train, or what few data "
            "ask for where lr is None"
        ),
    ] = None,
    validation: Annotated[Iterable | None, Doc("labeled batches, scored after each epoch")] = None,
    metric: Annotated[MetricOption, FromRun, Doc("the score on validation")] = "top1",
    patience: Annotated[
        int | None,
        Ge(1),
        FromRun,
        Doc("epochs without a better validation score before it stops, with the best weights"),
    ] = None,
    checkpoint: CheckpointOption = None,
    checkpoint_seconds: Annotated[
        float, FromRun, Doc("the least time between two checkpoints of one epoch")
    ] = 30.0,
    device: Annotated[
        str | torch.device | None,
        Check(check_device),
        Expected("a device such as cpu or cuda"),
        Doc("such as cuda; None is where the network is"),
    ] = None,
    extra: Annotated[nn.Module | None, Doc("a module trained along, not returned")] = None,
    sparsify: SparsifyOption = None,
    log: Annotated[
        str | Callable | None,
        Expected("tensorboard, mlflow or wandb, as tensorboard:FOLDER, or a function"),
        Doc("where figures go: tensorboard[:FOLDER], mlflow[:EXPERIMENT], wandb[:PROJECT]"),
    ] = None,
    progress: Annotated[str, FromRun, Doc("what the progress bar says")] = "training",
) -> Trained:
    """Minimizes `objective` over the data and returns a trained copy; `model` is left as it was.

    objective: (network, batch) -> named, weighted parts of the loss; their sum is minimized.
    The signature says what each option is; what it does not say:

    lr: without it training decides for itself (`mirabelle.training.choices`): it tries rates out,
    holds back data, and returns the network that was best on these, the one given included. It
    stops early where it diverges, and warns where nothing was better than the start. Under
    `torchrun` the rate is 1e-3. What was decided is in `Trained.choices`. What is given stays.
    seconds: what trying rates out takes counts. The rate falls to its end in the steps that fit, so
    that results then depend on the machine's speed.
    precision: `auto` computes in bfloat16 where the device does so natively, else in float32.
    patience: `validation` has then chosen, and must not be the data of the final figure. With an
    `lr`, and without `patience` and `holdout`, the last weights are returned.
    checkpoint: training goes on from what is there, to the same weights as without the
    interruption. Order and augmentation follow torch's, NumPy's and Python's generators, seeded per
    epoch from `seed`.
    log: a function gets (step, figures): every 50 steps the mean of each part of the loss so far in
    the epoch, and after each epoch its record. Of several processes the first one logs.
    sparsify: weights are made zero little by little while the others are trained
    (`mirabelle.sparsity.gradual`). The zeros of a network that is sparse already stay zeros.
    Under `torchrun` every process takes its share of each batch, so any number of processes sees
    the same global batches.

    Raises `InputError` for options out of range, data that are empty or do not fit the
    network, and `MirabelleError` where the loss is not finite.
    """
    settings = Settings.of(locals())
    if isinstance(data, Iterator):
        raise InputError(
            f"the training data is an iterator ({type(data).__name__}), which can be read "
            "only once; give a list, a DataLoader or any iterable"
        )
    model = clone(check_python(check_network(for_data(model, data))))
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(
            "the network has no parameter to train; all of them are frozen, or it has none"
        )
    first = next(batches(data, what="the training loader"))
    check_finite(first, "batch 0 of the training loader", squares=True)
    check_runs(model, first.head(2).to(device_of(model)), "the first training batch")
    check_reached(model, objective, first.head(2))
    return Loop(model, data, objective, settings, first.size).run()


def check_reached(model: nn.Module, objective: Objective, batch: Batch) -> None:
    """`InputError` where a network of an ONNX file runs so much outside torch that no gradient of
    the loss comes to a weight.
    """
    if (source := source_of(model)) is None or not source.outside:
        return
    probe, batch = clone(model).eval(), placed(batch, device_of(model))
    with torch.enable_grad(), running(batch, "the first training batch"):
        loss = torch.stack([p.float() for p in objective(probe, batch).values()]).sum()
        if loss.requires_grad:
            loss.backward()
    if any(p.grad is not None and bool(p.grad.any()) for p in probe.parameters()):
        return
    names = [f"{name} ({why})" for name, why in list(source.outside.items())[-4:]]
    raise InputError(
        "no gradient of the loss comes to a weight of the ONNX file: between them stand nodes that "
        f"run outside torch, the last of them {'; '.join(names)}; train the network that the file "
        "was written from, or quantize the file without training"
    )


@declared(rest=train)
def fit(
    model: nn.Module | str | Path,
    data: Iterable,
    loss: LossOption = None,
    *,
    step: StepOption = None,
    **options: Any,
) -> nn.Module:
    """Trains a copy of `model` on batches and returns it.

    Training a quantized network is quantization-aware training. Zeros of `mb.sparsify` stay. The
    network is judged on data that it does not train on, before and after; the better one comes
    back.

    - model: a network, or a name of one (`sources.networks`). The batch norms that an ONNX file
      has merged stay merged.
    - data: batches of (inputs, target), read once an epoch. Lists, loaders and iterables without
      a length will do, the last with `steps`.
    - loss: a name of `mirabelle.training.LOSSES` or a callable (output, target) -> scalar. It gets
      what the network gives and the targets as they are: dicts, lists, several heads.
    - step: for networks that compute their loss themselves: (network, batch) -> scalar, or a dict
      of scalars, which are summed. `batch` has `args`, `kwargs` and `target`. Held-back data are
      scored with it too, in training mode with BatchNorm and dropout as in evaluation.
    - options: those that `mirabelle.training.train` declares: `epochs`, `steps`, `lr`,
      `optimizer`, `holdout`, `checkpoint`, `seed` and so on. Without `lr` a range test chooses it.

    Raises `InputError` for wrong options, data without targets and losses that are not finite.
    Source: Smith 2017 (range test).

    Example:

        >>> import mirabelle as mb, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> x = torch.randn(256, 4)
        >>> batches = [(x[i : i + 32], x[i : i + 32, :3].argmax(1)) for i in range(0, 256, 32)]
        >>> trained = mb.fit(model, batches, epochs=5, lr=0.01)
        >>> def loss(m):
        ...     return nn.functional.cross_entropy(m(x), x[:, :3].argmax(1)).item()
        >>> loss(trained) < loss(model)
        True
    """
    function = loss_function(loss, step)
    return train(model, data, LabelsObjective(function), **with_loss(options, function)).model


def with_loss(options: Mapping[str, Any], loss: Loss) -> dict[str, Any]:
    """The options of `train`, with the loss that the criterion of a gradual sparsity looks at,
    unless it has its own.
    """
    sparse = options.get("sparsify")
    return (
        {**options, "sparsify": {"loss": loss_function(loss), **sparse}}
        if isinstance(sparse, Mapping)
        else dict(options)
    )


class LabelsObjective:
    """The objective of `fit`: a loss between outputs and targets, or a `StepLoss`."""

    def __init__(self, loss: Loss):
        self.function = loss_function(loss)
        names = [n for n, f in LOSSES.items() if f is self.function]
        known = self.function.step if isinstance(self.function, StepLoss) else self.function
        self.identity = {"loss": function_identity(names[0] if names else known)}

    def evaluated(self, network: nn.Module) -> AbstractContextManager[None]:
        return evaluated(network, self.function)

    def __call__(self, network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        if batch.target is None and not isinstance(self.function, StepLoss):
            raise InputError(
                "the training loader yields no targets; mb.fit needs (inputs, target), "
                "mb.distill does not"
            )
        return {"loss": loss_of(self.function, network, batch)}
