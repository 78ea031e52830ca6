"""Criteria: how much each channel of a group matters. A criterion is a function (group, stats) ->
scores; larger stays.

Scores are (C,), or (coupled layers, C): then `NORMALIZATIONS` make the layers comparable and
`AGGREGATIONS` put them together.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch

from mirabelle.base.errors import InputError
from mirabelle.base.names import calling
from mirabelle.channels.groups import Group
from mirabelle.pruning.brain_surgeon import brain_surgeon
from mirabelle.pruning.stats import Stats, per_channel


def _filters(group: Group, stats: Stats) -> list[torch.Tensor]:
    """(C, weights of the filter) of each layer that makes the channels."""
    return [per_channel(stats.tensors[s.parameter], s) for s in group.with_role("out")]


def l1(group: Group, stats: Stats) -> torch.Tensor:
    """The sum of absolute weights of each filter. Li et al. 2017, section 3.1."""
    return torch.stack([f.norm(1, dim=1) for f in _filters(group, stats)])


def l2(group: Group, stats: Stats) -> torch.Tensor:
    """The Euclidean norm of each filter. He et al. 2018 (soft filter pruning), eq. 2."""
    return torch.stack([f.norm(2, dim=1) for f in _filters(group, stats)])


def bn_scale(group: Group, stats: Stats) -> torch.Tensor:
    """|gamma| of BatchNorm; `InputError` for a group without BatchNorm. Liu et al. 2017 (Slimming),
    section 3.
    """
    scales = [
        per_channel(stats.tensors[s.parameter], s).abs().sum(1)
        for s in group.with_role("along")
        if s.parameter in stats.scales
    ]
    if not scales:
        raise InputError(
            f"criterion 'bn_scale': the group {group.name!r} has no BatchNorm with a scale; use "
            "'taylor' or 'l2', or name it in keep=[...]"
        )
    return torch.stack(scales)


def taylor(group: Group, stats: Stats) -> torch.Tensor:
    """The mean over batches of (the first-order change of the loss when the channel's contributions
    go to zero) squared.

    With weights w that read the channel and their gradients g, the change is the sum of w * g over
    all of them: zeroing them is what removing the channel does. Molchanov et al. 2019, eq. 8, with
    the gate placed where the channel is read, so that residual groups have one gate.
    """
    return stats.changes[group.name].square().mean(0)


def taylor_activation(group: Group, stats: Stats) -> torch.Tensor:
    """The mean over samples of |the first-order change of the loss when the channel's activations
    go to zero|: of activation times gradient, summed over the map.

    Molchanov et al. 2017, eq. 8, on what the readers of the channel get; normalized by the layer's
    Euclidean norm, as there.
    """
    return stats.changes[group.name].abs().mean(0)


def fisher(group: Group, stats: Stats) -> torch.Tensor:
    """The second-order change of the loss when the channel goes, with the empirical Fisher in the
    place of the Hessian: half the mean over samples of change squared.

    The change of a sample is that of `taylor`, so the Fisher is summed over samples before anything
    is squared away: one sample's gradient at a time. Theis et al. 2018 (Fisher pruning), eq. 7;
    LeCun et al. 1990 (Optimal Brain Damage), without the first-order term, which is zero on average
    after training.
    """
    return stats.changes[group.name].square().mean(0) / 2


def taylor_weight(group: Group, stats: Stats) -> torch.Tensor:
    """The seminar's algorithm: gradients accumulated over the batches, each weight of the group's
    filters times its gradient, absolute values summed.

    Molchanov et al. 2017, section 2.2, on weights.
    """
    slots = [s for s in group.with_role("out") if s.parameter in stats.gradients]
    return torch.stack(
        [
            per_channel(stats.tensors[s.parameter] * stats.gradients[s.parameter], s).abs().sum(1)
            for s in slots
        ]
    )


def taylor_filter(group: Group, stats: Stats) -> torch.Tensor:
    """(Weight times gradient, summed over the filter) squared: the sum inside the square; the mean
    over batches. Molchanov et al. 2019, section 3.1, joint importance.
    """
    return torch.stack([stats.products[key].square().mean(0) for key in _made(group, stats)])


def taylor_squares(group: Group, stats: Stats) -> torch.Tensor:
    """(Weight times gradient) squared, summed over the filter: the sum outside the square; the mean
    over batches. Molchanov et al. 2019, section 3.1.
    """
    return torch.stack([stats.squares[key] for key in _made(group, stats)])


def _made(group: Group, stats: Stats) -> list[tuple[str, str, int]]:
    return [
        key
        for s in group.with_role("out")
        if (key := (group.name, s.parameter, s.dim)) in stats.products
    ]


def taylor_bn(group: Group, stats: Stats) -> torch.Tensor:
    """(gamma times its gradient + beta times its gradient) squared: the gate is BatchNorm itself;
    the mean over batches. `InputError` without BatchNorm.

    Molchanov et al. 2019, section 3.2.
    """
    rows = []
    for s in group.with_role("along"):
        if (
            s.parameter in stats.scales
            and (key := (group.name, s.parameter, s.dim)) in stats.products
        ):
            shift = (group.name, s.parameter.removesuffix("weight") + "bias", s.dim)
            rows.append((stats.products[key] + stats.products.get(shift, 0)).square().mean(0))
    if not rows:
        raise InputError(
            f"criterion 'taylor_bn': the group {group.name!r} has no BatchNorm with a scale; "
            "use 'taylor' or 'taylor_filter', or name it in keep=[...]"
        )
    return torch.stack(rows)


def geometric_median(group: Group, stats: Stats) -> torch.Tensor:
    """The sum of distances of each filter to all the others of its layer. Filters near the
    geometric median can be replaced by the others, so they go first.

    He et al. 2019 (FPGM), eq. 6.
    """
    return torch.stack(
        [
            torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
            for f in _filters(group, stats)
        ]
    )


def random(group: Group, stats: Stats) -> torch.Tensor:
    """Uniform scores from torch's generator: the baseline that a criterion has to beat."""
    return torch.rand(group.channels)


