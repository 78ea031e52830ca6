"""How a network was quantised."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import fx

from mirabelle.quantize.place import Site


@dataclass(frozen=True)
class Quantization:
    """How a network was quantised: all that is needed to build its structure again, but the numbers, which are its state.

    inputs: name ('' for a positional one), shape and dtype of each part of the example that it was captured with.
    precision: bits by the name of the quantiser, for those that have others than `bits` and `weight_bits`.
    keep: modules and parameters whose layers stay in float because that was asked for.
    pair_sums: by layer, what its sums of pairs can reach and how many filters were limited for that (`saturate.PairSums`); for targets that need it.
    float_operators: what stays in float, with the number of calls.
    """

    target: str
    bits: int
    weight_bits: int
    threshold: str
    samples: int
    inputs: tuple
    sites: tuple[Site, ...]
    float_operators: dict[str, int]
    symmetric: bool = True
    per_channel: bool = True
    weight_symmetric: bool = True
    keep: tuple[str, ...] = ()
    precision: dict[str, int] = field(default_factory=dict)
    pair_sums: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, described: dict[str, Any]) -> Quantization:
        """What `to_dict` wrote, by way of JSON too. Raises what a damaged one brings about: `KeyError`, `TypeError` or `ValueError`."""
        sites = tuple(Site(**s) for s in described["sites"])
        inputs = tuple((name, tuple(shape), dtype) for name, shape, dtype in described["inputs"])
        return cls(**{**described, "sites": sites, "inputs": inputs, "keep": tuple(described.get("keep", ()))})


def quantization(model: object) -> Quantization | None:
    """The description of a quantised network; None for any other."""
    found = getattr(model, "meta", {}).get("quantization") if isinstance(model, fx.GraphModule) else None
    return found if isinstance(found, Quantization) else None
