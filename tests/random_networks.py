"""Networks drawn at random, for properties that must hold of any."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import nn

from tests.modules import SqueezeExcite, conv_bn, stir


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