CRITERIA: dict[str, Callable[[Group, Stats], torch.Tensor]] = {
    "l1": l1,
    "l2": l2,
    "geometric_median": geometric_median,
    "bn_scale": bn_scale,
    "taylor": taylor,
    "taylor_activation": taylor_activation,
    "taylor_weight": taylor_weight,
    "taylor_filter": taylor_filter,
    "taylor_squares": taylor_squares,
    "taylor_bn": taylor_bn,
    "fisher": fisher,
    "brain_surgeon": brain_surgeon,
    "random": random,
}
ADDITIVE = {
    "taylor",
    "taylor_filter",
    "taylor_bn",
    "fisher",
    "brain_surgeon",
}  # estimates of what the loss or an error does: their sum has a meaning
# Norms say something within their layer alone. Cut globally they empty some layers: the tables of
# `benchmarks.pruning` have 76 points lost where the same share of each layer loses 6.
WITHIN_LAYERS = {"l1", "l2", "geometric_median"}
NEEDS_SAMPLES = {"taylor_activation", "fisher"}  # gradients of each sample by itself
NEEDS_GRADIENTS = {
    "taylor",
    "taylor_weight",
    "taylor_filter",
    "taylor_squares",
    "taylor_bn",
    *NEEDS_SAMPLES,
}
NEEDS_DATA = {*NEEDS_GRADIENTS, "brain_surgeon"}

# (coupled layers, C) -> the same, comparable between layers
NORMALIZATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda s: s,
    "mean": lambda s: s / s.mean(1, keepdim=True).clamp_min(1e-12),
    "max": lambda s: s / s.amax(1, keepdim=True).clamp_min(1e-12),
    "norm": lambda s: s / s.norm(dim=1, keepdim=True).clamp_min(1e-12),
}
# (coupled layers, C) -> (C,) of the group
AGGREGATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum": lambda s: s.sum(0),
    "mean": lambda s: s.mean(0),
    "max": lambda s: s.amax(0),
}
# By criterion (normalization, aggregation), where neither is asked for: changes of the loss add up.
DEFAULTS = {
    **dict.fromkeys(WITHIN_LAYERS, ("mean", "mean")),
    "bn_scale": ("none", "mean"),
    "taylor_activation": ("norm", "sum"),
}


def group_scores(
    criterion: str | Callable,
    score: Callable[[Group, Stats], torch.Tensor],
    group: Group,
    stats: Stats,
    normalize: str | None,
    aggregate: str | None,
) -> torch.Tensor:
    """(C,) scores of a group: those of the criterion for each coupled layer, made comparable by
    `normalize` and put together by `aggregate`.

    A criterion gives (C,) scores of the channels or (coupled layers, C). None: what `DEFAULTS` says
    of the criterion, else ("none", "sum"). Raises `InputError` for scores of other shapes and for
    NaN or infinite ones.
    """
    ours = isinstance(criterion, str) and criterion in CRITERIA
    what = f"criterion {criterion!r} on group {group.name!r}"
    with nullcontext() if ours else calling(what):
        scores = torch.as_tensor(score(group, stats)).detach().float().cpu()
    if scores.ndim not in (1, 2) or scores.shape[-1] != group.channels or not len(scores):
        raise InputError(
            f"criterion {criterion!r} gave scores of shape {tuple(scores.shape)} for group "
            f"{group.name!r}; expected ({group.channels},), or that for each layer"
        )
    if not bool(torch.isfinite(scores).all()):
        raise InputError(
            f"criterion {criterion!r} gave NaN or infinite scores for group {group.name!r}"
        )
    usual = (
        DEFAULTS.get(criterion, ("none", "sum")) if isinstance(criterion, str) else ("none", "sum")
    )
    return AGGREGATIONS[aggregate or usual[1]](
        NORMALIZATIONS[normalize or usual[0]](scores.reshape(-1, group.channels))
    )
