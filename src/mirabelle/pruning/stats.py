"""Statistics: what a criterion may look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from mirabelle.base.checks import clone, every_tensor, running
from mirabelle.base.data import Batch, device_of, samples
from mirabelle.base.errors import InputError
from mirabelle.channels.groups import Coupling, Slot
from mirabelle.fitting.gradients import loss_gradients
from mirabelle.fitting.gram import Gram, gram_matrices, has_rows
from mirabelle.measurement.accuracy import as_tensor

TRIAL = 16  # samples on which a cut is tried; the Gram matrices are those of others
MOST_COLUMNS = (
    8192  # of a layer whose inputs are looked at: beyond it A'A takes over half a gigabyte
)


@dataclass
class Stats:
    """What a criterion may look at.

    tensors: every parameter and buffer of the network by name. gradients: the loss's gradient by
    parameter, the mean over the batches seen.
    changes: by group, (batches, C): for each batch the first-order change of the loss if the
    channel's contributions were zero; for each sample where the criterion is one of
    `NEEDS_SAMPLES`, and likewise below.
    products: by (group, parameter, dimension), (batches, C): weight x gradient summed over what the
    channel has there. squares: the same keys, (C,): the sum of (weight x gradient) squared, the
    mean over the batches. scales: the names of BatchNorm's gamma. grams: see there; computed when
    first looked at.
    trial: parameters that take the places of the network's -> the squared error of its outputs
    relative to their energy about the mean, on TRIAL samples.
    """

    tensors: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    changes: dict[str, torch.Tensor] = field(default_factory=dict)
    products: dict[tuple[str, str, int], torch.Tensor] = field(default_factory=dict)
    squares: dict[tuple[str, str, int], torch.Tensor] = field(default_factory=dict)
    scales: frozenset[str] = frozenset()
    read: Callable[[], dict[str, Gram]] = dict
    trial: Callable[[dict[str, torch.Tensor]], float] | None = None

    @cached_property
    def grams(self) -> dict[str, Gram]:
        """By layer, what it reads and what depends on what it gives, on the same batches."""
        return self.read()


def per_channel(tensor: torch.Tensor, slot: Slot) -> torch.Tensor:
    """(C, everything that channel c has in this slot), flattened."""
    index = slot.index.to(tensor.device)
    moved = tensor.movedim(slot.dim, 0)
    return moved[index.reshape(-1)].reshape(index.shape[0], -1)


def collect(
    model: nn.Module,
    coupling: Coupling,
    data: Iterable | None,
    loss: Callable | None,
    needs_gradients: bool,
    by_sample: bool = False,
) -> Stats:
    """The statistics for a criterion; with gradients, labeled batches go forward and
    backward through the network in eval mode.

    by_sample: each sample by itself, which is what second order needs: the gradient of a batch is a
    mean, in which those of its samples cancel.
    """
    tensors = {n: t.detach() for n, t in every_tensor(model).items()}
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)}

    def read() -> dict[str, Gram]:
        if data is None:
            raise InputError("this criterion looks at the inputs of layers: give data=, a loader")
        return gram_matrices(model, layers_read(model, coupling), data, skip=TRIAL)

    stats = Stats(
        tensors,
        scales=frozenset(f"{n}.weight" for n in norms),
        read=read,
        trial=None if data is None else trial_on(model, data),
    )
    if not needs_gradients:
        return stats
    if data is None:
        raise InputError(
            "this criterion needs gradients: give data=, a loader of (inputs, targets), and loss="
        )
    _add_gradients(stats, coupling, loss_gradients(model, data, loss, by_sample))
    return stats


def _add_gradients(
    stats: Stats, coupling: Coupling, gradients: Iterable[Mapping[str, torch.Tensor]]
) -> None:
    """Fills in what hangs on the loss's gradients, given batch by batch."""
    products: dict[tuple[str, str, int], list[torch.Tensor]] = {}
    seen = 0
    for found in gradients:
        for name, grad in found.items():
            stats.gradients[name] = stats.gradients.get(name, 0) + grad
        for group in coupling.groups:
            for s in (s for s in group.slots if s.parameter in found):
                product = per_channel(stats.tensors[s.parameter] * found[s.parameter], s)
                key = (group.name, s.parameter, s.dim)
                products.setdefault(key, []).append(product.sum(1).cpu())
                stats.squares[key] = stats.squares.get(key, 0) + product.square().sum(1).cpu()
        seen += 1
    stats.gradients = {n: g / seen for n, g in stats.gradients.items()}
    stats.products = {key: torch.stack(rows) for key, rows in products.items()}
    stats.squares = {key: sums / seen for key, sums in stats.squares.items()}
    for g in coupling.groups:
        read_by = [
            stats.products[key]
            for s in g.with_role("in")
            if (key := (g.name, s.parameter, s.dim)) in products
        ]
        stats.changes[g.name] = (
            -torch.stack(read_by).sum(0) if read_by else torch.zeros(seen, g.channels)
        )


def _rows(output: Any) -> torch.Tensor:
    """The first tensor of the outputs; a single number of a whole batch is one row."""
    return torch.atleast_1d(as_tensor(output)).double()


def trial_on(model: nn.Module, data: Iterable) -> Callable[[dict[str, torch.Tensor]], float]:
    """`Stats.trial`; the data is read when it is first called."""
    known: list[tuple[nn.Module, Batch, torch.Tensor]] = []

    def error(changes: dict[str, torch.Tensor]) -> float:
        with torch.no_grad():
            if not known:
                network = clone(model).eval()
                device = device_of(network)
                few = next(samples(data, TRIAL, what="data"))._replace(target=None).to(device)
                with running(few, "batch 0 of data"):
                    known.append((network, few, _rows(few.run(network))))
            network, few, expected = known[0]
            found = _rows(
                few.run(lambda *a, **k: torch.func.functional_call(network, changes, a, k))
            )
            energy = (
                (expected - expected.mean(0)).square().sum()
                if len(expected) > 1
                else expected.square().sum()
            )
            return float((found - expected).square().sum() / energy.clamp_min(1e-30))

    return error


def layers_read(model: nn.Module, coupling: Coupling) -> dict[str, int]:
    """The layers that read a group's channels and whose inputs are rows of not too many columns,
    with how many.
    """
    columns = {
        s.module: math.prod(coupling.shapes[s.parameter][1:])
        for g in coupling.groups
        for s in g.with_role("in")
        if has_rows(model.get_submodule(s.module))
    }
    return {name: count for name, count in columns.items() if count <= MOST_COLUMNS}
