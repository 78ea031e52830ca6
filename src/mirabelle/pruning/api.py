"""Structured pruning: `mb.prune`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import nn
from typing_extensions import Doc

from mirabelle.base.checks import check_network
from mirabelle.base.data import example_inputs
from mirabelle.base.declarations import (
    CheckpointOption,
    KeepOption,
    SamplesOption,
    SeedOption,
    StepOption,
)
from mirabelle.base.errors import InputError, warn
from mirabelle.base.names import calling
from mirabelle.base.options import Expected, FromRun, OneOf, OptionsOf, declared, options_of
from mirabelle.channels.groups import Coupling, analyze
from mirabelle.channels.surgery import remove
from mirabelle.fitting.gradients import LossOption, loss_function
from mirabelle.measurement.macs import count_macs, count_parameters
from mirabelle.pruning.allocation import ALLOCATIONS, Macs, check_feasible
from mirabelle.pruning.checks import check_groups, check_settings
from mirabelle.pruning.criteria import (
    ADDITIVE,
    AGGREGATIONS,
    CRITERIA,
    NEEDS_GRADIENTS,
    NORMALIZATIONS,
    WITHIN_LAYERS,
)
from mirabelle.pruning.depth import (
    block_losses,
    costs_without,
    known_blocks,
    to_skip,
    without_blocks,
)
from mirabelle.pruning.duration import foretell
from mirabelle.pruning.latency import latency_model, latency_share, until_measured
from mirabelle.pruning.part import prune_part
from mirabelle.pruning.repair import REPAIRS, Cut, repaired
from mirabelle.pruning.rounds import Planned, identity_of_training, in_rounds
from mirabelle.pruning.scoring import scored
from mirabelle.pruning.settings import AUTO, Settings, chosen_budget, with_pictures
from mirabelle.pruning.widths import to_widths
from mirabelle.runtimes.declarations import RuntimeOption
from mirabelle.sources.networks import with_example
from mirabelle.training.api import fit

ALIGN = 8  # channels, where no runtime says


def _together(options: Mapping[str, Any]) -> None:
    """What `prune` asks of several options at once."""
    chosen_budget(options)
    train, data = options["train"], options["data"]
    if options["widths"] is None and options["skip"]:
        raise InputError("skip= goes with widths=; with a fraction depth=True chooses the blocks")
    if options["widths"] is not None and (options["depth"] or options["rounds"] > 1):
        raise InputError(
            "widths= is one cut that is decided; leave out depth= (skip= names blocks) and rounds="
        )
    if isinstance(train, Mapping) and data is None:
        raise InputError("train= needs data=, a loader of (inputs, targets)")
    if train is not None and isinstance(data, Iterator):
        raise InputError(
            f"data is an iterator ({type(data).__name__}), which can be read only once; train= "
            "needs a list, a DataLoader or any iterable"
        )
    if options["part"] is not None and (options["rounds"] > 1 or train is not None):
        raise InputError(
            "a part is cut in one round; give rounds= and train= without part=, or train the "
            "network yourself between calls"
        )


@declared(_together)
def prune(
    model: nn.Module | str | Path,
    inputs: Any = None,
    *,
    macs: Annotated[
        float | None, Gt(0), Le(1), Doc("the fraction of multiply-accumulates that is kept")
    ] = None,
    params: Annotated[
        float | None, Gt(0), Le(1), Doc("the fraction of parameters that is kept")
    ] = None,
    latency: Annotated[
        float | None,
        Gt(0),
        Le(1),
        Doc("the fraction of the milliseconds of one sample on one thread that is kept"),
    ] = None,
    widths: Annotated[
        Mapping[str, int] | None,
        Expected("numbers of channels by group, such as {conv1: 24}"),
        Doc("the channels that stay, by group; others keep all"),
    ] = None,
    skip: Annotated[
        Sequence[str],
        Expected("a list of blocks, such as [layer1.0.conv2]"),
        Doc("residual blocks that go, beside widths"),
    ] = (),
    runtime: Annotated[RuntimeOption, Doc("where latency is measured")] = "onnxruntime",
    criterion: Annotated[
        str | Callable | None,
        OneOf(CRITERIA, plugin=True),
        Doc("how much a channel matters; None is brain_surgeon, and l2 without any pictures"),
    ] = None,
    normalize: Annotated[
        str | None,
        OneOf(NORMALIZATIONS),
        Doc("how scores of coupled layers are made comparable; None suits the criterion"),
    ] = None,
    aggregate: Annotated[
        str | None,
        OneOf(AGGREGATIONS),
        Doc("how scores of coupled layers become one; None suits the criterion"),
    ] = None,
    data: Annotated[
        Iterable | None, Doc("batches for the criterion, the repair and the training")
    ] = None,
    loss: Annotated[
        LossOption, Doc("of criteria that need gradients; None is cross entropy")
    ] = None,
    step: StepOption = None,
    samples: SamplesOption = 512,
    align: Annotated[
        int | None,
        Ge(1),
        Doc("layers keep multiples of so many channels; None is 8, or what a runtime likes"),
    ] = None,
    keep: KeepOption = (),
    part: Annotated[str | None, Doc("the path of the only module that is pruned")] = None,
    allocation: Annotated[
        str | None,
        OneOf(ALLOCATIONS),
        Doc("how the cut is spread over the groups; None suits criterion and budget"),
    ] = None,
    least: Annotated[
        float, Gt(0), Le(1), Doc("the fraction of each group that always stays")
    ] = 0.1,
    repair: Annotated[
        str | None,
        OneOf(lambda: (AUTO, *REPAIRS)),
        Doc("what is made up for after the cut; auto is least-squares; None does nothing"),
    ] = AUTO,
    depth: Annotated[bool, Doc("whole residual blocks may go, beside channels")] = False,
    rounds: Annotated[
        int, Ge(1), Doc("the number of cuts, each by the same factor, up to the budget")
    ] = 1,
    train: Annotated[
        Mapping[str, Any] | Callable[[nn.Module], nn.Module] | None,
        OptionsOf(lambda: options_of(fit).without("loss", "step"), except_in_recipes=("sparsify",)),
        Expected(
            "options of training (mb.fit), such as {'epochs': 1}, or a callable that returns "
            "the trained network"
        ),
        Doc("the training after each cut"),
    ] = None,
    checkpoint: CheckpointOption = None,
    seed: Annotated[SeedOption, FromRun] = 0,
) -> nn.Module:
    """A smaller copy of `model`, of the same class, without its least important channels.

    - model: the network, which stays as it is, or a name of one (`sources.networks`). Of an ONNX
      file `export` then writes that file with smaller constants.
    - inputs: an example. Without it a name takes the first batch of `data`, or what it knows
      itself.
    - macs, params, latency: the fraction that is kept, of which exactly one is given. With the
      first two the result has at most that. For a latency the network's own layers are timed on
      `runtime`. The cut is then measured and corrected until it is within 3 % of what was asked,
      if five tries suffice.
    - widths, skip: in place of a fraction the channels that stay, by group, and the residual
      blocks that go, as `mb.explain` names them: a cut that was decided before.
    - runtime: where latency is measured, `onnxruntime` by default.
    - criterion: a name of `CRITERIA`, `"package.module:function"`, or a callable (group, stats) ->
      (C,) or (coupled layers, C) scores. None takes what is best for the data: `brain_surgeon`,
      which needs no labels, or `l2` where there is neither data nor a picture to make up.
    - normalize, aggregate: how scores of coupled layers become one; None suits the criterion.
    - data: labeled batches for criteria that need gradients, inputs alone for `brain_surgeon`.
      Without data, networks of one picture are given synthetic ones (`sources.synthetic`), as far
      as criterion and repair are left open.
    - loss, step: of criteria that need gradients: a name or (output, target) -> scalar; or
      (network, batch) -> scalar.
    - samples: how many of data the criterion and the repair read, 512 by default.
    - align: layers keep multiples of so many channels. None is 8. For a latency it is what the
      kernels of `runtime` compute together, or half of it, as measured.
    - keep: modules or parameters, by path, that are left alone.
    - part: the path of the only module that is pruned, for where `torch.export` refuses the whole
      (a detector's `backbone`). It is cut on what it is given when the network runs. Its outputs
      stay; budget and keep are its own. Criteria that need a loss cannot be used then.
    - allocation: `global` sorts all channels together, `worth` by score per cost. `uniform` takes
      the same share of each group. `knapsack` finds the widths that keep the most importance. None
      is `uniform` for norms, which say something within their layer alone (`WITHIN_LAYERS`). For
      criteria whose scores add up (`ADDITIVE`) it is `worth`, and `knapsack` for a latency, which
      rises in steps. For the others it is `global`.
    - least: the fraction of each group that always stays, 0.1 by default.
    - repair: `bn` re-estimates BatchNorm's statistics on `samples` of `data`. `least-squares`
      first solves for the weights of layers whose inputs have changed. None leaves the weights
      that stay as they are.
    - depth: residual blocks may go, too, with data and `brain_surgeon` alone. What the outputs lose
      without a block is measured; one knapsack chooses blocks and widths. `mb.explain` names them.
    - rounds: the number of cuts, each by the same factor, up to the budget.
    - train: options of `mb.fit` on `data` and `loss`, or a callable (network) -> trained network.
    - checkpoint: a folder that keeps what the rounds and their training have done.
    - seed: of everything that is random.

    Channels that cannot be pruned are left alone; `mb.explain` names them.
    Raises `InputError` for wrong arguments and for a budget that cannot be reached, before
    anything that takes long; `SurgeryError` where the network's forward has sizes written into it.
    Source: each criterion names its own; masking equivalence is in docs/architecture.md.

    Example:

        >>> import mirabelle as mb, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
        >>> small = mb.prune(model, torch.zeros(1, 4), macs=0.5, data=[torch.randn(64, 4)])
        >>> small[0].out_features, small[2].in_features
        (32, 32)
    """
    network, inputs = with_example(model, inputs, data)
    _warn_of_saving(network)
    if step is not None:
        loss = loss_function(loss, step)
    network = check_network(network)
    settings = Settings.of(locals() if part else with_pictures(network, inputs, locals()))
    if part is not None:
        return prune_part(
            network,
            inputs,
            part,
            settings.data,
            NEEDS_GRADIENTS,
            lambda inner, given, seen: plan(inner, given, replace(settings, data=seen)).network,
            settings.criterion,
        )
    if rounds == 1 and train is None:
        return plan(network, inputs, settings).network
    settings = replace(settings, least=least ** (1 / rounds))

    def tune(small: nn.Module, folder: Path | None) -> nn.Module:
        if not isinstance(train, Mapping):
            with calling("train"):
                trained = train(small)  # type: ignore[misc]
            if not isinstance(trained, nn.Module):
                raise InputError(
                    f"train returned a {type(trained).__name__}; expected the trained network"
                )
            trained = check_network(trained, "what train returned")
            if _sizes(trained) != _sizes(small):
                raise InputError(
                    "train returned another network than it was given, with other parameters; "
                    "expected the same one, trained"
                )
            return trained
        options = {"seed": seed, "checkpoint": folder, **train}
        return fit(small, data, loss, **options)  # type: ignore[arg-type]

    return in_rounds(
        network,
        example_inputs(inputs),
        settings.fraction,
        rounds,
        lambda small, share: plan(small, inputs, replace(settings, fraction=share)),
        None if train is None else tune,
        _share(network, inputs, settings),
        settings.keep,
        checkpoint,
        {}
        if checkpoint is None
        else settings.identity() | {"rounds": rounds, "train": identity_of_training(train, seed)},
    )


def _sizes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in model.named_parameters()}


def _warn_of_saving(model: nn.Module) -> None:
    """Networks of Hugging Face have a way of saving that does not know of other sizes."""
    if callable(getattr(model, "save_pretrained", None)):
        warn(
            "save_pretrained writes the sizes of the network's config, which stay those of the "
            "unpruned one, and from_pretrained will refuse the pruned weights; keep it with "
            "mb.save(network, folder) and mb.load(folder, original)"
        )


def settings_of(**options: Any) -> Settings:
    """The settings of a cut with `prune`'s options, checked, and its defaults."""
    known = options_of(prune)
    known.check(options)
    return Settings.of({**known.defaults, **options})


def _share(model: nn.Module, x: Any, settings: Settings) -> Callable[[nn.Module], float]:
    """(network) -> the share of the budget's quantity that it has of the original's."""
    if settings.budget == "latency":
        inputs = example_inputs(x)
        return lambda m: 1.0 if m is model else latency_share(model, m, inputs, settings.runtime)
    count = (lambda m: count_macs(m, x)) if settings.budget == "macs" else count_parameters
    whole = count(model)
    return lambda m: 1.0 if m is model else count(m) / whole


def plan(model: nn.Module, x: Any, settings: Settings) -> Planned:
    """`prune` in one cut, with what was found in the network and what was removed of it."""
    model = check_network(model)
    check_settings(model, settings)
    inputs = example_inputs(x)
    fits = settings.repair == "least-squares" and settings.read is not None
    coupling = analyze(model, inputs, settings.keep, any_batch=fits or settings.depth)
    check_groups(model, coupling)
    if settings.widths is not None:
        return to_widths(model, coupling, settings)
    cost: Callable[[dict[str, int]], float]
    if settings.budget == "latency":
        cost = latency_model(model, coupling, settings.runtime)
        align = settings.align or cost.align
    else:
        cost, align = _cost(model, coupling, settings.budget), settings.align or ALIGN
    whole, fraction, least = cost({}), settings.fraction, settings.least
    if not settings.depth:
        check_feasible(coupling, cost, fraction * whole, whole, align, least, settings.budget)

    foretell(model, coupling, settings)
    scores = scored(model, coupling, settings)
    if settings.depth:
        assert coupling.captured is not None
        known = known_blocks(coupling, settings.keep)
        names = [b.name for b in known]
        losses = block_losses(model, coupling.captured, settings.data or (), names)
        cost_of = costs_without(coupling, cost, _trained(model, coupling))
        at_most = fraction * whole
        if gone := to_skip(coupling, known, losses, scores, cost_of, at_most, align, least):
            return _without(model, x, settings, coupling, gone)
    allocate = ALLOCATIONS[settings.allocation or _usual_allocation(settings)]

    def cut(share: float) -> tuple[nn.Module, Mapping[str, torch.Tensor]]:
        kept = allocate(coupling, scores, cost, share * cost({}), align, least)
        removed = {
            g.name: scores[g.name].sort(stable=True).indices[: g.channels - kept[g.name]]
            for g in coupling.groups
        }
        return remove(model, coupling, removed), removed

    small, removed = (
        until_measured(model, coupling, fraction, cut, settings.runtime)
        if settings.budget == "latency"
        else cut(fraction)
    )
    small = repaired(small, Cut(model, coupling, removed), settings)
    return Planned(small, coupling, removed)


def _without(
    model: nn.Module, x: Any, settings: Settings, coupling: Coupling, gone: list[str]
) -> Planned:
    """The network without these blocks, and with channels removed where that is not yet enough."""
    small, keep = without_blocks(model, coupling, gone, settings)
    fraction = settings.fraction / _share(model, x, settings)(small)
    if fraction >= 1:
        return Planned(small, coupling, {}, tuple(gone))
    further = plan(small, x, replace(settings, depth=False, fraction=fraction, keep=keep))
    return further._replace(skipped=tuple(gone))


def _usual_allocation(settings: Settings) -> str:
    if settings.criterion in WITHIN_LAYERS:
        return "uniform"
    if settings.criterion not in ADDITIVE:
        return "global"
    return "knapsack" if settings.budget == "latency" else "worth"


def _cost(model: nn.Module, coupling: Coupling, what: str) -> Callable[[dict[str, int]], float]:
    if what == "macs":
        return Macs(coupling)
    trained = _trained(model, coupling)
    return lambda kept: coupling.parameters(kept, trained)


def _trained(model: nn.Module, coupling: Coupling) -> list[str]:
    return [n for n, _ in model.named_parameters() if n in coupling.shapes]
