"""A cut whose widths are given: what a plan, or an earlier run, has decided."""

from __future__ import annotations

from torch import nn

from mirabelle.base.errors import InputError, did_you_mean
from mirabelle.channels.groups import Coupling, analyze
from mirabelle.channels.surgery import remove
from mirabelle.pruning.depth import without_blocks
from mirabelle.pruning.repair import Cut, repaired
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
        small, keep = without_blocks(model, coupling, skipped, settings)
        coupling = analyze(small, coupling.inputs, keep)
    _check_widths(settings, coupling)
    fewer = {n: w for n, w in settings.widths.items() if w < coupling.channels[n]}
    if not fewer:
        return Planned(small, coupling, {}, skipped)
    scores = scored(small, coupling, settings)
    removed = {
        n: s.sort(stable=True).indices[: coupling.channels[n] - fewer.get(n, coupling.channels[n])]
        for n, s in scores.items()
    }
    cut = repaired(remove(small, coupling, removed), Cut(small, coupling, removed), settings)
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
