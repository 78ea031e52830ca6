"""`repair="search"`: the repairs that keep a network's outputs nearest to the float network's,
found by trying them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import fx

from mirabelle.base.data import Batch
from mirabelle.base.progress import bar
from mirabelle.measurement.accuracy import as_tensor, predictor
from mirabelle.quantization.repairs.equalization import scalable
from mirabelle.quantization.repairs.smoothing import sources
from mirabelle.quantization.search.fallback import FEW, noise


def combinations(network: fx.GraphModule) -> list[tuple[str, ...]]:
    """Those that can change this network and need no training; the first is none."""
    scaling: list[tuple[str, ...]] = [()]
    if any(c.weights for c in scalable(network.graph, clipped=True)):
        scaling.append(("equalize-activations",))
    if any(c.normalized for c in scalable(network.graph)):
        scaling.append(("smooth-quant",))
    if sources(network):
        scaling.append((*scaling[-1], "smooth-inputs"))
    return [(*s, *b) for s in scaling for b in ((), ("bias-means",), ("bias",))]


def best_repairs(
    network: fx.GraphModule,
    attempt: Callable[[tuple[str, ...], Sequence[Batch]], fx.GraphModule],
    data: Sequence[Batch],
) -> list[str]:
    """The combination with the least squared error of the outputs.

    network: the captured float network. attempt: (repairs, batches) -> the network quantized with
    these. Tried with all batches but those that hold the last FEW or the last quarter of the
    samples, whichever are fewer, and compared on these; with a single batch on that itself.
    """
    cut = len(data)
    while cut > 1 and sum(b.size for b in data[cut:]) < min(FEW, sum(b.size for b in data) / 4):
        cut -= 1
    few = data[cut:] or data
    wanted = [as_tensor(predictor(network)(b)).double() for b in few]
    tried = combinations(network)
    errors = []
    with bar("choosing repairs", len(tried)) as shown:
        for repairs in tried:
            error = noise(attempt(repairs, data[:cut]), few, wanted)
            errors.append(math.inf if math.isnan(error) else error)
            shown.advance()
    return list(tried[errors.index(min(errors))])
