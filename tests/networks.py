"""Small networks for tests, written by hand: each has one thing that makes channels hard to follow.

`NETWORKS[name]()` is (network, inputs). BatchNorm's statistics and scales are away from their
initial values, so that nothing cancels by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.modules import BottleneckNet, Head, Net, SqueezeExcite, conv_bn, image, shuffle, stir


def plain() -> Net:
    return Net(
        lambda s, x: s.head(torch.relu(s.b(torch.relu(s.a(x))))),
        a=conv_bn(3, 8),
        b=conv_bn(8, 12),
        head=Head(12),
    )


def _residual(s, x):
    y = torch.relu(s.a(x))
    return s.head(torch.relu(y + s.c(torch.relu(s.b(y)))))


def _dense(s, x):
    a = torch.relu(s.a(x))
    b = torch.cat([a, torch.relu(s.b(a))], 1)
    return s.head(torch.cat([b, s.c(b)], 1))


def _zero_padded_shortcut(s, x):
    y = s.a(x)
    return s.head(torch.relu(s.b(y)) + F.pad(y, (0, 0, 0, 0, 2, 2)))


def _in_place(s, x):
    y = s.a(x)
    y += s.b(x)
    return s.head(F.relu(y, inplace=True) * 2)


def _unet(s, x):
    skip = torch.relu(s.a(x))
    y = F.max_pool2d(skip, 2)
    y = s.up(torch.relu(s.b(y)))
    z = F.interpolate(torch.relu(s.c(F.avg_pool2d(y, 2))), scale_factor=2.0, mode="bilinear")
    return s.out(torch.cat([skip, y, z], 1))


def _shared(s, x):
    y = torch.relu(s.a(x))
    return s.head(torch.relu(s.c(torch.relu(s.c(y)) + y)))


def _shared_siblings(s, x):
    # The second use feeds another reader than the first.
    return s.left(s.c(x).mean((2, 3))) + s.right(torch.tanh(s.c(x.flip(3))).mean((2, 3)))


def _tied() -> Net:
    net = Net(
        lambda s, x: s.left(s.a(x)) + s.right(torch.relu(s.b(x))),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(3, 8, 3),
        left=Head(8),
        right=Head(8),
    )
    net.b.weight = net.a.weight
    return net


class Bare(nn.Module):
    """Parameters and a buffer used without a layer: a scale, a positional table, a computed
    constant.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            Head(8),
        )
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.table = nn.Parameter(torch.randn(1, 8, 8, 8))
        self.register_buffer("offset", torch.randn(1, 8, 1, 1))

    def forward(self, x):
        y = torch.relu(self.a(x)) * self.scale + self.table
        return self.head(torch.relu(self.b(y) + self.offset))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "plain": lambda: (plain(), image()),
    "residual": lambda: (
        Net(_residual, a=conv_bn(3, 8), b=conv_bn(8, 6), c=conv_bn(6, 8), head=Head(8)),
        image(),
    ),
    "dense": lambda: (
        Net(_dense, a=conv_bn(3, 6), b=conv_bn(6, 5), c=conv_bn(11, 4), head=Head(15)),
        image(),
    ),
    "depthwise": lambda: (
        Net(
            lambda s, x: s.head(s.c(torch.relu(s.d(s.a(x))))),
            a=conv_bn(3, 8),
            d=conv_bn(8, 8, groups=8),
            c=conv_bn(8, 6),
            head=Head(6),
        ),
        image(),
    ),
    "depthwise multiplier": lambda: (
        Net(
            lambda s, x: s.head(torch.relu(s.d(s.a(x)))),
            a=conv_bn(3, 6),
            d=conv_bn(6, 18, groups=6),
            head=Head(18),
        ),
        image(),
    ),
    "depthwise transposed": lambda: (
        Net(
            lambda s, x: s.head(s.d(s.a(x))),
            a=conv_bn(3, 6),
            d=nn.ConvTranspose2d(6, 12, 2, 2, groups=6),
            head=Head(12),
        ),
        image(),
    ),
    "grouped": lambda: (
        Net(
            lambda s, x: s.head(torch.relu(s.g(torch.relu(s.a(x))))),
            a=conv_bn(3, 8),
            g=conv_bn(8, 12, groups=4),
            head=Head(12),
        ),
        image(),
    ),
    "grouped transposed": lambda: (
        Net(
            lambda s, x: s.head(s.g(s.a(x))),
            a=conv_bn(3, 8),
            g=nn.ConvTranspose2d(8, 12, 2, 2, groups=2),
            head=Head(12),
        ),
        image(),
    ),
    "shuffle after grouped": lambda: (
        Net(
            lambda s, x: s.head(s.h(shuffle(torch.relu(s.g(s.a(x))), 2))),
            a=conv_bn(3, 8),
            g=conv_bn(8, 12, groups=2),
            h=conv_bn(12, 8, groups=2),
            head=Head(8),
        ),
        image(),
    ),
    "squeeze-excite": lambda: (
        Net(
            lambda s, x: s.head(s.se(torch.relu(s.a(x)))),
            a=conv_bn(3, 8),
            se=SqueezeExcite(8, 4),
            head=Head(8),
        ),
        image(),
    ),
    "bottlenecks": lambda: (BottleneckNet(4, (1, 2)), image(size=16)),
    "flatten": lambda: (
        Net(
            lambda s, x: s.fc(F.max_pool2d(s.a(x), 2).flatten(1)),
            a=conv_bn(3, 6),
            fc=nn.Linear(6 * 16, 3),
        ),
        image(),
    ),
    "unflatten": lambda: (
        Net(
            lambda s, x: s.head(s.b(torch.relu(s.a(x)).flatten(2).unflatten(2, (8, 8)))),
            a=conv_bn(3, 6),
            b=nn.Conv2d(6, 4, 3),
            head=Head(4),
        ),
        image(),
    ),
    "chunk": lambda: (
        Net(
            lambda s, x: s.head(torch.mul(*torch.tanh(s.a(x)).chunk(2, 1))),
            a=conv_bn(3, 12),
            head=Head(6),
        ),
        image(),
    ),
    "chunk, one part changed": lambda: (
        Net(
            lambda s, x: s.head(
                torch.cat([torch.tanh(s.a(x).chunk(2, 1)[0]), s.a(x).chunk(2, 1)[1]], 1)
            ),
            a=conv_bn(3, 12),
            head=Head(12),
        ),
        image(),
    ),
    "split by size": lambda: (
        Net(
            lambda s, x: s.head(
                torch.cat([t * i for i, t in enumerate(s.b(s.a(x)).split(5, 1))], 1)
            ),
            a=conv_bn(3, 4),
            b=conv_bn(4, 15),
            head=Head(15),
        ),
        image(),
    ),
    "u-net": lambda: (
        Net(
            _unet,
            a=conv_bn(3, 6),
            b=conv_bn(6, 8),
            up=nn.ConvTranspose2d(8, 5, 2, 2),
            c=conv_bn(5, 4),
            out=nn.Conv2d(15, 2, 1),
        ),
        image(),
    ),
    "prelu": lambda: (
        Net(lambda s, x: s.head(s.p(s.a(x))), a=conv_bn(3, 8), p=nn.PReLU(8), head=Head(8)),
        image(),
    ),
    "prelu, one slope": lambda: (
        Net(lambda s, x: s.head(s.p(s.a(x))), a=conv_bn(3, 8), p=nn.PReLU(), head=Head(8)),
        image(),
    ),
    "two inputs": lambda: (
        Net(
            lambda s, x, y: s.head(torch.cat([s.a(x) + s.b(y), s.b(y)], 1)),
            a=conv_bn(3, 6),
            b=conv_bn(1, 6),
            head=Head(12),
        ),
        (image(), image(channels=1)),
    ),
    "two outputs": lambda: (
        Net(lambda s, x: (s.h(s.a(x)), {"y": s.g(s.a(x))}), a=conv_bn(3, 8), h=Head(8), g=Head(8)),
        image(),
    ),
    "an intermediate is an output": lambda: (
        Net(lambda s, x: [s.h(s.b(s.a(x))), s.a(x)], a=conv_bn(3, 8), b=conv_bn(8, 6), h=Head(6)),
        image(),
    ),
    "shared convolution": lambda: (
        Net(_shared, a=conv_bn(3, 6), c=nn.Conv2d(6, 6, 3, padding=1), head=Head(6)),
        image(),
    ),
    "shared by siblings": lambda: (
        Net(_shared_siblings, c=nn.Conv2d(3, 8, 3), left=nn.Linear(8, 3), right=nn.Linear(8, 3)),
        image(),
    ),
    "tied weights": lambda: (_tied(), image()),
    "bare parameters": lambda: (Bare(), image()),
    "in place": lambda: (Net(_in_place, a=conv_bn(3, 8), b=conv_bn(3, 8), head=Head(8)), image()),
    "zero-padded shortcut": lambda: (
        Net(_zero_padded_shortcut, a=conv_bn(3, 6), b=conv_bn(6, 10), head=Head(10)),
        image(),
    ),
    "plus its own mean": lambda: (
        Net(
            lambda s, x: s.head((lambda y: y + y.mean((2, 3), keepdim=True))(s.a(x))),
            a=conv_bn(3, 8),
            head=Head(8),
        ),
        image(),
    ),
    "concatenated with itself": lambda: (
        Net(
            lambda s, x: s.head((lambda y: torch.cat([y, -y], 1))(s.a(x))),
            a=conv_bn(3, 8),
            head=Head(16),
        ),
        image(),
    ),
    "flipped channels": lambda: (
        Net(lambda s, x: s.head(torch.relu(s.a(x)).flip(1)), a=conv_bn(3, 8), head=Head(8)),
        image(),
    ),
    "dropout": lambda: (
        Net(lambda s, x: s.head(s.d(s.a(x))), a=conv_bn(3, 8), d=nn.Dropout2d(0.5), head=Head(8)),
        image(),
    ),
    "spatial attention": lambda: (
        Net(
            lambda s, x: s.head((lambda y: y * torch.sigmoid(s.m(y)))(s.a(x))),
            a=conv_bn(3, 8),
            m=nn.Conv2d(8, 1, 1),
            head=Head(8),
        ),
        image(),
    ),
    "reflected padding": lambda: (
        Net(
            lambda s, x: s.head(s.b(s.a(x))),
            a=conv_bn(3, 8),
            b=nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
            head=Head(6),
        ),
        image(),
    ),
    "1d": lambda: (
        nn.Sequential(
            nn.Conv1d(3, 8, 3),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(8, 6, 3),
            nn.Flatten(),
            nn.Linear(6 * 5, 2),
        ),
        image()[:, :, 0].repeat(1, 1, 2),
    ),
    "3d": lambda: (
        nn.Sequential(
            nn.Conv3d(1, 4, 3),
            nn.BatchNorm3d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        ),
        image()[:, None].repeat(1, 1, 2, 1, 1),
    ),
    "linear": lambda: (
        nn.Sequential(
            nn.Linear(5, 8),
            nn.BatchNorm1d(8),
            nn.GELU(),
            nn.Linear(8, 6),
            nn.Hardswish(),
            nn.Linear(6, 2),
        ),
        torch.randn(4, 5),
    ),
    "one sample": lambda: (plain(), image(1)),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any]:
    """A network of `NETWORKS` and its inputs, always the same."""
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    return stir(model).to(dtype), tuple(t.to(dtype) for t in x) if isinstance(x, tuple) else x.to(
        dtype
    )
