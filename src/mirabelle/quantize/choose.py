"""`repair="auto"`: the repairs that keep a network's outputs nearest to the float network's, found by trying them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from torch import fx

from mirabelle.data import samples as first_samples
from mirabelle.errors import InputError
from mirabelle.measure.accuracy import predictor
from mirabelle.progress import bar
from mirabelle.quantize.fallback import FEW, noise
from mirabelle.quantize.scaling import scalable


def combinations(network: fx.GraphModule) -> list[tuple[str, ...]]:
    """Those that can change this network and need no training; the first is none."""
    scaling: list[tuple[str, ...]] = [()]
    if any(c.weights for c in scalable(network.graph, clipped=True)):
        scaling.append(("equalize-activations",))
    if any(c.normalised for c in scalable(network.graph)):
        scaling.append(("smooth-quant",))
    analytic: list[tuple[str, ...]] = [("bias-analytic",)] if any("moments" in n.meta for n in network.graph.nodes) else []
    return [(*s, *b) for s in scaling for b in ((), *analytic, ("bias",))]


def best_repairs(network: fx.GraphModule, attempt: Callable[[tuple[str, ...], int], fx.GraphModule], data: Iterable, samples: int) -> list[str]:
    """The combination with the least squared error of the outputs.

    network: the captured float network. attempt: (repairs, so many samples) -> the quantised one. Tried with all samples but the last FEW or last quarter, whichever are
    fewer, and compared on these; in whole batches, and with a single batch on that itself.
    """
    if isinstance(data, Iterator):
        raise InputError("repair='auto' reads the calibration set several times; give a list, a DataLoader or any iterable, not an iterator")
    sizes = [b.size for b in first_samples(data, samples, "the calibration set")]
    cut = len(sizes)
    while cut > 1 and sum(sizes[cut:]) < min(FEW, sum(sizes) / 4):
        cut -= 1
    few = list(islice(first_samples(data, samples), cut if cut < len(sizes) else 0, None))
    wanted = [predictor(network)(b).double() for b in few]
    tried = combinations(network)
    errors = []
    with bar("choosing repairs", len(tried)) as shown:
        for repairs in tried:
            errors.append(noise(attempt(repairs, sum(sizes[:cut])), few, wanted))
            shown.advance()
    return list(tried[errors.index(min(errors))])
