"""Pictures for where there are none: dead leaves, scaled to what the network was trained on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mirabelle.base.checks import clone
from mirabelle.base.data import Batch, device_of
from mirabelle.sources.preprocessing import Preprocessing

LEAVES = 60  # in one picture: few places are left bare
SAMPLES = 256  # in all
PIXELS = 1 << 21  # of one batch, all channels: 16 MB beside what the network itself takes
COLOR = 0.25  # of a leaf's own, beside its gray
TEXTURE = 0.1
DISCS = 0.5  # of the leaves; the others are boxes
BY_CHANCE = 4.0  # standard errors: neighbors that correlate more were not drawn one by one
KNOWN = "as the network is known to take them"


class Scale(NamedTuple):
    """What networks are fed: the mean and the deviation of pictures, and what black and white are
    in photographs of that scale.
    """

    mean: float
    deviation: float
    low: float
    high: float


STANDARD = "mean 0 and deviation 1"
SCALES = {
    STANDARD: Scale(0.0, 1.0, -2.12, 2.64),  # from ImageNet's black of red to its white of blue
    "-1 to 1": Scale(0.0, 0.5, -1.0, 1.0),
    "0 to 1": Scale(0.5, 0.25, 0.0, 1.0),
    "0 to 255": Scale(127.5, 64.0, 0.0, 255.0),
}


def dead_leaves(shape: Sequence[int], generator: np.random.Generator) -> torch.Tensor:
    """Pictures of random shapes that cover one another, as leaves on the ground.

    Edges, flat regions and sizes of them are distributed as in photographs: Lee, Mumford & Huang
    2001, "Occlusion models for natural images", section 3. Networks learn from such pictures nearly
    as from real ones: Baradad et al. 2021, "Learning to See by Looking at Noise", section 3.2.

    - shape: (pictures, channels, height, width).
    - generator: where all numbers are drawn from.

    Returns float32 of that shape; each picture has mean 0, all together standard deviation 1.

    Example:

        >>> pictures = dead_leaves((2, 3, 32, 32), np.random.default_rng(0))
        >>> pictures.shape, round(float(pictures.std()), 2)
        (torch.Size([2, 3, 32, 32]), 1.0)
    """
    n, channels, height, width = shape
    # Of each leaf: size, place, proportions, disc or box, gray and roughness.
    drawn = generator.random((n, LEAVES, 7))
    colors = COLOR * generator.standard_normal((n, LEAVES, channels, 1, 1), np.float32)
    pictures = np.tile(generator.random((n, channels, 1, 1), np.float32), (1, 1, height, width))
    for picture, leaves, own in zip(pictures, drawn.tolist(), colors, strict=True):
        for (size, y, x, proportion, kind, gray, rough), color in zip(leaves, own, strict=True):
            y, x = y * height, x * width
            radius = 1 + size**3 * (max(height, width) / 2 - 1)
            across = radius if kind < DISCS else 2 * proportion * radius
            rows = np.arange(int(max(0, y - radius)), min(height, math.ceil(y + radius)))
            columns = np.arange(int(max(0, x - across)), min(width, math.ceil(x + across)))
            place = picture[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            leaf = generator.standard_normal((len(rows), len(columns)), np.float32)
            leaf = leaf * np.float32(TEXTURE * rough) + np.float32(gray)
            if kind < DISCS:
                inside = np.square(rows - y)[:, None] + np.square(columns - x) < radius * radius
                np.copyto(place, leaf + color, where=inside)
            else:
                place[:] = leaf + color
    pictures -= pictures.mean((1, 2, 3), keepdims=True)
    return torch.from_numpy(pictures / max(float(pictures.std()), 1e-6))


def pictures_for(
    network: nn.Module,
    example: Batch,
    seed: int = 0,
    bounded: bool = False,
    how: Preprocessing | None = None,
) -> tuple[list[Batch], str]:
    """Batches for a network that takes one picture, and the name of their scale (`SCALES`); none
    for networks that take anything else.

    The scale is the one under which BatchNorm sees what it has learned to expect. Without BatchNorm
    it is that of `how`, else that of the example.

    - network: stays as it is.
    - example: of inputs, which say size and type.
    - seed: of the pictures; no other generator is touched.
    - bounded: whether they end where real pictures do, with one black and one white corner in each
      batch: as `how` says, or else, if the example is a picture, whose neighbors are alike, at the
      ends of the scale that suits the first BatchNorm.
    - how: what is known of the network's preprocessing; a guess counts for nothing.
    """
    if len(example.tensors) != 1 or not is_picture(example.tensors[0]):
        return [], ""
    given = example.tensors[0]
    generator = np.random.default_rng(seed)
    each = min(SAMPLES, max(1, PIXELS // math.prod(given.shape[1:])))
    sizes = [min(each, SAMPLES - i) for i in range(0, SAMPLES, each)]
    drawn = [dead_leaves((n, *given.shape[1:]), generator).to(given.dtype) for n in sizes]

    def scaled(leaves: torch.Tensor, mean: Any, deviation: Any) -> Batch:
        return example.map(lambda _: leaves * deviation + mean)._replace(target=None)

    first = drawn[0][:32]
    surprises = _surprises(network, [scaled(first, s.mean, s.deviation) for s in SCALES.values()])
    if surprises is None:
        return [], ""
    known = _black_and_white(how) if how is not None and not how.guessed else None
    chosen = _least([statistics.fmean(s) if s else math.nan for s in surprises])
    if known is not None and chosen is None:
        low, high = known  # of pictures whose deviation is a quarter of what they reach
        chosen, mean, deviation = KNOWN, (low + high) / 2, (high - low) / 4
    else:
        chosen = chosen or _of_range(given)
        mean, deviation, *_ = SCALES[chosen]
    pictures = [scaled(leaves, mean, deviation) for leaves in drawn]
    nearest = _least([s[0] if s else math.nan for s in surprises]) or _of_range(given)
    ends = known or _ends(SCALES[nearest], given)
    if bounded and ends is not None:
        black, white = ends
        pictures = [b.map(lambda t: _filling(t, black, white)) for b in pictures]
    return pictures, chosen


def _least(surprises: Sequence[float]) -> str | None:
    """The scale that surprises least; None where no BatchNorm tells."""
    known = {s: v for s, v in zip(SCALES, surprises, strict=True) if math.isfinite(v)}
    return min(known, key=known.__getitem__) if known else None


def _black_and_white(how: Preprocessing) -> tuple[torch.Tensor, torch.Tensor]:
    """What networks take of black and of white, (C, 1, 1)."""
    black, white = (np.full((1, 1, how.channels), v, np.uint8) for v in (0, 255))
    return torch.from_numpy(how.normalized(black)), torch.from_numpy(how.normalized(white))


def _ends(scale: Scale, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Those of a scale, which an example that is a picture widens. Drawn numbers say nothing, and
    what is no photograph may reach far beyond its scale: examples/shapes.py three times as far.
    """
    if not _neighbors_alike(given):
        return None
    low, high = torch.tensor(scale.low), torch.tensor(scale.high)
    return low.minimum(given.min()), high.maximum(given.max())


