"""Random networks with channels that are dead on purpose: their weights and biases are zero, and
everything behind them makes zero of zero. Whoever takes them away changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

SIZE = 6


@dataclass(frozen=True)
class Plan:
    """A network, written down so that hypothesis can shrink and print it. blocks: kind, width and a
    number that stands in forward. dead: the share of channels that are planted.
    """

    width: int
    blocks: tuple[tuple[str, int, int], ...]
    output: str
    dead: float
    seed: int


def _conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def _squeezed(s: Any, x: torch.Tensor) -> torch.Tensor:
    gate = torch.sigmoid(s["b"](torch.relu(s["a"](x.mean((2, 3))))))
    return x * gate[:, :, None, None]


def _gated(s: Any, x: torch.Tensor) -> torch.Tensor:
    a, b = s["a"](x).chunk(2, 1)
    return a * torch.sigmoid(b)


def _split(s: Any, x: torch.Tensor, n: int) -> torch.Tensor:
    a, b = x.split([n, x.shape[1] - n], 1)
    return torch.cat([torch.tanh(s["a"](b)), a], 1)


def _shuffled(x: torch.Tensor) -> torch.Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w) if c % 2 == 0 else x


def _window(x: torch.Tensor) -> torch.Tensor:
    """The batch is an integer of Python, as in Swin."""
    parts = x.unfold(2, 3, 3).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1], 9)
    count = int(parts.shape[0] / 4)
    return parts.view(count, 2, 2, -1, 3, 3).permute(0, 3, 1, 4, 2, 5).reshape(count, -1, 6, 6)


def _written(x: torch.Tensor, n: int) -> torch.Tensor:
    y = x.clone()
    y[:, :n] = 0.0
    return y


def _complex(s: Any, x: torch.Tensor) -> torch.Tensor:
    z = torch.complex(x, s["a"](x))
    return (z * z.conj()).real + z.imag


# kind -> layers for (channels, width), channels afterwards, and forward(layers, x, n) with a number
# n below the number of channels
BLOCKS: dict[str, tuple[Callable, Callable, Callable]] = {
    "conv": (lambda c, w: {"a": _conv(c, w)}, lambda c, w: w, lambda s, x, n: F.relu(s["a"](x))),
    "silu": (lambda c, w: {"a": _conv(c, w, 1)}, lambda c, w: w, lambda s, x, n: F.silu(s["a"](x))),
    "in place": (
        lambda c, w: {"a": _conv(c, w)},
        lambda c, w: w,
        lambda s, x, n: F.hardswish(s["a"](x), inplace=True),
    ),
    "residual": (
        lambda c, w: {"a": _conv(c, w), "b": _conv(w, c)},
        lambda c, w: c,
        lambda s, x, n: torch.relu(x + s["b"](torch.relu(s["a"](x)))),
    ),
    "dense": (
        lambda c, w: {"a": _conv(c, w)},
        lambda c, w: c + w,
        lambda s, x, n: torch.cat([x, torch.relu(s["a"](x))], 1),
    ),
    "depthwise": (
        lambda c, w: {"a": nn.Conv2d(c, c, 3, padding=1, groups=c)},
        lambda c, w: c,
        lambda s, x, n: torch.relu(s["a"](x)),
    ),
    "squeeze": (
        lambda c, w: {"a": nn.Linear(c, w), "b": nn.Linear(w, c)},
        lambda c, w: c,
        lambda s, x, n: _squeezed(s, x),
    ),
    "gate": (lambda c, w: {"a": _conv(c, 2 * w)}, lambda c, w: w, lambda s, x, n: _gated(s, x)),
    "larger": (
        lambda c, w: {"a": _conv(c, c)},
        lambda c, w: c,
        lambda s, x, n: torch.maximum(x, s["a"](x)),
    ),
    "where": (
        lambda c, w: {"a": _conv(c, c)},
        lambda c, w: c,
        lambda s, x, n: torch.where(x > 0.1, x, s["a"](x)),
    ),
    "complex": (lambda c, w: {"a": _conv(c, c)}, lambda c, w: c, lambda s, x, n: _complex(s, x)),
    "roll": (dict, None, lambda s, x, n: torch.roll(x, n, 1)),
    "roll space": (dict, None, lambda s, x, n: torch.roll(x, (1, 2), (2, 3))),
    "rotated": (dict, None, lambda s, x, n: torch.cat([x[:, n:], x[:, :n]], 1)),
    "halves": (
        dict,
        None,
        lambda s, x, n: torch.cat([x[:, x.shape[1] // 2 :], x[:, : x.shape[1] // 2]], 1),
    ),
    "every other": (dict, None, lambda s, x, n: torch.cat([x[:, ::2], x[:, 1::2]], 1)),
    "flip": (dict, None, lambda s, x, n: x.flip(1)),
    "picked": (dict, None, lambda s, x, n: x[:, torch.arange(x.shape[1]).flip(0)]),
    "narrow": (
        dict,
        None,
        lambda s, x, n: torch.cat([x.narrow(1, 0, n), x], 1).narrow(1, n, x.shape[1]),
    ),
    "select": (dict, None, lambda s, x, n: x * torch.sigmoid(x[:, n : n + 1])),
    "shuffle": (dict, None, lambda s, x, n: _shuffled(x)),
    "window": (dict, None, lambda s, x, n: _window(x)),
    "written": (dict, None, lambda s, x, n: _written(x, n)),
    "pool": (dict, None, lambda s, x, n: F.max_pool2d(x, 3, 1, 1)),
    "unbound": (dict, None, lambda s, x, n: torch.stack(x.unbind(1)[::-1], 1)),
    "split": (
        lambda c, w: {"a": _conv(c - _number(c, w), w)},
        lambda c, w: w + _number(c, w),
        lambda s, x, n: _split(s, x, _number(x.shape[1], s["a"].out_channels)),
    ),
}
OUTPUTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "scores": lambda y: y.mean((2, 3)),
    "classes": lambda y: y.argmax(1),
    "complex": lambda y: torch.complex(y, -y),
    "mask": lambda y: y > 0,
    "counts": lambda y: (y * 10).round().int(),
    "best": lambda y: y.max(1),
    "nested": lambda y: {"a": [y.mean((2, 3)), (y.argmax(1), 3)], "b": None},
    "sorted": lambda y: y.flatten(1).topk(3),
}


def _number(channels: int, seed: int) -> int:
    return 1 + seed % (channels - 1) if channels > 1 else 0


class Planted(nn.Module):
    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan
        self.stem = _conv(3, plan.width)
        channels, layers, self.numbers = plan.width, [], []
        for kind, width, number in plan.blocks:
            make, after, _ = BLOCKS[kind]
            layers.append(nn.ModuleDict(make() if after is None else make(channels, width)))
            self.numbers.append(_number(channels, number))
            channels = channels if after is None else after(channels, width)
        self.layers = nn.ModuleList(layers)
        self.head = _conv(channels, 4, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for (kind, *_), number, layers in zip(
            self.plan.blocks, self.numbers, self.layers, strict=True
        ):
            x = BLOCKS[kind][2](layers, x, number)
        return OUTPUTS[self.plan.output](self.head(x))


plans = st.builds(
    Plan,
    width=st.integers(2, 8),
    blocks=st.lists(
        st.tuples(st.sampled_from(sorted(BLOCKS)), st.integers(2, 6), st.integers(0, 9)),
        min_size=1,
        max_size=5,
    ).map(tuple),
    output=st.sampled_from(sorted(OUTPUTS)),
    dead=st.floats(0.2, 0.8),
    seed=st.integers(0, 999),
)


def build(plan: Plan) -> Planted:
    """In float64. What is dead has the same number in every layer, so that whole coupled channels
    die where layers meet.
    """
    torch.manual_seed(plan.seed)
    model = Planted(plan).double().eval()
    dead = torch.rand(64) < plan.dead
    with torch.no_grad():
        for name, layer in model.named_modules():
            if name != "head" and isinstance(layer, nn.Conv2d | nn.Linear):
                rows = dead[: len(layer.weight)]
                layer.weight[rows] = 0
                layer.bias[rows] = 0
    return model
