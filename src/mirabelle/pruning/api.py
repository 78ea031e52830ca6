"""Structured pruning: `mb.prune`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import check_network
from mirabelle.base.data import example_inputs, seed_everything
from mirabelle.base.errors import InputError, choose
from mirabelle.base.names import resolve
from mirabelle.channels.groups import Coupling, analyse
from mirabelle.channels.surgery import remove
from mirabelle.fitting.gradients import loss_function
from mirabelle.measurement.macs import count_macs, count_parameters
from mirabelle.pruning.allocation import ALLOCATIONS, Macs, check_feasible
from mirabelle.pruning.criteria import (
    ADDITIVE,
    AGGREGATIONS,
    CRITERIA,
    NEEDS_DATA,
    NEEDS_GRADIENTS,
    NEEDS_SAMPLES,
    NORMALIZATIONS,
    group_scores,
)
from mirabelle.pruning.latency import latency_model, latency_share, until_measured
from mirabelle.pruning.part import prune_part
from mirabelle.pruning.repair import REPAIRS, Cut
from mirabelle.pruning.rounds import in_steps
from mirabelle.pruning.stats import collect
from mirabelle.runtimes import check_runs_here
from mirabelle.sparsity import masks
from mirabelle.training.loop import fit

ALIGN = 8  # channels, where no runtime says


def prune(
    model: nn.Module,
    x: Any,
    *,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    runtime: str = "onnxruntime",
    criterion: str | Callable = "taylor",
    normalize: str | None = None,
    aggregate: str | None = None,
    data: Iterable | None = None,
    loss: str | Callable | None = None,
    batches: int = 16,
    align: int | None = None,
    keep: Iterable[str] = (),
    part: str | None = None,
    allocation: str | None = None,
    least: float = 0.1,
    repair: str | None = "bn",
    steps: int = 1,
    train: Mapping[str, Any] | Callable[[nn.Module], nn.Module] | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> nn.Module:
    """A smaller copy of `model`, of the same class, without its least important channels.

    x: example inputs. macs, params or latency: the fraction of the multiply-accumulates, of the
    parameters or of the milliseconds that is KEPT, in (0, 1]; of the first two the result is at
    most that. A latency is that of one sample on one thread of `runtime`: the network's own layers
    are timed there, and what is cut is measured and corrected until it is within 3 % of what was
    asked, if five tries suffice.
    criterion: a name of `CRITERIA`, `"package.module:function"`, or a callable (group, stats) ->
    (C,) or (coupled layers, C) scores. normalize, aggregate: how the scores of coupled layers are
    made comparable (`NORMALIZATIONS`) and put together (`AGGREGATIONS`); None is what suits the
    criterion. data, loss: labelled batches and the loss (a name of `mirabelle.training.api.LOSSES`
    or a callable; cross entropy unless given) for criteria that need gradients, inputs alone for
    `brain_surgeon`; `batches` of them are used.
    align: layers keep multiples of so many channels; None is 8, and for a latency what the kernels
    of `runtime` compute together, or half of it, as measured.
    keep: modules or parameters left alone. part: the path of the only module that is pruned, where
    `torch.export` refuses the whole (a detector's `backbone`): it is cut on what it is given when
    the network runs, its outputs stay, and budget and keep are the part's own; criteria that need a
    loss cannot be used then.
    allocation: `global` sorts all channels together, `worth` sorts them by score per cost,
    `uniform` takes the same share of each group, `knapsack` the widths that keep the most
    importance for the budget. None is, for criteria whose scores add up (`ADDITIVE`), `knapsack`
    for a latency, which rises in steps, and `worth` for the rest; for the other criteria it is
    `global`.
    least: the fraction of each group that always stays. repair: on `batches` batches of `data`,
    `bn` re-estimates BatchNorm's statistics, `least-squares` first solves for the weights of the
    layers whose inputs have changed; both are skipped without data; None does nothing.
    steps: so many cuts, each by the same factor; after each, `train` is carried out: options of
    `mb.fit` on `data` and `loss`, or a callable that returns the trained network. checkpoint: a
    folder that keeps what steps and their training have done, so that a run that was interrupted
    goes on from there.

    Raises `InputError` for wrong arguments and for a budget that cannot be reached, before anything
    is computed that takes long; `SurgeryError` where the network's forward has sizes written into
    it. Channels that cannot be pruned are left alone (`mb.explain` names them).
    """
    what, fraction = check_budget(macs, params, latency)
    options: dict[str, Any] = dict(
        runtime=runtime,
        criterion=criterion,
        normalize=normalize,
        aggregate=aggregate,
        data=data,
        loss=loss,
        batches=batches,
        align=align,
        keep=keep,
        allocation=allocation,
        least=least,
        repair=repair,
        seed=seed,
    )
    check_steps(steps, train, data, part)
    if part is not None:
        return prune_part(
            model,
            x,
            part,
            data,
            NEEDS_GRADIENTS,
            lambda inner, inputs, seen: plan(
                inner, inputs, **{**options, what: fraction, "data": seen}
            )[0],
            criterion,
        )
    if steps == 1 and train is None:
        return plan(model, x, **{**options, what: fraction})[0]
    inputs = example_inputs(x)
    check_network(model)

    def tune(small: nn.Module, folder: Path | None) -> nn.Module:
        if not isinstance(train, Mapping):
            return train(small)  # type: ignore[misc]
        return fit(
            small, data, loss or "cross_entropy", **{"seed": seed, "checkpoint": folder, **train}
        )  # type: ignore[arg-type]

    measured = {
        "macs": lambda m: count_macs(m, x) / whole,
        "params": lambda m: count_parameters(m) / whole,
        "latency": lambda m: latency_share(model, m, inputs, runtime),
    }
    whole = {
        "macs": lambda: count_macs(model, x),
        "params": lambda: count_parameters(model),
        "latency": lambda: 1,
    }[what]()
    options["least"] = least ** (1 / steps)
    settings = {
        k: v if isinstance(v, (str, int, float, list, type(None))) else None
        for k, v in options.items()
    } | {
        what: fraction,
        "steps": steps,
        "train": dict(train) if isinstance(train, Mapping) else train is not None,
    }
    return in_steps(
        model,
        inputs,
        fraction,
        steps,
        lambda small, share: plan(small, x, **{**options, what: share}),
        None if train is None else tune,
        lambda m: 1.0 if m is model else measured[what](m),
        keep,
        checkpoint,
        settings,
    )


def plan(
    model: nn.Module,
    x: Any,
    *,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    runtime: str = "onnxruntime",
    criterion: str | Callable = "taylor",
    normalize: str | None = None,
    aggregate: str | None = None,
    data: Iterable | None = None,
    loss: str | Callable | None = None,
    batches: int = 16,
    align: int | None = None,
    keep: Iterable[str] = (),
    allocation: str | None = None,
    least: float = 0.1,
    repair: str | None = "bn",
    seed: int = 0,
) -> tuple[nn.Module, Coupling, Mapping[str, torch.Tensor]]:
    """`prune` in one cut, with what was found in the network and the channels that were removed of
    each group.
    """
    check_network(model)
    what, fraction = check_budget(macs, params, latency)
    if masks.blocks(model):
        raise InputError(
            "this network is sparse, and a repair after the cut would fill its zeros; prune "
            "channels first, then sparsify"
        )
    if what == "latency":
        check_runs_here(runtime)
    loss = loss_function(loss)
    score = resolve(criterion, CRITERIA, "criterion")
    mend = None if repair is None else choose(repair, REPAIRS, "repair")
    usual = "global" if criterion not in ADDITIVE else "knapsack" if what == "latency" else "worth"
    allocate = choose(allocation or usual, ALLOCATIONS, "allocation")
    for name, table, kind in (
        (normalize, NORMALIZATIONS, "normalization"),
        (aggregate, AGGREGATIONS, "aggregation"),
    ):
        if name is not None:
            choose(name, table, kind)
    if (
        any(
            isinstance(n, bool) or not isinstance(n, int) or n < 1
            for n in (ALIGN if align is None else align, batches)
        )
        or not 0 < least <= 1
    ):
        raise InputError(
            "align and batches are whole numbers of at least 1 and least is in (0, 1]; got "
            f"align={align}, batches={batches}, least={least}"
        )
    if criterion in NEEDS_DATA and data is None:
        raise InputError(
            f"criterion={criterion!r} needs data=, a loader of "
            f"{'(inputs, targets)' if criterion in NEEDS_GRADIENTS else 'inputs'}"
        )
    if isinstance(data, Iterator) and criterion in NEEDS_DATA and mend is not None:
        raise InputError(
            f"data is an iterator ({type(data).__name__}), which can be read only once; "
            f"criterion={criterion!r} and repair={repair!r} each read it"
        )
    inputs = example_inputs(x)
    coupling = analyse(model, inputs, keep)
    if not coupling.groups:
        reasons = sorted({f.reason for f in coupling.frozen})
        raise InputError(
            "no channel of this network can be pruned: "
            f"{'; '.join(reasons[:4]) or 'it has no convolution or linear layer'}"
        )
    cost: Callable[[dict[str, int]], float]
    if what == "latency":
        cost = latency_model(model, coupling, runtime)
        align = align or cost.align
    else:
        cost, align = _cost(model, coupling, what), align or ALIGN
    check_feasible(coupling, cost, fraction * cost({}), cost({}), align, least, what)

    seed_everything(seed)
    gradients = data is not None and (callable(criterion) or criterion in NEEDS_GRADIENTS)
    stats = collect(
        model,
        coupling,
        data,
        loss,
        batches,
        needs_gradients=gradients,
        by_sample=criterion in NEEDS_SAMPLES,
    )
    scores = {
        g.name: group_scores(criterion, score, g, stats, normalize, aggregate)
        for g in coupling.groups
    }

    def cut(share: float) -> tuple[nn.Module, Mapping[str, torch.Tensor]]:
        kept = allocate(coupling, scores, cost, share * cost({}), align, least)
        removed = {
            g.name: scores[g.name].sort(stable=True).indices[: g.channels - kept[g.name]]
            for g in coupling.groups
        }
        return remove(model, coupling, removed), removed

    small, removed = (
        until_measured(model, coupling, fraction, cut, runtime)
        if what == "latency"
        else cut(fraction)
    )
    if mend is not None and data is not None:
        small = mend(small, Cut(model, coupling, removed), data, batches)
    return small, coupling, removed


def check_budget(
    macs: float | None, params: float | None, latency: float | None = None
) -> tuple[str, float]:
    given = [
        (n, v)
        for n, v in (("macs", macs), ("params", params), ("latency", latency))
        if v is not None
    ]
    if len(given) != 1:
        raise InputError(
            "give exactly one budget, macs=, params= or latency=; got "
            f"{', '.join(n for n, _ in given) or 'none'}"
        )
    name, value = given[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise InputError(f"{name} is the fraction that is kept, in (0, 1]; got {value!r}")
    return name, float(value)


def _cost(model: nn.Module, coupling: Coupling, what: str) -> Callable[[dict[str, int]], float]:
    if what == "macs":
        return Macs(coupling)
    trained = [n for n, _ in model.named_parameters() if n in coupling.shapes]
    return lambda kept: coupling.parameters(kept, trained)


def check_steps(steps: int, train: Any, data: Any, part: str | None) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(
            f"steps is the number of cuts, a whole number of at least 1; got {steps!r}"
        )
    if train is not None and not isinstance(train, Mapping) and not callable(train):
        raise InputError(
            f"train is a {type(train).__name__}; expected options of mb.fit, such as "
            "{'epochs': 1}, or a callable that returns the trained network"
        )
    if isinstance(train, Mapping) and data is None:
        raise InputError("train= needs data=, a loader of (inputs, targets)")
    if part is not None and (steps > 1 or train is not None):
        raise InputError(
            "a part is cut in one step; give steps= and train= without part=, or train the "
            "network yourself between calls"
        )


__all__ = [
    "AGGREGATIONS",
    "ALLOCATIONS",
    "CRITERIA",
    "NORMALIZATIONS",
    "REPAIRS",
    "check_budget",
    "check_steps",
    "prune",
]
