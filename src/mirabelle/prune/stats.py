"""Statistics: what a criterion may look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from mirabelle.errors import InputError
from mirabelle.gradients import loss_gradients
from mirabelle.graph.groups import Coupling, Slot
from mirabelle.moments import has_rows, input_grams

MOST_COLUMNS = 8192  # of a layer whose inputs are looked at: beyond it A'A takes over half a gigabyte


@dataclass
class Stats:
    """What a criterion may look at.

    tensors: every parameter and buffer of the network by name. gradients: the loss's gradient by parameter, the mean over the batches seen.
    changes: by group, (batches, C): for each batch the first-order change of the loss if the channel's contributions were zero.
    scales: the names of BatchNorm's gamma. grams: see there; computed when first looked at.
    """

    tensors: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    changes: dict[str, torch.Tensor] = field(default_factory=dict)
    scales: frozenset[str] = frozenset()
    read: Callable[[], dict[str, torch.Tensor]] = dict

    @cached_property
    def grams(self) -> dict[str, torch.Tensor]:
        """A'A by layer, with A the rows that the layer reads and a column of ones behind (`moments.input_grams`), on the same batches."""
        return self.read()


def per_channel(tensor: torch.Tensor, slot: Slot) -> torch.Tensor:
    """(C, everything that channel c has in this slot), flattened."""
    index = slot.index.to(tensor.device)
    moved = tensor.movedim(slot.dim, 0)
    return moved[index.reshape(-1)].reshape(index.shape[0], -1)


def collect(model: nn.Module, coupling: Coupling, data: Iterable | None, loss: Callable | None, count: int, needs_gradients: bool) -> Stats:
    """The statistics for a criterion; with gradients, `count` labelled batches go forward and backward through the network (`gradients.py`)."""
    tensors = {n: p.detach() for n, p in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]}
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)}

    def read() -> dict[str, torch.Tensor]:
        if data is None:
            raise InputError("this criterion looks at the inputs of layers: give data=, a loader")
        return input_grams(model, _readers(model, coupling), data, count)

    stats = Stats(tensors, scales=frozenset(f"{n}.weight" for n in norms), read=read)
    if not needs_gradients:
        return stats
    if data is None:
        raise InputError("this criterion needs gradients: give data=, a loader of (inputs, targets), and loss=")
    changes: dict[str, list[torch.Tensor]] = {g.name: [] for g in coupling.groups}
    seen = 0
    for found in loss_gradients(model, data, loss, count):
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


def _readers(model: nn.Module, coupling: Coupling) -> list[str]:
    """The layers that read a group's channels and whose inputs are rows of not too many columns."""
    slots = {s.module: s for g in coupling.groups for s in g.with_role("in") if has_rows(model.get_submodule(s.module))}
    return [n for n, s in slots.items() if math.prod(coupling.shapes[s.parameter][1:]) <= MOST_COLUMNS]
