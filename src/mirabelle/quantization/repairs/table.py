"""Repairs: what is made up for in a network that is quantized, without labels. Each is a function
that changes the network in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import fx

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError, choose
from mirabelle.quantization.repairs.biases import (
    correct_bias,
    correct_bias_analytically,
    correct_bias_by_means,
)
from mirabelle.quantization.repairs.equalization import scalable
from mirabelle.quantization.repairs.rounding import learn_rounding
from mirabelle.quantization.repairs.scaling import equalize, equalize_activations, smooth_quant
from mirabelle.quantization.repairs.smoothing import smooth_inputs, sources

Repair = Callable[[fx.GraphModule, fx.GraphModule, Sequence[Batch]], None]
# In the order in which they are applied. (network, its float form with nodes of the same names,
# batches); changes the network.
REPAIRS: dict[str, Repair] = {
    "equalize-activations": equalize_activations,
    "equalize": equalize,
    "smooth-quant": smooth_quant,
    "smooth-inputs": smooth_inputs,
    "learned-rounding": learn_rounding,
    "bias-analytic": correct_bias_analytically,
    "bias-means": correct_bias_by_means,
    "bias": correct_bias,
}
# These change the float network, before thresholds are chosen.
BEFORE = ("equalize-activations", "equalize", "smooth-quant", "smooth-inputs")
AUTO = "auto"  # instead of names: those that suit the network
SEARCH = "search"  # instead of names: those that turn out best


def suitable(network: fx.GraphModule) -> list[str]:
    """What a captured float network is given without being asked: repairs that cost little, and
    that leave room for what calibration did not see.
    """
    scaling = []
    if any(c.weights for c in scalable(network.graph, clipped=True)):
        scaling.append("equalize-activations")
    if any(c.normalized for c in scalable(network.graph)):
        scaling.append("smooth-quant")
    if sources(network):
        scaling.append("smooth-inputs")
    return [*scaling, "bias-means"]


def check_repairs(repair: str | Iterable[str] | None) -> list[str]:
    """The names in the order in which they are applied, whatever order they were given in; `[AUTO]`
    or `[SEARCH]` for these.
    """
    names = [] if repair is None else [repair] if isinstance(repair, str) else list(repair)
    if names in ([AUTO], [SEARCH]):
        return names
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"repair names {name!r}; expected names of {', '.join(REPAIRS)}")
        if name in (AUTO, SEARCH):
            raise InputError(f"repair={names!r}: {name!r} chooses repairs and stands alone")
        choose(name, REPAIRS, "repair")
    return [n for n in REPAIRS if n in names]
