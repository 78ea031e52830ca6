"""Unstructured pruning: `mb.sparsify`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import nn
from typing_extensions import Doc

from mirabelle.base.checks import check_network, clone
from mirabelle.base.data import Batch, First, seed_everything
from mirabelle.base.data import batches as read
from mirabelle.base.declarations import KeepOption, SamplesOption, SeedOption, StepOption
from mirabelle.base.errors import InputError
from mirabelle.base.keep import check_keep
from mirabelle.base.names import calling, resolve
from mirabelle.base.options import Check, Expected, FromRun, OneOf, declared
from mirabelle.fitting.batchnorm import reestimate_batchnorm, reestimate_where_better
from mirabelle.fitting.gradients import LossOption, loss_function, loss_gradients
from mirabelle.fitting.gram import gram_matrices, has_rows
from mirabelle.fitting.least_squares import reconstruct
from mirabelle.graph.open_graph import CapturedOnce
from mirabelle.graph.quantized import check_float
from mirabelle.sources.networks import for_data
from mirabelle.sparsity import masks
from mirabelle.sparsity.allocation import ALLOCATIONS, check_reachable
from mirabelle.sparsity.criteria import CRITERIA, NEEDS_GRADIENTS, NEEDS_INPUTS
from mirabelle.sparsity.filter_norms import as_long_as
from mirabelle.sparsity.layers import ScoredLayer, as_matrix, by_block, candidates, spread

REPAIRS = ("bn", "least-squares")
BLOCK = "(n, 1) for n output channels that share their zeros, such as (4, 1), or None"


def rows_of(block: Any) -> int:
    """The output channels of a block: 1 for None, n for (n, 1)."""
    if block is None:
        return 1
    sizes = list(block) if isinstance(block, (tuple, list)) else [block]
    if (
        len(sizes) != 2
        or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes)
        or sizes[1] != 1
    ):
        raise InputError(f"block is {block!r}; expected {BLOCK}")
    return sizes[0]


AUTO, ROUNDS = "auto", 4


@declared()
def sparsify(
    model: nn.Module | str | Path,
    *,
    sparsity: Annotated[float, Gt(0), Lt(1), Doc("the share of the weights that become zero")],
    block: Annotated[
        Sequence[int] | None,
        Check(rows_of),
        Expected(BLOCK),
        Doc("so many neighboring output channels share their zeros"),
    ] = None,
    criterion: Annotated[
        str | Callable[[ScoredLayer], torch.Tensor] | None,
        OneOf(CRITERIA, plugin=True),
        Doc("how much a weight matters; None is obs, and magnitude without data"),
    ] = None,
    data: Annotated[Iterable | None, Doc("batches for the criterion and for the repair")] = None,
    loss: Annotated[LossOption, Doc("of taylor; None is cross entropy")] = None,
    step: StepOption = None,
    samples: SamplesOption = 512,
    allocation: Annotated[
        str | None,
        OneOf(ALLOCATIONS),
        Doc("how the zeros are spread over the layers; None is global for obs, lamp for others"),
    ] = None,
    keep: KeepOption = (),
    least: Annotated[
        float, Ge(0), Le(1), Doc("the share of every layer that always stays")
    ] = 0.005,
    repair: Annotated[
        str | None,
        OneOf(lambda: (AUTO, *REPAIRS)),
        Doc("what is made up for after the cut; auto is least-squares for obs, bn for others"),
    ] = AUTO,
    rounds: Annotated[
        int | None,
        Ge(1),
        Doc("so many cuts, with scores and repair anew for each; None is 4 with least-squares"),
    ] = None,
    seed: Annotated[SeedOption, FromRun] = 0,
) -> nn.Module:
    """A copy of `model` in which the share `sparsity` of its weights is zero, and stays zero.

    Meant are the weights of linear layers and ungrouped convolutions. Biases, normalizations and
    grouped convolutions are left alone and not counted. The zeros survive `mb.fit`, `mb.distill`,
    `mb.quantize`, `mb.save` and `mb.load`. They make a network faster only where a runtime leaves
    them out: export it with `runtime="sparse"`.

    - model: a network, or a name of one (`sources.networks`). Zeros that it has are kept.
    - sparsity: the share that becomes zero, between 0 and 1.
    - block: None for single weights, or (n, 1), which the kernels like for (4, 1). The last block
      of a layer may be smaller; the sparsity is then that of blocks.
    - criterion: a name of `CRITERIA`, `"package.module:function"` or a callable (layer) -> scores;
      larger stays. None is `obs`, and `magnitude` without data.
    - data: labeled batches for `taylor`, inputs alone for `wanda` and `obs`.
    - loss, step: of `taylor`: a name or (output, target) -> scalar; or (network, batch) -> scalar.
    - samples: how many of data the criterion and the repair read, 512 by default.
    - allocation: `global` sorts the units of all layers together. `uniform` takes the same share
      of every layer, `erk` leaves small layers more, `lamp` compares within layers first.
    - keep: modules or parameters, by path, that are left alone.
    - least: the share of every layer that always stays, 0.005 by default.
    - repair: `bn` re-estimates BatchNorm's statistics. `least-squares` first fits the weights that
      are left, so that every layer gives what it gave before. Without data nothing is repaired.
    - rounds: so many cuts, each smaller than the one before. None is 4 with least squares.
    - seed: of everything that is random.

    Raises `InputError` for wrong arguments and for a sparsity that cannot be reached, before
    anything that takes long.
    Source: Hassibi and Stork 1993 (`obs`), Lee et al. 2021 (`lamp`), Evci et al. 2020 (`erk`).

    Example:

        >>> import mirabelle as mb, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> sparse = mb.sparsify(model, sparsity=0.75)
        >>> int((sparse[0].weight == 0).sum() + (sparse[2].weight == 0).sum())
        84
    """
    model = check_network(for_data(model, data))
    check_float(model, "sparsify")
    keep = check_keep(model, keep)
    loss = loss_function(loss, step)
    if criterion is None:
        criterion = "magnitude" if data is None else "obs"
    if allocation is None:
        allocation = "global" if criterion == "obs" else "lamp"
    if repair == AUTO:
        repair = None if data is None else "least-squares" if criterion == "obs" else "bn"
    data = None if data is None else First(data, samples)
    if rounds is None:
        rounds = ROUNDS if repair == "least-squares" else 1
    _check_grows(model, _layers(model, keep, rows_of(block)), sparsity)
    seed_everything(seed)
    sparse, captured = model, CapturedOnce(model)
    for i in range(1, rounds + 1):
        sparse = cut(
            sparse,
            model,
            sparsity * ramp(i / rounds),
            block,
            criterion=criterion,
            data=data,
            loss=loss,
            samples=samples,
            allocation=allocation,
            keep=keep,
            least=least,
            repair=repair,
            captured=captured,
        )
    if repair == "least-squares" and data is not None:
        example = _example(data)
        sparse = as_long_as(sparse, model, example, captured(example))
    return sparse


def ramp(progress: float) -> float:
    """The share of the final sparsity that is reached at `progress`: 1 - (1 - t)³, much at first
    and little at the end. Zhu & Gupta 2017, eq. 1.
    """
    return 1 - (1 - min(1.0, max(0.0, progress))) ** 3


def cut(
    model: nn.Module,
    original: nn.Module,
    sparsity: float,
    block: Sequence[int] | None,
    *,
    criterion: str | Callable,
    data: Iterable | None,
    loss: Callable | None,
    samples: int,
    allocation: str,
    keep: Iterable[str],
    least: float,
    repair: str | None,
    captured: CapturedOnce | None = None,
) -> nn.Module:
    """One cut of `sparsify`. original: what the repair takes for its reference; captured: its
    graph, for several cuts.
    """
    data = None if data is None else First(data, samples)
    layers = _layers(model, keep, rows_of(block))
    density, before = 1 - sparsity, masks.zeros(model)
    units = {layer.name: by_block((layer.weight != 0).double(), layer.block) for layer in layers}
    check_reachable(units, density, least)
    score = resolve(criterion, CRITERIA, "criterion")
    scores = _scores(model, layers, score, criterion, data, loss)
    for layer in layers:
        if layer.name in before:
            scores[layer.name] = torch.where(units[layer.name] > 0, scores[layer.name], -torch.inf)
    shapes = {n: p.shape for n, p in model.named_parameters() if n in scores}
    kept = ALLOCATIONS[allocation](scores, shapes, density, least)
    sparse = clone(model)
    pruned = {}
    for layer in layers:
        gone = _all_but_best(scores[layer.name], kept[layer.name])
        whole = spread(gone, layer.block, len(layer.weight)).reshape(shapes[layer.name])
        parameter = sparse.get_parameter(layer.name)
        pruned[layer.name] = whole.to(parameter.device) | before.get(
            layer.name, torch.zeros_like(parameter, dtype=torch.bool)
        )
    masks.mark(sparse, {layer.name: layer.block for layer in layers})
    masks.enforce(sparse, pruned)
    captured = captured or CapturedOnce(original)
    return _mended(sparse, captured, pruned, repair, data)


def _check_grows(model: nn.Module, layers: Sequence[ScoredLayer], sparsity: float) -> None:
    """`InputError` where an earlier call has made more zeros than are asked for now."""
    if not masks.zeros(model):
        return
    units = [by_block((layer.weight != 0).double(), layer.block) > 0 for layer in layers]
    present = 1 - sum(int(u.sum()) for u in units) / sum(u.numel() for u in units)
    if present > sparsity + 1e-9:
        raise InputError(
            f"sparsity is {sparsity:g}, and {present:.4g} of the weights are zero already; "
            "zeros do not come back"
        )


def _all_but_best(scores: torch.Tensor, kept: int) -> torch.Tensor:
    """True for every unit but the `kept` ones with the highest scores; the first of equal ones."""
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().argsort(descending=True, stable=True)[:kept]] = False
    return mask.reshape(scores.shape)


def _mended(
    sparse: nn.Module,
    captured: CapturedOnce,
    pruned: dict[str, torch.Tensor],
    repair: str | None,
    data: Iterable | None,
) -> nn.Module:
    if repair is None or data is None:
        return sparse
    if repair == "bn":
        return reestimate_batchnorm(sparse, data)
    original, example = captured.model, _example(data)
    fitted = reconstruct(sparse, original, example, {}, data, pruned, captured(example))
    return reestimate_where_better(fitted, original, data)


def _example(data: Iterable) -> Batch:
    return next(read(data, 1, what="data")).head(1)._replace(target=None)


def _layers(model: nn.Module, keep: Iterable[str], block: int) -> list[ScoredLayer]:
    found = candidates(model, keep)
    if not found:
        raise InputError(
            "no weight of this network can be sparse: it has no linear layer and no convolution "
            "without groups, or all are in keep"
        )
    return [
        ScoredLayer(name, path, as_matrix(model.get_parameter(name)).double().cpu(), block)
        for name, path in found.items()
    ]


def _scores(
    model: nn.Module,
    layers: list[ScoredLayer],
    score: Callable[[ScoredLayer], torch.Tensor],
    criterion: Any,
    data: Iterable | None,
    loss: Callable | None,
) -> dict[str, torch.Tensor]:
    own = callable(criterion) or (isinstance(criterion, str) and ":" in criterion)
    gradients, inputs = (
        criterion in NEEDS_GRADIENTS,
        criterion in NEEDS_INPUTS or (own and data is not None),
    )
    if (gradients or inputs) and data is None:
        raise InputError(
            f"criterion={criterion!r} needs data=, a loader of "
            f"{'(inputs, targets)' if gradients else 'inputs'}"
        )
    if gradients and data is not None:
        _collect_changes(model, layers, data, loss)
    if inputs and data is not None:
        modules = [n.module for n in layers if has_rows(model.get_submodule(n.module))]
        found = gram_matrices(model, modules, data)
        for layer in layers:
            layer.gram = found.get(layer.module)
    scores = {}
    for layer in layers:
        units = by_block(layer.weight, layer.block).shape
        with calling(f"criterion {criterion!r} on {layer.name}") if own else nullcontext():
            values = torch.as_tensor(score(layer)).detach().double().cpu()
        if values.shape != units:
            raise InputError(
                f"criterion {criterion!r} gave scores of shape {tuple(values.shape)} for "
                f"{layer.name}; expected {tuple(units)}"
            )
        if not bool(torch.isfinite(values).all()):
            raise InputError(
                f"criterion {criterion!r} gave NaN or infinite scores for {layer.name}"
            )
        scores[layer.name] = values
    return scores


def _collect_changes(
    model: nn.Module, layers: list[ScoredLayer], data: Iterable, loss: Callable | None
) -> None:
    seen = 0
    for gradients in loss_gradients(model, data, loss):
        seen += 1
        for layer in layers:
            if layer.name in gradients:
                change = by_block(
                    layer.weight * as_matrix(gradients[layer.name]).double().cpu(), layer.block
                ).square()
                layer.changes = change if layer.changes is None else layer.changes + change
    for layer in layers:
        layer.changes = (
            torch.zeros_like(by_block(layer.weight, layer.block))
            if layer.changes is None
            else layer.changes / seen
        )


def share_of_zeros(model: nn.Module) -> dict[str, Mapping[str, float]]:
    """By parameter that is sparse: its size, the zeros in it, and the outputs of a block."""
    return {
        name: {
            "size": model.get_parameter(name).numel(),
            "zeros": int(mask.sum()),
            "block": masks.blocks(model)[name],
        }
        for name, mask in masks.zeros(model).items()
    }
