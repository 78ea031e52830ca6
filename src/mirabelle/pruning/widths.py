"""A cut whose widths are given: what a plan, or an earlier run, has decided."""

from __future__ import annotations

from torch import nn

from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.channels.groups import Coupling, analyze
from mirabelle.channels.skipping import skip
from mirabelle.channels.surgery import remove
from mirabelle.fitting.batchnorm import reestimate_where_better
from mirabelle.pruning.repair import REPAIRS, Cut
from mirabelle.pruning.rounds import Planned
from mirabelle.pruning.scoring import scored
from mirabelle.pruning.settings import Settings


def to_widths(model: nn.Module, coupling: Coupling, settings: Settings) -> Planned:
    """The network without the blocks `settings.skip`, whose groups have `settings.widths` channels.

    The criterion says which channels of a group stay. Groups without a width keep all. Raises
    `InputError` for a group that the network does not have, and for widths beyond its channels.
    """
    assert settings.widths is not None
    skipped, small = tuple(settings.skip), model
    if skipped:
        small = skip(model, coupling.inputs, skipped)
        if settings.repair is not None and settings.data is not None:
            small = reestimate_where_better(small, model, settings.data, settings.batches)
        left = {n for n, _ in [*small.named_modules(), *small.named_parameters()]}
        given = [settings.keep] if isinstance(settings.keep, str) else settings.keep
        coupling = analyze(small, coupling.inputs, [k for k in given if k in left])
    _check_widths(settings, coupling)
    fewer = {n: w for n, w in settings.widths.items() if w < coupling.channels[n]}
    if not fewer:
        return Planned(small, coupling, {}, skipped)
    scores = scored(small, coupling, settings)
    removed = {
        n: s.sort(stable=True).indices[: coupling.channels[n] - fewer.get(n, coupling.channels[n])]
        for n, s in scores.items()
    }
    cut = remove(small, coupling, removed)
    if settings.repair is not None and settings.data is not None:
        how = Cut(small, coupling, removed)
        cut = REPAIRS[settings.repair](cut, how, settings.data, settings.batches)
    return Planned(cut, coupling, removed, skipped)


def _check_widths(settings: Settings, coupling: Coupling) -> None:
    assert settings.widths is not None
    for name, width in settings.widths.items():
        if name not in coupling.channels:
            near = did_you_mean(name, coupling.channels)
            raise InputError(
                f"widths names {name!r}, which is no group of channels of this network{near}; "
                "mb.explain names the groups"
            )
        if not 1 <= width <= coupling.channels[name]:
            raise InputError(
                f"widths gives {name!r} {width} channels; it has {coupling.channels[name]}, of "
                "which at least one stays"
            )
