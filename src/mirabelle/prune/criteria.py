"""Criteria: how much each channel of a group matters. A criterion is a function (group, stats) -> (C,) scores; larger stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from mirabelle.checks import clone, running
from mirabelle.data import batches
from mirabelle.errors import InputError
from mirabelle.graph.groups import Coupling, Group, Slot
from mirabelle.measure.accuracy import as_tensor
from mirabelle.progress import track


@dataclass
class Stats:
    """What a criterion may look at.

    tensors: every parameter and buffer of the network by name. gradients: the loss's gradient by parameter, the mean over the batches seen.
    changes: by group, (batches, C): for each batch the first-order change of the loss if the channel's contributions were zero.
    scales: the names of BatchNorm's gamma.
    """

    tensors: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    changes: dict[str, torch.Tensor] = field(default_factory=dict)
    scales: frozenset[str] = frozenset()


def per_channel(tensor: torch.Tensor, slot: Slot) -> torch.Tensor:
    """(C, everything that channel c has in this slot), flattened."""
    index = slot.index.to(tensor.device)
    moved = tensor.movedim(slot.dim, 0)
    return moved[index.reshape(-1)].reshape(index.shape[0], -1)


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


def random(group: Group, stats: Stats) -> torch.Tensor:
    """Uniform scores from torch's generator: the baseline that a criterion has to beat."""
    return torch.rand(group.channels)


CRITERIA: dict[str, Callable[[Group, Stats], torch.Tensor]] = {
    "l1": l1, "l2": l2, "bn_scale": bn_scale, "taylor": taylor, "taylor_weight": taylor_weight, "random": random,
}  # fmt: skip
NEEDS_GRADIENTS = {"taylor", "taylor_weight"}


def collect(model: nn.Module, coupling: Coupling, data: Iterable | None, loss: Callable | None, count: int, needs_gradients: bool) -> Stats:
    """The statistics for a criterion; with gradients, `count` labelled batches go forward and backward through the network in eval mode.

    Eval mode, because the pruned network keeps BatchNorm's statistics fixed too: in train mode w * g summed over a filter before BatchNorm is zero.
    It is a copy that runs: no step is taken, and the network's gradients, flags and buffers are left as they were.
    """
    if needs_gradients:
        model = clone(model).eval()
    tensors = {n: p.detach() for n, p in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]}
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)}
    stats = Stats(tensors, scales=frozenset(f"{n}.weight" for n in norms))
    if not needs_gradients:
        return stats
    if data is None:
        raise InputError("this criterion needs gradients: give data=, a loader of (inputs, targets), and loss=")
    function = loss or nn.functional.cross_entropy
    trained = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    device = next(iter(trained.values())).device
    changes: dict[str, list[torch.Tensor]] = {g.name: [] for g in coupling.groups}
    seen = 0
    for p in trained.values():
        p.requires_grad_(True)
    for batch in track(batches(data, count, labelled=True, what="data"), "gradients", count):
        batch = batch.map(lambda t: t.to(device))
        with torch.enable_grad(), running(batch, f"batch {seen} of data"):
            value = function(as_tensor(model(*batch.args, **batch.kwargs)), batch.target.to(device))
            grads = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
        found = {n: g for n, g in zip(trained, grads, strict=True) if g is not None}
        if bad := [n for n, g in found.items() if not bool(torch.isfinite(g).all())]:
            raise InputError(f"the gradient of {bad[0]} is not finite on batch {seen} of data; look for NaN in the inputs or the loss")
        for name, grad in found.items():
            stats.gradients[name] = stats.gradients.get(name, 0) + grad
        for group in coupling.groups:
            change = torch.zeros(group.channels)
            for s in group.with_role("in"):
                if s.parameter in found:
                    change -= (per_channel(tensors[s.parameter], s) * per_channel(found[s.parameter], s)).sum(1).cpu()
            changes[group.name].append(change)
        seen += 1
    stats.gradients = {n: g / seen for n, g in stats.gradients.items()}
    stats.changes = {n: torch.stack(c) for n, c in changes.items()}
    return stats
