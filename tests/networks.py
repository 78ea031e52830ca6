"""Small networks for tests: hand-written ones, each with one thing that makes channels hard to
follow, and random ones (`random_networks`).

`NETWORKS[name]()` is (network, inputs). BatchNorm's statistics and scales are away from their
initial values, so that nothing cancels by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F


def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random BatchNorm statistics, scales and PReLU slopes."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low in (
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
                (module.weight, 0.5),
                (module.bias, -0.5),
            ):
                if tensor is not None:
                    tensor.data = torch.rand(tensor.shape, generator=generator).to(tensor) + low
        elif isinstance(module, nn.PReLU):
            module.weight.data = torch.rand(module.weight.shape, generator=generator).to(
                module.weight
            )
    return model


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options),
        nn.BatchNorm2d(outputs),
    )


class Head(nn.Module):
    """Average pool and a linear layer."""

    def __init__(self, inputs: int, classes: int = 3):
        super().__init__()
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


class Net(nn.Module):
    """A network from its layers and a forward written as a function (self, *inputs)."""

    def __init__(self, forward: Callable, **layers: nn.Module):
        super().__init__()
        self._forward = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs):
        return self._forward(self, *inputs)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = (
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.shortcut = None
        if stride != 1 or inputs != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(
            self.bn3(self.conv3(y)) + (x if self.shortcut is None else self.shortcut(x))
        )


class BottleneckNet(nn.Module):
    """ResNet-50 in small: bottlenecks (He et al. 2016, figure 5), four stages."""

    def __init__(self, width: int = 8, blocks: tuple[int, ...] = (2, 2, 3, 2)):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        inputs, stages = width, []
        for stage, count in enumerate(blocks):
            for block in range(count):
                stages.append(Bottleneck(inputs, width * 2**stage, 2 if stage and not block else 1))
                inputs = 4 * width * 2**stage
        self.stages, self.head = nn.Sequential(*stages), Head(inputs, 10)

    def forward(self, x):
        return self.head(self.stages(self.stem(x)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


def image(n: int = 2, channels: int = 3, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


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


# --- random networks
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A random network, written down so that hypothesis can shrink and print it."""

    width: int
    blocks: tuple[tuple[str, int], ...]
    head: str
    seed: int


class Random(nn.Module):
    """A stem, the blocks of the plan, a head."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan
        self.stem = conv_bn(3, plan.width)
        channels, size, layers = plan.width, 8, []
        for kind, width in plan.blocks:
            if kind == "pool" and size < 4:
                kind = "conv"
            layer, channels, size = self._block(kind, channels, width, size)
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        self.fc = nn.Linear(channels * (size * size if plan.head == "flatten" else 1), 3)
        self.second = nn.Conv2d(channels, 2, 1) if plan.head == "two" else None

    @staticmethod
    def _block(kind: str, c: int, width: int, size: int) -> tuple[nn.Module, int, int]:
        match kind:
            case "conv":
                return nn.Sequential(conv_bn(c, width), nn.ReLU()), width, size
            case "pointwise":
                return nn.Sequential(nn.Conv2d(c, width, 1), nn.SiLU()), width, size
            case "residual":
                return nn.ModuleDict({"a": conv_bn(c, width), "b": conv_bn(width, c)}), c, size
            case "bottleneck":
                return (
                    nn.ModuleDict(
                        {
                            "a": conv_bn(c, width, 1),
                            "b": conv_bn(width, 2 * width),
                            "s": conv_bn(c, 2 * width, 1),
                        }
                    ),
                    2 * width,
                    size,
                )
            case "dense":
                return nn.ModuleDict({"d": conv_bn(c, width)}), c + width, size
            case "depthwise":
                return (
                    nn.Sequential(conv_bn(c, c * (1 + width % 2), groups=c), nn.Hardswish()),
                    c * (1 + width % 2),
                    size,
                )
            case "grouped":
                groups = next(g for g in (4, 3, 2, 1) if c % g == 0)
                return (
                    nn.Sequential(
                        conv_bn(c, groups * width, groups=groups), nn.PReLU(groups * width)
                    ),
                    groups * width,
                    size,
                )
            case "se":
                return SqueezeExcite(c, max(2, width // 2)), c, size
            case "chunk":
                return nn.ModuleDict({"x": conv_bn(c, 2 * width)}), width, size
            case "pool":
                return nn.Sequential(nn.MaxPool2d(2), nn.PReLU(c)), c, size // 2
            case "updown":
                return (
                    nn.Sequential(
                        nn.ConvTranspose2d(c, width, 2, 2), nn.Sigmoid(), nn.AvgPool2d(2)
                    ),
                    width,
                    size,
                )
            case "shared":
                return nn.ModuleDict({"t": nn.Conv2d(c, c, 3, padding=1)}), c, size
        raise ValueError(kind)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for layer in self.layers:
            if not isinstance(layer, nn.ModuleDict):
                x = layer(x)
            elif "s" in layer:
                x = torch.relu(layer["s"](x) + layer["b"](torch.relu(layer["a"](x))))
            elif "b" in layer:
                x = torch.relu(x + layer["b"](torch.relu(layer["a"](x))))
            elif "d" in layer:
                x = torch.cat([x, torch.relu(layer["d"](x))], 1)
            elif "x" in layer:
                a, b = layer["x"](x).chunk(2, 1)
                x = a * torch.sigmoid(b)
            else:
                x = layer["t"](torch.tanh(layer["t"](x)))
        y = self.fc(x.flatten(1) if self.plan.head == "flatten" else x.mean((2, 3)))
        return y if self.second is None else (y, self.second(x))


BLOCKS = [
    "conv",
    "pointwise",
    "residual",
    "bottleneck",
    "dense",
    "depthwise",
    "grouped",
    "se",
    "chunk",
    "pool",
    "updown",
    "shared",
]

plans = st.builds(
    Plan,
    width=st.integers(2, 9),
    blocks=st.lists(
        st.tuples(st.sampled_from(BLOCKS), st.integers(2, 7)), min_size=1, max_size=6
    ).map(tuple),
    head=st.sampled_from(["mean", "flatten", "two"]),
    seed=st.integers(0, 99),
)


def build(plan: Plan) -> Random:
    torch.manual_seed(plan.seed)
    return stir(Random(plan), plan.seed)


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any]:
    """A network of `NETWORKS` and its inputs, always the same."""
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    return stir(model).to(dtype), tuple(t.to(dtype) for t in x) if isinstance(x, tuple) else x.to(
        dtype
    )
