"""SmoothQuant where no layer before can take the factors: after a residual addition, a GELU or
attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from mirabelle.base.data import Batch
from mirabelle.base.progress import bar
from mirabelle.graph.capture import get_tensor, parameter_uses
from mirabelle.graph.nodes import value_of
from mirabelle.onnx_files.source import source_of
from mirabelle.quantization.calibration.observation import PixelByPixel
from mirabelle.quantization.simulation.operators import weight_name
from mirabelle.quantization.simulation.smoothing import linear_readers, multiply

POWERS = (0.5, 0.65, 0.8, 0.95)
HALF = 0.5  # of the error: what is gained must be worth a multiplication
WATCHED = 64  # samples
ROWS = 512  # of a layer's inputs
SMALLEST = 1e-5


def sources(network: fx.GraphModule) -> list[fx.Node]:
    """What linear layers alone read several vectors of, for each sample. None in ONNX files, which
    keep their nodes.
    """
    if source_of(network) is not None:
        return []
    uses = parameter_uses(network.graph)
    found = []
    for node in network.graph.nodes:
        readers = linear_readers(node)
        weights = {weight_name(r) for r in readers}
        alone = len(weights) == len(readers) and all(uses[w] == 1 for w in weights)
        if readers and alone and value_of(node).ndim >= 3:
            found.append(node)
    return found


def smooth_inputs(
    network: fx.GraphModule, reference: fx.GraphModule, batches: Sequence[Batch]
) -> None:
    """What linear layers read is divided by s, channel by channel, in a multiplication of its own,
    and their weights multiplied. The output stays the same.

    s = max|x|^a / max|w|^(1 - a) with a of 0.5, 0.65, 0.8 or 0.95, whichever leaves least squared
    error in what these layers make of some of the batches, both sides in 8 bits. Where that is
    not half of the error without, there is no multiplication. Xiao et al. 2023, eq. 4; with
    multiplications of their own as Lee et al. 2023, "Enhancing computation efficiency in large
    language models through weight and activation quantization", have them.
    """
    seen = _watched(network, sources(network), batches)
    for source, (peaks, rows) in seen.items():
        weights = [get_tensor(network, weight_name(r)) for r in linear_readers(source)]
        factors = _best(peaks, rows, torch.cat([w.detach() for w in weights]))
        if factors is None:
            continue
        with torch.no_grad():
            for weight in weights:
                weight.mul_(factors)
        multiply(network, source, 1 / factors)
    network.recompile()


def _best(peaks: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
    """The factors (C,) of the best power, if they halve the error. peaks: (2, C), the smallest and
    the largest value of each channel. rows: (N, C). weight: (outputs, C).
    """
    wanted = rows @ weight.T
    x, w = peaks.abs().amax(0).clamp_min(SMALLEST), weight.abs().amax(0).clamp_min(SMALLEST)

    def error(factors: torch.Tensor) -> float:
        low, high = (peaks / factors).amin().clamp_max(0), (peaks / factors).amax().clamp_min(0)
        step = ((high - low) / 255).clamp_min(1e-30)
        scaled = weight * factors
        steps = (scaled.abs().amax(1, keepdim=True) / 127).clamp_min(1e-30)
        found = ((rows / factors / step).round() * step) @ ((scaled / steps).round() * steps).T
        return float((found - wanted).square().sum())

    tried = [x**a / w ** (1 - a) for a in POWERS]
    errors = [error(f) for f in tried]
    least = min(errors)
    if not least < HALF * error(torch.ones_like(x)):
        return None
    best = tried[errors.index(least)]
    return best / best.log().mean().exp()


def _watched(
    network: fx.GraphModule, nodes: Sequence[fx.Node], batches: Sequence[Batch]
) -> dict[fx.Node, tuple[torch.Tensor, torch.Tensor]]:
    """By node the ends of each channel, (2, C), and some of its vectors, (N, C), over the first
    WATCHED samples or so.
    """
    few: list[Batch] = []
    while sum(b.size for b in few) < WATCHED and len(few) < len(batches):
        few.append(batches[len(few)])
    ends: dict[fx.Node, list[torch.Tensor]] = {n: [] for n in nodes}
    rows: dict[fx.Node, list[torch.Tensor]] = {n: [] for n in nodes}

    class Watcher(PixelByPixel):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in ends:
                vectors = value.flatten(0, -2).float()
                ends[n].append(torch.stack([vectors.amin(0), vectors.amax(0)]))
                each = -(-len(vectors) * len(few) // ROWS)
                rows[n].append(vectors[::each].clone())
            return value

    if nodes:
        with torch.no_grad(), bar("watching channels", len(few)) as shown:
            for batch in few:
                Watcher(network).on(batch)
                shown.advance()
    found = {}
    for node in nodes:
        low, high = (torch.stack(ends[node])[:, i] for i in (0, 1))
        found[node] = torch.stack([low.amin(0), high.amax(0)]), torch.cat(rows[node])
    return found
