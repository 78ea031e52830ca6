"""Criteria: how much each channel of a group matters. A criterion is a function (group, stats) -> (C,) scores; larger stays."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mirabelle.errors import InputError
from mirabelle.graph.groups import Group
from mirabelle.prune.brain_surgeon import brain_surgeon
from mirabelle.prune.stats import Stats, per_channel


def _norm(group: Group, stats: Stats, p: int) -> torch.Tensor:
    filters = [per_channel(stats.tensors[s.parameter], s).norm(p, dim=1) for s in group.with_role("out")]
    return torch.stack([f / f.mean().clamp_min(1e-12) for f in filters]).mean(0)


def l1(group: Group, stats: Stats) -> torch.Tensor:
    """The sum of absolute weights of each filter over that of its layer's mean filter; the mean over coupled layers. Li et al. 2017, section 3.1."""
    return _norm(group, stats, 1)


def l2(group: Group, stats: Stats) -> torch.Tensor:
    """The Euclidean norm of each filter, relative to the mean filter of its layer; the mean over coupled layers."""
    return _norm(group, stats, 2)


def bn_scale(group: Group, stats: Stats) -> torch.Tensor:
    """|gamma| of BatchNorm, the mean over coupled layers; `InputError` for a group without BatchNorm. Liu et al. 2017 (Slimming), section 3."""
    scales = [per_channel(stats.tensors[s.parameter], s).abs().sum(1) for s in group.with_role("along") if s.parameter in stats.scales]
    if not scales:
        raise InputError(
            f"criterion 'bn_scale': the group {group.name!r} has no BatchNorm with a scale; use 'taylor' or 'l2', or name it in keep=[...]"
        )
    return torch.stack(scales).mean(0)


def taylor(group: Group, stats: Stats) -> torch.Tensor:
    """The mean over batches of (the first-order change of the loss when the channel's contributions go to zero) squared.

    With weights w that read the channel and their gradients g, the change is the sum of w * g over all of them: zeroing them is what removing the
    channel does. Molchanov et al. 2019, eq. 8, with the gate placed where the channel is read, so that residual groups have one gate.
    """
    return stats.changes[group.name].square().mean(0)


def taylor_weight(group: Group, stats: Stats) -> torch.Tensor:
    """The seminar's algorithm: gradients accumulated over the batches, each weight of the group's filters times its gradient, absolute values summed.

    Molchanov et al. 2017, section 2.2, on weights.
    """
    slots = [s for s in group.with_role("out") if s.parameter in stats.gradients]
    return torch.stack([(per_channel(stats.tensors[s.parameter], s) * per_channel(stats.gradients[s.parameter], s)).abs().sum(1) for s in slots]).sum(
        0
    )


def geometric_median(group: Group, stats: Stats) -> torch.Tensor:
    """The sum of distances of each filter to all the others of its layer, relative to the layer's mean; the mean over coupled layers.

    Filters near the geometric median can be replaced by the others, so they go first. He et al. 2019 (FPGM), eq. 6.
    """
    rows = [per_channel(stats.tensors[s.parameter], s) for s in group.with_role("out")]
    sums = [torch.cdist(r, r, compute_mode="donot_use_mm_for_euclid_dist").sum(1) for r in rows]
    return torch.stack([f / f.mean().clamp_min(1e-12) for f in sums]).mean(0)


def random(group: Group, stats: Stats) -> torch.Tensor:
    """Uniform scores from torch's generator: the baseline that a criterion has to beat."""
    return torch.rand(group.channels)


CRITERIA: dict[str, Callable[[Group, Stats], torch.Tensor]] = {
    "l1": l1, "l2": l2, "geometric_median": geometric_median, "bn_scale": bn_scale, "taylor": taylor, "taylor_weight": taylor_weight, "brain_surgeon": brain_surgeon,
    "random": random,
}  # fmt: skip
ADDITIVE = {"taylor", "brain_surgeon"}  # their scores are changes of a loss or of an error: the sum over channels has a meaning
NEEDS_GRADIENTS = {"taylor", "taylor_weight"}
NEEDS_DATA = {*NEEDS_GRADIENTS, "brain_surgeon"}
