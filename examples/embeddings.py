"""Embeddings, as in face recognition: MobileFaceNet, a larger teacher, and verification of pairs
from classes that neither saw in training.

Faces are not to be had here, so the identities are the classes of Fashion-MNIST: seven to train on,
three that only verification sees (open set). `python -m benchmarks.distillation --only embeddings`
trains and judges them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from examples.fashion import Block

UNSEEN = (2, 7, 8)  # pullover, sneaker, bag


def _conv(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    groups: int = 1,
    linear: bool = False,
) -> nn.Sequential:
    """Convolution, BatchNorm and, unless `linear`, PReLU with a slope for each channel. A kernel
    that is a tuple covers the whole image.
    """
    padding = 0 if isinstance(kernel, tuple) else kernel // 2
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([] if linear else [nn.PReLU(outputs)]))


class Bottleneck(nn.Module):
    """Inverted residual: 1x1 to `inner` channels, depthwise 3x3, linear 1x1. MobileNetV2, with
    PReLU.
    """

    def __init__(self, inputs: int, outputs: int, inner: int, stride: int):
        super().__init__()
        self.layers = nn.Sequential(
            _conv(inputs, inner, 1),
            _conv(inner, inner, 3, stride, inner),
            _conv(inner, outputs, 1, linear=True),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileFaceNet(nn.Module):
    """Images (N, channels, size, size) -> embeddings (N, embedding). Chen et al. 2018, table 1.

    The paper's network has size 112, three channels, width 1 and 0.99 M parameters without a
    classifier; its global depthwise convolution covers the last 7 x 7 positions, here size / 16
    rounded up. width scales all channels but the embedding's.
    """

    # expansion, channels, repetitions, stride of the first
    STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))

    def __init__(
        self, size: int = 112, channels: int = 3, embedding: int = 128, width: float = 1.0
    ):
        super().__init__()

        def scaled(count: int) -> int:
            return max(8, int(count * width) // 8 * 8)

        first = scaled(64)
        self.stem = nn.Sequential(_conv(channels, first, 3, 2), _conv(first, first, 3, 1, first))
        inputs, blocks = first, []
        for expansion, outputs, repetitions, stride in self.STAGES:
            for i in range(repetitions):
                blocks.append(
                    Bottleneck(inputs, scaled(outputs), expansion * inputs, stride if i == 0 else 1)
                )
                inputs = scaled(outputs)
        self.blocks = nn.Sequential(*blocks)
        last = -(-size // 16)
        self.head = nn.Sequential(
            _conv(inputs, scaled(512), 1),
            _conv(scaled(512), scaled(512), (last, last), groups=scaled(512), linear=True),
        )
        self.embedding = nn.Sequential(
            nn.Conv2d(scaled(512), embedding, 1, bias=False), nn.BatchNorm2d(embedding)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embedding(self.head(self.blocks(self.stem(x)))).flatten(1)


class LargeEmbedder(nn.Module):
    """The teacher: a residual network for 28 x 28 images -> embeddings (N, embedding)."""

    def __init__(
        self, width: int = 32, embedding: int = 128, blocks: tuple[int, int, int] = (1, 2, 2)
    ):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        layers, inputs = [], width
        for stage, count in enumerate(blocks):
            for i in range(count):
                layers.append(Block(inputs, width * 2**stage, 2 if stage and i == 0 else 1))
                inputs = width * 2**stage
        self.blocks = nn.Sequential(*layers)
        self.embedding = nn.Linear(inputs, embedding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embedding(self.blocks(self.stem(x)).mean((2, 3)))


class ArcFace(nn.Module):
    """An embedding network with its classifier, for training on labels: scores are `scale` times
    cosines, the target's angle enlarged by `margin`.

    Gives the cosines with the class centers, (N, classes), which `arcface_loss` reads. Deng et al.
    2019, eq. 3.
    """

    def __init__(self, network: nn.Module, classes: int, embedding: int = 128):
        super().__init__()
        self.network = network
        self.centers = nn.Parameter(
            torch.randn(classes, embedding, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, *args: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.network(*args, **inputs)) @ F.normalize(self.centers).T


def arcface_loss(
    cosines: torch.Tensor, target: torch.Tensor, scale: float = 16.0, margin: float = 0.2
) -> torch.Tensor:
    """The cross-entropy after the target's angle has grown by `margin` (radians); scale and margin
    are smaller than for faces, as the classes are few.
    """
    angle = torch.acos(cosines.float().clamp(-1 + 1e-6, 1 - 1e-6))
    target = F.one_hot(target, cosines.shape[1]).bool()
    return F.cross_entropy(
        scale
        * torch.where(target, torch.cos((angle + margin).clamp_max(torch.pi)), cosines.float()),
        target.int().argmax(1),
    )


class Verification(NamedTuple):
    """tar: share of equal pairs that are accepted at each false acceptance rate of `far`. roc:
    (far, tar) at many thresholds. auc: the area under it.
    """

    far: tuple[float, ...]
    tar: tuple[float, ...]
    auc: float
    roc: np.ndarray
    pairs: int


def verify_pairs(
    embeddings: torch.Tensor, labels: torch.Tensor, far: tuple[float, ...] = (0.001, 0.01, 0.1)
) -> Verification:
    """Compares every two of the samples by the cosine of their embeddings (N, D): are they of the
    same class (N,)?

    The threshold for a false acceptance rate is the largest share of unequal pairs at or above it
    that is at most that rate.
    """
    z = F.normalize(embeddings.float())
    first, second = torch.triu_indices(len(z), len(z), 1)
    scores = (z @ z.T)[first, second].numpy()
    equal = (labels[first] == labels[second]).numpy()
    same, other = np.sort(scores[equal]), np.sort(scores[~equal])
    if not len(same) or not len(other):
        raise ValueError("verification needs pairs of equal and of unequal classes")

    def accepted(rate: float) -> float:
        limit = other[len(other) - 1 - int(rate * len(other))]
        return float((same > limit).mean())

    rates = np.concatenate([[0], np.logspace(-5, 0, 101)])
    curve = np.array([(r, accepted(r) if r < 1 else 1.0) for r in rates])
    # The share of (equal, unequal) pairs of pairs that are in the right order.
    auc = float(np.searchsorted(other, same).mean() / len(other))
    return Verification(far, tuple(accepted(r) for r in far), auc, curve, len(scores))
