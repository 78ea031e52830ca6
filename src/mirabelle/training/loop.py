"""The loop itself. Everything that is trained in Mirabelle goes through `train`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from typing_extensions import Doc

from mirabelle.base.checks import check_network, check_runs, clone, load_state
from mirabelle.base.data import Batch, as_batch, batches, device_of, seed_everything
from mirabelle.base.errors import InputError, MirabelleError
from mirabelle.base.options import Check, Expected, FromRun, OneOf, OptionsOf, declared
from mirabelle.base.progress import bar
from mirabelle.fitting.gradients import LOSSES, loss_function
from mirabelle.measurement.accuracy import METRICS, as_tensor, evaluate, predictor
from mirabelle.sparsity import masks
from mirabelle.sparsity.gradual import OPTIONS as GRADUAL
from mirabelle.sparsity.gradual import Gradual
from mirabelle.training import distributed
from mirabelle.training.checkpoint import load_checkpoint, save_checkpoint
from mirabelle.training.optimizers import OPTIMIZERS, SCHEDULES, learning_rate, parameter_groups

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
Objective = Callable[[nn.Module, Batch], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Trained:
    """The trained network and what was seen on the way: one dict per epoch (mean of each loss part,
    the validation score).
    """

    model: nn.Module
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


class _Step(nn.Module):
    """The objective as one forward call, so that DistributedDataParallel sees every parameter,
    those of `extra` too.
    """

    def __init__(self, model: nn.Module, objective: Objective, extra: nn.Module | None):
        super().__init__()
        self.model = model
        self.extra = extra
        self._objective = objective

    def forward(self, args: tuple, kwargs: dict, target: Any) -> dict[str, torch.Tensor]:
        return self._objective(self.model, Batch(args, kwargs, target))


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision: None for plain float32. `auto` takes it only where the device
    computes in it natively.
    """
    if precision == "float32":
        return None
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        native = (
            getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
            or getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        )
        return torch.bfloat16 if device.type == "cpu" and native else None
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def _together(options: Mapping[str, Any]) -> None:
    if options["patience"] is not None and options["validation"] is None:
        raise InputError("patience needs a validation loader to watch")


def _length(loader: Iterable) -> int:
    if hasattr(loader, "__len__"):
        return len(loader)  # type: ignore[arg-type]
    return sum(1 for _ in loader)


def check_device(device: Any) -> None:
    """`InputError` for what torch takes for no device."""
    try:
        None if device is None else torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device is {device!r}; expected one such as cpu or cuda") from None


