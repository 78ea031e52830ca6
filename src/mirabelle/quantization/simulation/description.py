"""How a network was quantized."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import fx, nn

from mirabelle.graph.quantized import DESCRIPTION, description_of
from mirabelle.measurement.macs import count_parameters
from mirabelle.quantization.simulation.placement import Site


@dataclass(frozen=True)
class Sensitivity:
    """One layer's: sqnr_db is the float network's output over what changes in it when this layer
    alone is quantized (None where nothing does).
    """

    layer: str
    sqnr_db: float | None


@dataclass(frozen=True)
class Fallback:
    """What was done so that the metric falls by at most `limit`, as a fraction.

    metric: `agreement` with the float network where the validation data has no labels. n:
    its samples. drop, interval: of the network as it is, paired, with its 95 % interval;
    all_quantized: the drop with every layer quantized. precision: what layers fall back to, `float`
    or a number of bits; layers: those that did, the most sensitive first. sensitivity: of all
    layers, the most sensitive first. milliseconds: of one call with one sample on one thread of
    `runtime`: `float`, `all_quantized` and `fallback`, timed in turn; None where nothing fell back,
    or where the precision is no runtime's.
    """

    limit: float
    metric: str
    n: int
    drop: float
    interval: tuple[float, float]
    all_quantized: float
    precision: str
    layers: tuple[str, ...]
    sensitivity: tuple[Sensitivity, ...]
    runtime: str
    milliseconds: dict[str, float] | None = None

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Fallback:
        sensitivity = tuple(Sensitivity(**s) for s in found["sensitivity"])
        return cls(
            **{
                **found,
                "sensitivity": sensitivity,
                "layers": tuple(found["layers"]),
                "interval": tuple(found["interval"]),
            }
        )


@dataclass(frozen=True)
class Timing:
    """What placement by time found. milliseconds: of one call with one sample on one thread of
    `runtime`: `float`, `all_quantized` and `placed`, the last timed in turn with float; None where
    what the clock said was left out. layers: the parameters of those that stay in float. tried: how
    many placements were timed.
    """

    runtime: str
    milliseconds: dict[str, float] | None
    layers: tuple[str, ...]
    tried: int


@dataclass(frozen=True)
class Quantization:
    """How a network was quantized: all that is needed to build its structure again, but the
    numbers, which are its state.

    inputs: name ('' for a positional one), shape and dtype of each part of the example that it was
    captured with.
    precision: bits by the name of the quantizer, for those that have others than `bits` and
    `weight_bits`.
    keep: modules and parameters whose layers stay in float because that was asked for. repair:
    names of `REPAIRS`, in the order in which they were applied.
    smoothed: the nodes that linear layers read times factors of their own, by name.
    rules: by the name of a site, what chose its threshold, where that was left open.
    pair_sums: by layer, what its sums of pairs can reach and how many filters were limited for that
    (`saturate.PairSums`); for targets that need it.
    float_operators: what stays in float, with the number of calls. fallback: what a limit on the
    accuracy brought about, where there was one.
    timing: what placement by time found, where that was asked for.
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
    repair: tuple[str, ...] = ()
    precision: dict[str, int] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    pair_sums: dict[str, dict[str, int]] = field(default_factory=dict)
    fallback: Fallback | None = None
    timing: Timing | None = None
    smoothed: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, described: dict[str, Any]) -> Quantization:
        """What `to_dict` wrote, by way of JSON too. Raises what a damaged one brings about:
        `KeyError`, `TypeError` or `ValueError`.
        """
        sites = tuple(Site(**s) for s in described["sites"])
        inputs = tuple((name, tuple(shape), dtype) for name, shape, dtype in described["inputs"])
        lists = {name: tuple(described[name]) for name in ("keep", "repair")}
        lists["smoothed"] = tuple(described.get("smoothed", ()))
        fallback = described["fallback"] and Fallback.from_dict(described["fallback"])
        timing = described["timing"] and Timing(
            **{**described["timing"], "layers": tuple(described["timing"]["layers"])}
        )
        return cls(
            **{
                **described,
                **lists,
                "sites": sites,
                "inputs": inputs,
                "fallback": fallback,
                "timing": timing,
            }
        )


def quantization(model: object) -> Quantization | None:
    """The description of a quantized network; None for any other."""
    found = description_of(model) if isinstance(model, fx.GraphModule) else None
    return found if isinstance(found, Quantization) else None


def described_of(model: fx.GraphModule) -> Quantization:
    """The description of a network that is known to be quantized."""
    found = quantization(model)
    assert found is not None
    return found


def describe(model: fx.GraphModule, described: Quantization) -> None:
    """Gives a network its description; changes the network."""
    model.meta[DESCRIPTION] = described


def count_weights(model: nn.Module) -> int:
    """Weights and biases; the scales of a quantized network are not counted."""
    scales = sum(p.numel() for n, p in model.named_parameters() if n.startswith("quantizers."))
    return count_parameters(model) - scales
