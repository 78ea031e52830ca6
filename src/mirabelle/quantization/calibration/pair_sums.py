"""Weights whose sums of pairs fit 16 bits, on the inputs that the calibration data reach: for x86
without VNNI (see `mirabelle.integers.pair_sums`).

Only filters that can overflow get a smaller range, and no smaller than needed: at worst half of it,
one bit. All others keep 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import fx

from mirabelle.graph.capture import get_tensor, operator
from mirabelle.integers import arithmetic, pair_sums
from mirabelle.quantization.calibration.histograms import Histogram
from mirabelle.quantization.simulation.operators import layer_input, weight_name
from mirabelle.quantization.simulation.placement import layer_name
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer, WeightQuantizer

# What layers read once those before them are rounded, and images that calibration has not seen,
# reach a little further.
MARGIN = 0.125


@dataclass(frozen=True)
class PairSums:
    """The sums of pairs that a layer can reach with 8-bit weights, and what was done about them.

    least, largest: over all pairs and filters, before; 16 bits hold -32768 to 32767. filters: how
    many the layer has. limited: how many got a smaller range.
    levels: the largest weight that is left in the most limited one, of 127.
    """

    least: int
    largest: int
    filters: int
    limited: int
    levels: int


def channel_axes(layers: Iterable[fx.Node]) -> dict[str, int]:
    """For the input of each layer, by its name, the dimension that holds its channels."""
    return {layer_input(n).name: -1 if operator(n) == "linear" else 1 for n in layers}


def limit_all(
    network: fx.GraphModule,
    layers: Iterable[fx.Node],
    weights: Mapping[str, WeightQuantizer],
    grids: Mapping[str, ActivationQuantizer],
    histograms: Mapping[str, Histogram],
) -> dict[str, dict[str, int]]:
    """`limit_pairs` for every layer; what it found, by the layer's name. weights: by parameter.
    grids, histograms (with channels): by the name of the input.
    """
    found = {}
    for node in layers:
        name, source = weight_name(node), layer_input(node).name
        reached = histograms[source].channels
        assert reached is not None
        sums = limit_pairs(
            node, get_tensor(network, name).detach(), weights[name], grids[source], *reached
        )
        if sums is not None:
            found[layer_name(node)] = asdict(sums)
    return found


def limit_pairs(
    node: fx.Node,
    weight: torch.Tensor,
    quantizer: WeightQuantizer,
    activation: ActivationQuantizer,
    low: np.ndarray,
    high: np.ndarray,
) -> PairSums | None:
    """Widens the steps of those filters of a layer whose sums of pairs can leave 16 bits; None for
    layers that kernels compute otherwise.

    low, high: the least and largest value of each channel of the layer's input in the calibration
    data. An input counts as far as its channel reached and MARGIN of that more, and zero, which
    stands outside images, always. Filters are limited in the layouts of all kernels at once.
    """
    inputs = weight.shape[1] if operator(node) != "linear" else weight.shape[-1]
    groups = len(low) // inputs
    if activation.low < 0 or (groups == len(weight) and inputs == 1):
        return None
    reached = [
        _on_grid(v * (1 + MARGIN), activation) for v in (np.minimum(low, 0), np.maximum(high, 0))
    ]
    shape = (len(weight), inputs, -1)
    before, pairs = quantizer.scale.detach().clone(), None
    for _ in range(64):  # each turn leaves less than the one before; rounding may take a few
        integers = quantizer.integers(weight).numpy().reshape(*shape)
        least, largest = _extremes(integers, groups, *reached)
        pairs = pairs or (int(least.min()), int(largest.max()))
        excess = np.maximum(largest / pair_sums.HIGH, least / pair_sums.LOW)
        if (excess <= 1).all():
            break
        wider = torch.from_numpy(np.where(excess > 1, np.maximum(excess, 1 + 1 / 256), 1.0)).to(
            quantizer.scale
        )
        quantizer.reset(
            quantizer.scale.detach() * (wider if len(quantizer.scale) > 1 else wider.max())
        )
    limited = quantizer.scale.detach() > before
    levels = (quantizer.levels * before / quantizer.scale.detach()).min()
    assert pairs is not None
    return PairSums(
        *pairs,
        len(weight),
        int(limited.sum()) if len(limited) > 1 else len(weight) * int(limited),
        int(levels),
    )


def _on_grid(values: np.ndarray, activation: ActivationQuantizer) -> np.ndarray:
    return arithmetic.quantize(
        values,
        float(activation.scale.detach()),
        activation.zero_point,
        activation.low,
        activation.high,
    )


def _extremes(
    integers: np.ndarray, groups: int, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each filter the least and the largest sum of a pair, over all layouts. integers: (O, C /
    groups, places).
    """
    outputs, channels, places = integers.shape
    least, largest = np.zeros(outputs, np.int64), np.zeros(outputs, np.int64)
    for layout in (
        pair_sums.LAYOUTS if channels % 2 else pair_sums.LAYOUTS[:1]
    ):  # they differ where a channel is left over
        for g, columns in enumerate(arithmetic.filters(integers[..., None], groups)):
            own = slice(g * outputs // groups, (g + 1) * outputs // groups)
            ends = [
                pair_sums.paired(
                    np.tile(v[g * channels : (g + 1) * channels], places), channels, layout, 0
                )
                for v in (low, high)
            ]
            found = pair_sums.reach(pair_sums.paired(columns, channels, layout, 0), *ends)
            least[own], largest[own] = (
                np.minimum(least[own], found[0].min(0)),
                np.maximum(largest[own], found[1].max(0)),
            )
    return least, largest
