"""What one cut was asked for, once what was left open is decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from mirabelle.base.errors import InputError
from mirabelle.base.identity import data_identity, function_identity
from mirabelle.base.progress import say

AUTO = "auto"
BUDGETS = ("macs", "params", "latency")


def chosen_budget(options: Mapping[str, Any]) -> tuple[str, float]:
    """The one budget that is given, and the fraction that is kept."""
    given = [n for n in BUDGETS if options[n] is not None]
    if len(given) != 1:
        raise InputError(
            f"give exactly one budget, macs=, params= or latency=; got {', '.join(given) or 'none'}"
        )
    return given[0], float(options[given[0]])


@dataclass(frozen=True)
class Settings:
    """What `prune` was asked for, of one cut. budget: `macs`, `params` or `latency`; fraction: how
    much of it is kept. The rest as there.
    """

    budget: str
    fraction: float
    runtime: str
    criterion: str | Callable
    normalize: str | None
    aggregate: str | None
    data: Iterable | None
    loss: str | Callable | None
    batches: int
    align: int | None
    keep: Iterable[str]
    allocation: str | None
    least: float
    repair: str | None
    depth: bool
    seed: int

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Those of `prune`'s arguments, by name."""
        own = {f.name: options[f.name] for f in fields(cls) if f.name in options}
        data = own["data"]
        if own["criterion"] is None:
            own["criterion"] = "l2" if data is None else "brain_surgeon"
            if data is None:
                say(
                    "without data channels are scored by their weights alone; with data=, inputs "
                    "without labels, by what the outputs lose, and layers are fitted again"
                )
        if own["repair"] == AUTO:
            own["repair"] = None if data is None else "least-squares"
            if isinstance(data, Iterator):  # read more than once
                own["data"] = list(islice(data, own["batches"]))
        return cls(*chosen_budget(options), **own)

    def identity(self) -> dict[str, Any]:
        """What tells this cut from others, as JSON."""
        found = {k: function_identity(v) if callable(v) else v for k, v in vars(self).items()}
        found["keep"] = sorted(self.keep)
        once = self.data is None or isinstance(self.data, Iterator)
        return found | {"data": None if once else data_identity(self.data, self.seed)}
