"""Criteria: how much each weight, or block of weights, of a layer matters. A function (layer) ->
(units, columns) scores; larger stays.

Scores are amplitudes: their squares, not they themselves, are what adds up over units that go
together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mirabelle.fitting.gram import Gram, ridge
from mirabelle.sparsity.layers import ScoredLayer, by_block


def magnitude(layer: ScoredLayer) -> torch.Tensor:
    """|w|; of a block the sum. Janowsky 1989; Han et al. 2015."""
    return by_block(layer.weight.abs(), layer.block)


def l2(layer: ScoredLayer) -> torch.Tensor:
    """The Euclidean norm of a block; of a single weight |w|."""
    return by_block(layer.weight.square(), layer.block).sqrt()


def taylor(layer: ScoredLayer) -> torch.Tensor:
    """The root mean square over batches of the sum of w * dL/dw over the unit: the first-order
    change of the loss without it. Molchanov et al. 2019, eq. 8.
    """
    assert layer.changes is not None
    return layer.changes.sqrt()


def _share(layer: ScoredLayer) -> torch.Tensor:
    """For a layer whose inputs are no rows: the root of the unit's share of the squared weights."""
    return (
        by_block(layer.weight.square(), layer.block) / layer.weight.square().sum().clamp_min(1e-300)
    ).sqrt()


def _matrix(gram: Gram) -> torch.Tensor:
    """(columns + 1, columns + 1): of a layer without groups."""
    return gram.matrix[0].cpu()


def _energy(layer: ScoredLayer, gram: torch.Tensor) -> torch.Tensor:
    """The energy of the layer's outputs about their mean, summed over the rows that were read."""
    about_mean = gram[:-1, :-1] - torch.outer(gram[-1, :-1], gram[-1, :-1]) / gram[-1, -1]
    return ((layer.weight @ about_mean) * layer.weight).sum().clamp_min(1e-30)


def wanda(layer: ScoredLayer) -> torch.Tensor:
    """|w| times the norm of the input that it reads, over the root of the output's energy, so that
    layers can be compared; of a block the root of the sum of squares.

    Sun et al. 2024 (Wanda), eq. 1, with one order for a whole layer. No labels are needed.
    """
    if layer.gram is None:
        return _share(layer)
    gram = _matrix(layer.gram)
    inputs = gram.diagonal()[:-1].clamp_min(0)
    return (by_block(layer.weight.square(), layer.block) * inputs / _energy(layer, gram)).sqrt()


def obs(layer: ScoredLayer) -> torch.Tensor:
    """The root of S_oo w² / (H⁻¹)_jj with H = A'A + r I: by how much the network's outputs change
    without the weight if all others of its row are fitted again.

    S says what depends on the layer's output o (`Gram.sensitivity`); where it is not known, one
    over the energy of the layer's outputs. For a block the sum over its rows, under the root.
    Hassibi & Stork 1993, eq. 5; as in SparseGPT (Frantar & Alistarh 2023) each row is a problem of
    its own with the same H. No labels are needed.
    """
    if layer.gram is None:
        return _share(layer)
    gram = _matrix(layer.gram)
    inverse = torch.linalg.inv(gram + ridge(gram, float(gram[-1, -1]))).diagonal()[:-1]
    known = layer.gram.sensitivity
    sensitivity = (
        1 / _energy(layer, gram) if known is None else known.cpu().diagonal().clamp_min(0)[:, None]
    )
    return (by_block(sensitivity * layer.weight.square(), layer.block) / inverse).sqrt()


def random(layer: ScoredLayer) -> torch.Tensor:
    """Uniform scores from torch's generator: the baseline that a criterion has to beat."""
    return torch.rand(by_block(layer.weight, layer.block).shape, dtype=torch.float64)


CRITERIA: dict[str, Callable[[ScoredLayer], torch.Tensor]] = {
    "magnitude": magnitude,
    "l1": magnitude,
    "l2": l2,
    "taylor": taylor,
    "wanda": wanda,
    "obs": obs,
    "random": random,
}
NEEDS_GRADIENTS = {"taylor"}
NEEDS_INPUTS = {"wanda", "obs"}