def _filling(pictures: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Clipped to [low, high], with a corner of the first picture at either end."""
    low, high = (v.to(pictures).expand(pictures.shape[1], 1, 1) for v in (low, high))
    pictures = pictures.clamp(low, high)
    pictures[0, :, 0, 0], pictures[0, :, -1, -1] = low.flatten(), high.flatten()
    return pictures


def is_picture(tensor: torch.Tensor) -> bool:
    """Whether this is a batch of pictures: floating, of four dimensions and at least 8 pixels."""
    return tensor.is_floating_point() and tensor.ndim == 4 and min(tensor.shape[2:]) >= 8


def _neighbors_alike(given: torch.Tensor) -> bool:
    """Whether pixels beside one another correlate, as in pictures, more than by chance."""
    left, right = given[..., :-1].double().flatten(1), given[..., 1:].double().flatten(1)
    left, right = (x - x.mean(1, keepdim=True) for x in (left, right))
    by_chance = BY_CHANCE / left.numel() ** 0.5
    return bool((left * right).sum() > by_chance * left.norm() * right.norm())


def _of_range(given: torch.Tensor) -> str:
    """The scale of an example, as far as its numbers tell."""
    low, high = float(given.min()), float(given.max())
    if low < 0 or low == high:
        return STANDARD
    return "0 to 1" if high <= 1 else "0 to 255"


@torch.no_grad()
def _surprises(network: nn.Module, inputs: Sequence[Batch]) -> list[list[float]] | None:
    """How far what each BatchNorm is given lies from its running statistics: the mean Kullback-
    Leibler divergence of two normal distributions, over channels, for each batch and BatchNorm in
    the order of execution. None where the network does not run: some are written for one sample.
    """
    copied = clone(network).eval()
    found: list[float] = []

    def seen(norm: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].float().transpose(0, 1).flatten(1)
        mean, variance = x.mean(1), x.var(1) + norm.eps
        expected, usual = norm.running_mean.float(), norm.running_var.float() + norm.eps
        ratio = variance / usual
        divergence = ratio + (mean - expected).square() / usual - 1 - ratio.log()
        found.append(float(divergence.mean()) / 2)

    for module in copied.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.register_forward_pre_hook(seen)
    surprises = []
    for batch in inputs:
        found.clear()
        try:
            batch.to(device_of(copied)).run(copied)
        except Exception:
            return None
        surprises.append(list(found))
    return surprises