@declared(_together)
def train(
    model: nn.Module,
    loader: Iterable,
    objective: Objective,
    *,
    epochs: Annotated[int, Ge(1), Doc("passes over the loader")] = 1,
    steps: Annotated[
        int | None, Ge(1), Doc("optimizer steps in all, instead of epochs; the schedule spans them")
    ] = None,
    optimizer: Annotated[
        str, OneOf(OPTIMIZERS), Doc("adamw, or sgd with Nesterov momentum 0.9")
    ] = "adamw",
    lr: Annotated[float, Gt(0), Doc("the highest learning rate")] = 1e-3,
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
        Le(1),
        Doc("decay of an exponential moving average of the weights, which is then the result"),
    ] = None,
    precision: Annotated[
        str, OneOf(PRECISIONS), Doc("auto is bfloat16 where the device computes in it natively")
    ] = "auto",
    clip: Annotated[float | None, Gt(0), Doc("the largest norm of the gradient")] = None,
    accumulate: Annotated[int, Ge(1), Doc("batches for each optimizer step")] = 1,
    seed: Annotated[int, Ge(0), FromRun, Doc("of everything that is random")] = 0,
    validation: Annotated[Iterable | None, Doc("labeled batches, scored after each epoch")] = None,
    metric: Annotated[
        str | Callable, OneOf(METRICS, plugin=True), FromRun, Doc("the score on validation")
    ] = "top1",
    patience: Annotated[
        int | None,
        Ge(1),
        FromRun,
        Doc("epochs without a better validation score before it stops, with the best weights"),
    ] = None,
    checkpoint: Annotated[
        str | Path | None, FromRun, Doc("a folder from which an interrupted training goes on")
    ] = None,
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
    sparsify: Annotated[
        Mapping[str, Any] | None,
        OptionsOf(lambda: GRADUAL),
        Expected("options of mb.sparsify, such as {'sparsity': 0.9}"),
        Doc("options of mb.sparsify, for zeros that become more while the network is trained"),
    ] = None,
    progress: Annotated[str, FromRun, Doc("what the progress bar says")] = "training",
) -> Trained:
    """Minimizes `objective` over the loader and returns a trained copy; `model` is left as it was.

    objective: (network, batch) -> named, weighted parts of the loss; their sum is minimized.
    The signature says what each option is; what it does not say:

    precision: `auto` computes in bfloat16 where the device does so natively, else in float32.
    patience: `validation` has then chosen, and must not be the data of the final figure. Without
    `patience` the last weights are returned.
    checkpoint: training goes on from what is there, to the same weights as without the
    interruption. Order and augmentation follow torch's, NumPy's and Python's generators, seeded per
    epoch from `seed`.
    sparsify: weights are made zero little by little while the others are trained
    (`mirabelle.sparsity.gradual`). The zeros of a network that is sparse already stay zeros.
    Under `torchrun` every process takes its share of each batch, so any number of processes sees
    the same global batches.

    Raises `InputError` for options out of range, a loader that is empty or does not fit the
    network, and `MirabelleError` where the loss is not finite.
    """
    make_optimizer, shape = OPTIMIZERS[optimizer], SCHEDULES[schedule]
    if isinstance(loader, Iterator):
        raise InputError(
            f"the training data is an iterator ({type(loader).__name__}), which can be read "
            "only once; give a list, a DataLoader or any iterable"
        )
    model = clone(check_network(model))
    world = distributed.start()
    where = torch.device(device) if device is not None else device_of(model)
    dtype = autocast_type(precision, where)
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(
            "the network has no parameter to train; all of them are frozen, or it has none"
        )
    here = device_of(model)
    check_runs(
        model,
        next(batches(loader, what="the training loader")).head(2).to(here),
        "the first training batch",
    )

    begun = time.monotonic()
    seed_everything(seed)
    step_module = _Step(
        model.to(where), objective, extra.to(where) if extra is not None else None
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    wrapped = distributed.wrap(step_module, world)
    optim = make_optimizer(parameter_groups(step_module, weight_decay), lr, weight_decay)
    average = (
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True)
        if ema is not None
        else None
    )
    scaler = torch.amp.GradScaler(where.type, enabled=dtype is torch.float16)  # pyright: ignore[reportPrivateImportUsage]
    length = _length(loader)
    per_epoch = math.ceil(length / accumulate)
    if per_epoch == 0:
        raise InputError("the training loader is empty (its length is 0)")
    total = steps if steps is not None else epochs * per_epoch
    identity = {
        "total": total,
        "seed": seed,
        "optimizer": optimizer,
        "lr": lr,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "warmup": warmup,
        "ema": ema,
        "clip": clip,
        "accumulate": accumulate,
        "precision": str(dtype),
        "patience": patience,
    }
    gradual = Gradual(sparsify, model, loader, total, seed) if sparsify is not None else None
    if gradual is not None:
        identity["sparsify"] = gradual.identity()
    resumed = load_checkpoint(checkpoint, step_module, optim, average, scaler, identity)
    if gradual is not None:
        gradual.resume(model, resumed.done)
    pruned = masks.zeros(model)
    done, history, best, stale = resumed.done, resumed.history, resumed.best, resumed.stale
    saved_at = time.monotonic()

    def save(so_far: dict[str, float]) -> None:
        """Where training stands now. so_far: the sums of an epoch that is not over."""
        standing = (done, history, best, stale, so_far, identity)
        save_checkpoint(checkpoint, step_module, optim, average, scaler, *standing)  # type: ignore[arg-type]

    with bar(progress, total, show=world.rank == 0) as shown:
        shown.advance(done)
        while done < total and not (patience is not None and stale >= patience):
            epoch, skip = divmod(done, per_epoch)
            seed_epoch(loader, seed * 1_000_003 + epoch)
            if hasattr(sampler := getattr(loader, "sampler", None), "set_epoch"):
                sampler.set_epoch(epoch)  # type: ignore[union-attr]
            step_module.train()
            totals: dict[str, float] = resumed.totals if skip else {}
            waiting, i = 0, -1
            for i, item in enumerate(iter(loader)):
                if i < skip * accumulate:
                    if i == skip * accumulate - 1:
                        # Before the next batch is read: reading it may draw, for augmentation.
                        resumed.restore_generators()
                    continue
                if gradual is not None and not waiting and gradual.before_step(model, done):
                    pruned = masks.zeros(model)
                    if average is not None:
                        masks.mark(average.module, masks.blocks(model))
                        masks.enforce(average.module, pruned)
                batch = as_batch(item, f"batch {i} of the training loader")
                size = batch.size
                batch, share = distributed.share(batch, world)
                batch = _place(batch, where)
                waiting += 1
                last = waiting == accumulate or i + 1 == length
                # The last step of an epoch may have fewer batches than the others.
                together = (
                    min(accumulate, length - i // accumulate * accumulate)
                    if i < length
                    else accumulate
                )
                with nullcontext() if last or world.size == 1 else wrapped.no_sync():  # type: ignore[operator]
                    with torch.autocast(
                        where.type, dtype or torch.bfloat16, enabled=dtype is not None
                    ):
                        parts = wrapped(batch.args, batch.kwargs, batch.target)
                    loss = torch.stack([p.float() for p in parts.values()]).sum()
                    scaler.scale(loss * share / together).backward()
                for name, part in parts.items():
                    totals[name] = totals.get(name, 0.0) + float(part.detach())
                if not math.isfinite(sum(totals.values())):
                    raise MirabelleError(
                        f"the loss is not finite at step {done} of {total} "
                        f"({', '.join(f'{k} {float(v.detach()):.3g}' for k, v in parts.items())}; "
                        f"batch of {size}, lr {lr:g}); lower lr, set clip=1.0, or look for NaN "
                        "in the data"
                    )
                if not last:
                    continue
                waiting = 0
                for group in optim.param_groups:
                    group["lr"] = learning_rate(done, total, lr, shape, warmup)
                masks.enforce_gradients(model, pruned)
                if clip is not None:
                    scaler.unscale_(optim)
                    nn.utils.clip_grad_norm_(step_module.parameters(), clip)
                scaler.step(optim)
                scaler.update()
                optim.zero_grad(set_to_none=True)
                masks.enforce(model, pruned)
                if average is not None:
                    average.update_parameters(model)
                done += 1
                shown.advance()
                shown.note(**{k: v / (i + 1) for k, v in totals.items()})
                if done >= total:
                    break
                if (
                    checkpoint
                    and world.rank == 0
                    and done % per_epoch
                    and time.monotonic() - saved_at > checkpoint_seconds
                ):
                    save(totals)
                    saved_at = time.monotonic()
            if i < 0 or waiting or (done % per_epoch and done < total):
                raise InputError(
                    f"the training loader ended early in epoch {epoch}: it promised {length} "
                    "batches; it must give as many in every epoch"
                )
            distributed.share_buffers(step_module, world)
            record = {k: v / max(1, i + 1) for k, v in totals.items()}
            if validation is not None:
                seen = evaluate(
                    predictor(average.module if average is not None else model),
                    validation,
                    metric,
                    "validating",
                )
                record[f"validation_{seen.metric}"] = seen.value
                best, stale = _watch(
                    best,
                    stale,
                    seen.value,
                    average.module if average is not None else model,
                    patience,
                )
            history.append(record)
            if checkpoint and world.rank == 0:
                save({})
                saved_at = time.monotonic()

    result = average.module if average is not None else model
    if patience is not None and best.state is not None:
        load_state(result, best.state)
    result = clone(result).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return Trained(result, history, time.monotonic() - begun)


def seed_epoch(loader: Any, seed: int) -> None:
    """Seeds everything that an epoch draws from, the generator that a `DataLoader` may have of its
    own too: a resumed run cannot ask it where it stood.
    """
    seed %= 2**63
    seed_everything(seed)
    for owner in (
        loader,
        getattr(loader, "sampler", None),
        getattr(getattr(loader, "batch_sampler", None), "sampler", None),
    ):
        if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
            generator.manual_seed(seed)


def _place(batch: Batch, device: torch.device) -> Batch:
    def move(t: torch.Tensor) -> torch.Tensor:
        return t.to(device, memory_format=torch.channels_last) if t.ndim == 4 else t.to(device)

    target = batch.target.to(device) if isinstance(batch.target, torch.Tensor) else batch.target
    return batch.map(move)._replace(target=target)


def _watch(
    best: Any, stale: int, value: float, model: nn.Module, patience: int | None
) -> tuple[Any, int]:
    if best.score is not None and value <= best.score:
        return best, stale + 1
    state = (
        {k: v.detach().clone() for k, v in model.state_dict().items()}
        if patience is not None
        else None
    )
    return type(best)(value, state), 0


@declared(rest=train)
def fit(
    model: nn.Module,
    loader: Iterable,
    loss: Annotated[
        str | Callable | None, OneOf(LOSSES), FromRun, Doc("a name, or (output, target) -> scalar")
    ] = "cross_entropy",
    **options: Any,
) -> nn.Module:
    """Trains a copy of `model` on labeled batches and returns it. Training a quantized network is
    quantization-aware training.

    loss: a name of `mirabelle.training.LOSSES` or a callable (output, target) -> scalar.
    options: those that `mirabelle.training.train` declares.
    """
    return train(model, loader, labels_objective(loss), **with_loss(options, loss)).model


def with_loss(options: Mapping[str, Any], loss: str | Callable | None) -> dict[str, Any]:
    """The options of `train`, with the loss that the criterion of a gradual sparsity looks at,
    unless it has its own.
    """
    sparse = options.get("sparsify")
    return (
        {**options, "sparsify": {"loss": loss_function(loss), **sparse}}
        if isinstance(sparse, Mapping)
        else dict(options)
    )


def labels_objective(loss: str | Callable | None) -> Objective:
    function = loss_function(loss)

    def objective(network: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        if batch.target is None:
            raise InputError(
                "the training loader yields no targets; mb.fit needs (inputs, target), "
                "mb.distill does not"
            )
        return {"loss": function(as_tensor(batch.run(network)), batch.target)}

    return objective
