"""What one cut was asked for, once what was left open is decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from mirabelle.base.data import First, example_inputs
from mirabelle.base.errors import InputError
from mirabelle.base.identity import data_identity, function_identity
from mirabelle.base.keep import names_of
from mirabelle.base.progress import say
from mirabelle.pruning.criteria import CRITERIA, NEEDS_DATA
from mirabelle.sources.synthetic import pictures_for

AUTO = "auto"
BUDGETS = ("macs", "params", "latency")
WIDTHS = "widths"


def chosen_budget(options: Mapping[str, Any]) -> tuple[str, float]:
    """The one budget that is given, and the fraction that is kept; of `widths` all is."""
    given = [n for n in (*BUDGETS, WIDTHS) if options[n] is not None]
    if len(given) != 1:
        raise InputError(
            "give exactly one budget, macs=, params= or latency=, or widths=; got "
            f"{', '.join(given) or 'none'}"
        )
    return given[0], 1.0 if given[0] == WIDTHS else float(options[given[0]])


def with_pictures(network: nn.Module, x: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `prune`, with synthetic pictures for `data` where there are none and nothing
    that was asked for needs real ones: layers are fitted again on them far better than not at all.
    """
    criterion, found = options["criterion"], dict(options)
    weights_alone = criterion is None or criterion in CRITERIA.keys() - NEEDS_DATA
    if options["data"] is not None or options["repair"] != AUTO or not weights_alone:
        return found
    pictures, scale = [], ""
    if not options["depth"]:
        pictures, scale = pictures_for(network, example_inputs(x), options["seed"])
    if not pictures:
        say(
            "without data channels are scored by their weights alone; with data=, inputs "
            "without labels, by what the outputs lose, and layers are fitted again"
        )
        return found
    count = sum(b.size for b in pictures)
    say(
        f"without data layers are fitted again on {count} synthetic pictures ({scale}); real "
        "inputs as data=, without labels, keep more"
    )
    return found | {"data": pictures}


@dataclass(frozen=True)
class Settings:
    """What `prune` was asked for, of one cut. budget: `macs`, `params` or `latency`, or `widths`;
    fraction: how much of it is kept. The rest as there.
    """

    budget: str
    fraction: float
    runtime: str
    criterion: str | Callable
    normalize: str | None
    aggregate: str | None
    data: Iterable | None
    loss: str | Callable | None
    samples: int
    align: int | None
    keep: list[str]
    allocation: str | None
    least: float
    repair: str | None
    depth: bool
    seed: int
    widths: Mapping[str, int] | None = None
    skip: Sequence[str] = ()

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Those of `prune`'s arguments, by name."""
        own = {f.name: options[f.name] for f in fields(cls) if f.name in options}
        data, own["keep"] = own["data"], names_of(own["keep"])
        if own["criterion"] is None:
            own["criterion"] = "l2" if data is None else "brain_surgeon"
        if own["repair"] == AUTO:
            own["repair"] = None if data is None else "least-squares"
        if isinstance(data, Iterator):  # read more than once
            own["data"] = list(First(data, own["samples"]))
        return cls(*chosen_budget(options), **own)

    @property
    def read(self) -> Iterable | None:
        """What of the data the criterion and the repair read."""
        return None if self.data is None else First(self.data, self.samples)

    def identity(self) -> dict[str, Any]:
        """What tells this cut from others, as JSON."""
        found = {k: function_identity(v) if callable(v) else v for k, v in vars(self).items()}
        found["keep"] = sorted(self.keep)
        data = None if self.data is None else data_identity(self.data, self.seed)
        return found | {"data": data}
