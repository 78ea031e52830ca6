"""Repairs that rescale channels before thresholds are chosen: made by some layers and read by
others, they keep the network's output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from mirabelle.base.data import Batch
from mirabelle.base.progress import bar
from mirabelle.graph.capture import operator
from mirabelle.quantization.calibration.observation import PixelByPixel
from mirabelle.quantization.repairs.equalization import Channels, Reader, scalable
from mirabelle.quantization.simulation.notes import moments_of
from mirabelle.quantization.simulation.operators import is_contraction

SWEEPS = 100
DEAD = 2.0**-10  # of the largest channel: what is smaller is as good as dead
SMOOTH = 0.5  # how much of the difficulty goes from the activations to the weights
WATCHED = 64  # samples
BEYOND = 10.0  # times as many samples: a channel's range is to hold for these
DEVIATIONS = 4.0  # of BatchNorm's: so far a channel is expected to reach in any case


def equalize(network: fx.GraphModule, reference: fx.GraphModule, batches: Sequence[Batch]) -> None:
    """Cross-layer equalization: channels are rescaled until the weights that make each have the
    range of those that read it. The network's output stays the same.

    For a channel i made with weights up to r1 and read with weights up to r2 the factor is sqrt(r1
    / r2), by which the former are divided and the latter multiplied; over and over, as a layer
    makes the channels that it gives and reads others. Nagel et al. 2019, section 4.1, eq. 11, with
    residual additions. Needs no data. Channels that pass through more than ReLU and the like
    (ReLU6, GELU) keep their scale.
    """
    channels = [c for c in scalable(network.graph) if all(is_contraction(m.node) for m in c.makers)]
    for _ in range(SWEEPS):
        change = 0.0
        for c in channels:
            made, read = c.made_range(network), c.read_range(network)
            factors = torch.where((made > 0) & (read > 0), (made / read).sqrt(), 1.0)
            c.scale(network, factors)
            change = max(change, float(factors.log().abs().max()))
        if change < 1e-3:
            return


def smooth_quant(
    network: fx.GraphModule, reference: fx.GraphModule, batches: Sequence[Batch]
) -> None:
    """SmoothQuant: channels after a normalization are divided by s where the normalization scales
    them, and their readers' weights multiplied. The output stays the same.

    s = max|x|^a / max|w|^(1 - a) for each channel, a = 0.5, over the batches and the weights that
    read it: transformers have channels far larger than the others, for which a tensor's single step
    is too coarse. Xiao et al. 2023, eq. 4.
    """
    channels = [c for c in scalable(network.graph) if c.normalized]
    peaks = _peaks(network, [c.readers[0] for c in channels], batches)
    for c in channels:
        x, w = peaks[c.readers[0].source].amax(0), c.read_range(network)
        c.scale(network, torch.where((x > 0) & (w > 0), x**SMOOTH / w ** (1 - SMOOTH), 1.0))


def equalize_activations(
    network: fx.GraphModule, reference: fx.GraphModule, batches: Sequence[Batch]
) -> None:
    """Channels are enlarged toward the largest of their tensor, and the weights that read them
    made smaller, so that the tensor's one step suits them all.

    A channel that reaches m, of the M that the largest reaches on the batches, is multiplied by M /
    m where depthwise layers alone read it, whose filters have a step each, and by sqrt(M / m) where
    layers mix it with others: there the step of the weights costs what the step of the activations
    gains. After Meller et al. 2019, section 3, and Xiao et al. 2023. ReLU6 stays as it is.

    What the batches did not show must fit too, since an enlarged channel has no room left: m is
    what ten times as many samples are expected to reach, and no less than four of BatchNorm's
    deviations from its mean.
    """
    channels = [c for c in scalable(network.graph, clipped=True) if c.weights]
    peaks = _peaks(network, [r for c in channels for r in c.readers], batches)
    for c in channels:
        own = [peaks[r.source].view(-1, c.count, r.repeat).amax(2) for r in c.readers]
        most = torch.stack([p.amax() for p in own]).amax()
        reached = torch.stack([p.amax(0) + _beyond(p) for p in own] + _expected(c)).amax(0)
        share = torch.where(reached > 0, reached / most, 1.0).clamp(DEAD, 1.0)
        c.scale(network, share if all(r.groups == c.count for r in c.readers) else share.sqrt())


def _expected(c: Channels) -> list[torch.Tensor]:
    """How far BatchNorm lets each channel be expected to reach, (C,) for each maker that tells."""
    noted = [m for m in (moments_of(m.node) for m in c.weights) if m is not None]
    return [(m.mean.abs() + DEVIATIONS * m.deviation).float() for m in noted]


def _beyond(peaks: torch.Tensor) -> torch.Tensor:
    """(C,) how much further than `peaks` (samples, C), its largest values sample by sample, each
    channel is expected to reach on BEYOND times as many samples.

    Largest values are taken as Gumbel's: the largest of k samples grows by b ln(k), where their
    deviation is b pi / sqrt(6). Gumbel 1935.
    """
    scale = peaks.double().std(0, correction=0) * math.sqrt(6) / math.pi
    return (scale * math.log(BEYOND)).to(peaks)


def _peaks(
    network: fx.GraphModule, readers: Iterable[Reader], batches: Sequence[Batch]
) -> dict[fx.Node, torch.Tensor]:
    """By what the readers read, (samples, C): the largest absolute value of each channel in each
    of the first WATCHED samples or so.
    """
    dims = {r.source: -1 if operator(r.node) == "linear" else 1 for r in readers}
    found: dict[fx.Node, list[torch.Tensor]] = {n: [] for n in dims}
    few: list[Batch] = []
    while sum(b.size for b in few) < WATCHED and len(few) < len(batches):
        few.append(batches[len(few)])  # whole: a graph may be for batches of this size alone

    class Watcher(PixelByPixel):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in dims:
                others = [d for d in range(1, value.ndim) if d != dims[n] % value.ndim]
                found[n].append(value.abs().amax(others) if others else value.abs())
            return value

    with torch.no_grad(), bar("watching channels", len(few)) as shown:
        for batch in few:
            Watcher(network).on(batch)
            shown.advance()
    return {n: torch.cat(p) for n, p in found.items()}
