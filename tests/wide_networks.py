"""Small networks beyond plain convolutional ones: attention in its forms, normalizations over
channels, shuffles, slices, computed weights.

`WIDE[name]()` is (network, inputs). Those in `GRAPH` have sizes written into their forward, so that
only their graph form can be cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.modules import Head, Net, conv_bn, image, shuffle


def after(function: Callable) -> Net:
    """A network in which `function` comes between two convolutions, with a prunable convolution
    before both.
    """
    return Net(
        lambda s, x: s.head(s.b(function(s.a(torch.relu(s.z(x)))))),
        z=conv_bn(3, 5),
        a=conv_bn(5, 8),
        b=nn.LazyConv2d(6, 1),
        head=Head(6),
    )


def between(function: Callable) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        model = after(function)
        model.eval()(image())  # the lazy layer
        return model, image()

    return make


class Attention(nn.Module):
    """kind: how queries, keys and values are made and multiplied. `h` heads of `d` channels over
    (B, N, C) tokens.
    """

    def __init__(self, kind: str, channels: int = 12, h: int = 4, d: int = 3, kv: int = 4):
        super().__init__()
        self.kind, self.h, self.d, self.kv = kind, h, d, kv
        if kind == "fused":
            self.qkv = nn.Linear(channels, 3 * h * d)
        else:
            self.q, self.k, self.v = (
                nn.Linear(channels, h * d),
                nn.Linear(channels, kv * d),
                nn.Linear(channels, kv * d),
            )
        if kind == "table":
            self.table = nn.Parameter(torch.randn(7, h))
            self.register_buffer("index", torch.arange(4)[:, None] - torch.arange(4)[None] + 3)
        if kind == "cosine":
            self.scale = nn.Parameter(torch.ones(h, 1, 1))
        self.out = nn.Linear(h * d, channels)

    def forward(self, x):
        n, t = x.shape[:2]
        if self.kind == "fused":
            q, k, v = self.qkv(x).reshape(n, t, 3, self.h, self.d).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (
                p(x).view(n, t, -1, self.d).transpose(1, 2) for p in (self.q, self.k, self.v)
            )
        if self.kind == "repeated":
            k, v = (
                y[:, :, None]
                .expand(n, self.kv, self.h // self.kv, t, self.d)
                .reshape(n, self.h, t, self.d)
                for y in (k, v)
            )
        if self.kind in ("table", "cosine"):
            if self.kind == "cosine":
                q, k = F.normalize(q, dim=-1) * self.scale, F.normalize(k, dim=-1)
            scores = q @ k.transpose(-2, -1) * self.d**-0.5
            if self.kind == "table":
                scores = scores + self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1)
            y = scores.softmax(-1) @ v
        elif self.kind == "linear":
            y = q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v)
        elif self.kind == "einsum":
            y = torch.einsum(
                "bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v
            )
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.kind == "grouped")
        return self.out(y.transpose(1, 2).reshape(n, t, -1))


class Transformer(nn.Module):
    """Patches, a class token, positions, a block and a head."""

    def __init__(
        self,
        attention: nn.Module,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        token: bool = False,
    ):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12)) if token else None
        self.positions = nn.Parameter(torch.randn(1, 4 + token, 12))
        self.norm1, self.attention, self.norm2 = norm(12), attention, norm(12)
        self.gamma = nn.Parameter(torch.rand(12))
        self.up, self.down = nn.Linear(12, 16), nn.Linear(16, 12)
        self.norm, self.head = norm(12), nn.Linear(12, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.positions
        y = (
            self.attention(self.norm1(x))
            if not isinstance(self.attention, nn.MultiheadAttention)
            else self.attention(*[self.norm1(x)] * 3)[0]
        )
        x = x + self.gamma * y
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm(x)[:, 0])


class Standardized(nn.Conv2d):
    """Qiao et al. 2019, weight standardization, as BatchNorm of the weights with a gain."""

    def __init__(self, *args: Any):
        super().__init__(*args, bias=False)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x):
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0
        ).reshape_as(self.weight)
        return F.conv2d(x, weight * self.gain, None, self.stride, self.padding)


class ConvNeXt(nn.Module):
    """A block of Liu et al. 2022 with the response normalization of its second version."""

    def __init__(self, channels: int = 8):
        super().__init__()
        self.a, self.d = (
            conv_bn(3, channels),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        )
        self.norm, self.up, self.down = (
            nn.LayerNorm(channels),
            nn.Linear(channels, 12),
            nn.Linear(12, channels),
        )
        self.gamma, self.beta = nn.Parameter(torch.rand(12)), nn.Parameter(torch.rand(12))
        self.head = Head(channels)

    def forward(self, x):
        x = self.a(x)
        y = F.gelu(self.up(self.norm(self.d(x).permute(0, 2, 3, 1))))
        size = y.norm(p=2, dim=(1, 2), keepdim=True)
        y = y + self.gamma * (y * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.beta
        return self.head(x + self.down(y).permute(0, 3, 1, 2))


class Selective(nn.Module):
    """Two branches weighed against one another, channel by channel. Li et al. 2019, selective
    kernels.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 8), conv_bn(8, 6), conv_bn(8, 6, 5)
        self.squeeze, self.excite, self.head = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 12, 1), Head(6)

    def forward(self, x):
        x = torch.relu(self.a(x))
        both = torch.stack([self.b(x), self.c(x)], 1)
        gate = self.excite(torch.relu(self.squeeze(both.sum(1).mean((2, 3), keepdim=True))))
        gate = gate.view(x.shape[0], 2, -1, 1, 1).softmax(1)
        return self.head((both * gate).sum(1))


class Words(nn.Module):
    """Looks up words, mixes them, and predicts them with the same table; two outputs."""

    def __init__(self):
        super().__init__()
        self.words, self.mix = nn.Embedding(9, 8), nn.Linear(8, 8)
        self.norm = nn.RMSNorm(8)

    def forward(self, x):
        y = self.norm(self.words(x))
        y = y + torch.relu(self.mix(y))
        return F.linear(y, self.words.weight), y.mean((1, 2))


class Recurrent(nn.Module):
    """A sequence through a layer between two others, in one call or step by step; read at its end,
    or from the last states. begins: the initial state, if not zeros, one for the whole batch, is
    learned.
    """

    def __init__(self, layer: nn.Module, width: int, last: bool = False, begins: bool = False):
        super().__init__()
        self.embed, self.layer, self.head, self.last = (
            nn.Linear(5, 6),
            layer,
            nn.Linear(width, 3),
            last,
        )
        if begins:
            self.begin = nn.Parameter(torch.randn(1, 1, layer.hidden_size))

    def forward(self, x):
        x = torch.relu(self.embed(x))
        if isinstance(self.layer, nn.RNNCellBase):
            state = None
            for t in range(x.shape[1]):
                state = self.layer(x[:, t], state)
            return self.head(state[0] if isinstance(state, tuple) else state)
        if not self.layer.batch_first:
            x = x.transpose(0, 1)
        states = (self.begin.expand(-1, x.shape[0], -1),) if hasattr(self, "begin") else ()
        every, last = self.layer(x, *states)
        if self.last:
            return self.head(
                (last[0] if isinstance(last, tuple) else last).transpose(0, 1).flatten(1)
            )
        return self.head(every).mean(1 if self.layer.batch_first else 0)


def recurrent(
    kind: Callable, width: int = 8, last: bool = False, begins: bool = False, **options: Any
) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (Recurrent(kind(6, 8, **options), width, last, begins), image(size=5)[:, 0])


def tokens(kind: str, **options: Any) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (Transformer(Attention(kind, **options)), image(2, size=8))


def _spatial_attention(s, x):
    y = s.a(x)
    return s.head(y * torch.sigmoid(s.g(torch.cat([y.mean(1, True), y.amax(1, True)], 1))))


def merged(x: torch.Tensor) -> torch.Tensor:
    """Patch merging: Liu et al. 2021 (Swin), section 3.1."""
    return torch.cat([x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)], 1)


WIDE: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    **{
        f"attention: {kind}": tokens(kind)
        for kind in ("fused", "separate", "table", "cosine", "linear", "einsum")
    },
    "attention: grouped": tokens("grouped", kv=2),
    "attention: repeated": tokens("repeated", kv=2),
    "attention: one head": tokens("separate", h=1, d=6, kv=1),
    "attention: module": lambda: (
        Transformer(nn.MultiheadAttention(12, 4, batch_first=True)),
        image(2, size=8),
    ),
    "class token": lambda: (Transformer(Attention("fused"), token=True), image(2, size=8)),
    "root-mean-square norm": lambda: (
        Transformer(Attention("fused"), nn.RMSNorm),
        image(2, size=8),
    ),
    "convnext": lambda: (ConvNeXt(), image()),
    "selective kernels": lambda: (Selective(), image()),
    "words": lambda: (Words(), torch.tensor([[1, 2, 3], [4, 5, 8]])),
    "weight standardization": lambda: (
        Net(
            lambda s, x: s.head(s.b(torch.relu(s.a(x)))),
            a=Standardized(3, 8, 3),
            b=Standardized(8, 6, 3),
            head=Head(6),
        ),
        image(),
    ),
    "layer norm of everything": between(lambda y: F.layer_norm(y, y.shape[1:])),
    "group norm": lambda: (
        Net(lambda s, x: s.head(s.n(s.a(x))), a=conv_bn(3, 8), n=nn.GroupNorm(2, 8), head=Head(8)),
        image(),
    ),
    "mean over channels": between(lambda y: y - y.mean(1, keepdim=True)),
    "spatial attention": lambda: (
        Net(_spatial_attention, a=conv_bn(3, 8), g=nn.Conv2d(2, 1, 3, 1, 1), head=Head(8)),
        image(),
    ),
    "one map for all": between(lambda y: y.mean((1, 2, 3), keepdim=True) * y),
    "slice": between(lambda y: y[:, :4]),
    "select": between(lambda y: y * y[:, 3:4]),
    "unequal split": between(lambda y: torch.cat(y.split([2, 6], 1)[::-1], 1)),
    "unequal chunks": between(lambda y: torch.cat(y.chunk(3, 1)[::-1], 1)),
    "shuffle without groups": between(lambda y: shuffle(y, 2)),
    "channel shuffle": lambda: (
        Net(lambda s, x: s.head(F.channel_shuffle(s.a(x), 2)), a=conv_bn(3, 8), head=Head(8)),
        image(),
    ),
    "pixel shuffle": between(lambda y: F.pixel_shuffle(y, 2)),
    "pixel shuffle there and back": between(lambda y: F.pixel_unshuffle(F.pixel_shuffle(y, 2), 2)),
    "patch merging": between(merged),
    "gated": between(lambda y: F.glu(y, 1)),
    "unfold": lambda: (
        Net(
            lambda s, x: s.fc(F.unfold(s.a(x), 2, stride=2).mean(2)),
            a=conv_bn(3, 5),
            fc=nn.Linear(20, 3),
        ),
        image(),
    ),
    "view with a size": lambda: (
        Net(lambda s, x: s.fc(s.a(x).view(-1, 8 * 8 * 8)), a=conv_bn(3, 8), fc=nn.Linear(512, 3)),
        image(),
    ),
    "lstm": recurrent(nn.LSTM, 16, num_layers=2, bidirectional=True, batch_first=True),
    "lstm: last states": recurrent(nn.LSTM, 32, True, num_layers=2, bidirectional=True),
    "lstm: projected": recurrent(nn.LSTM, 4, num_layers=2, proj_size=4, bias=False),
    "gru": recurrent(nn.GRU, batch_first=True),
    "gru: learned state": recurrent(nn.GRU, begins=True, batch_first=True),
    "plain recurrent layer": recurrent(nn.RNN, nonlinearity="relu", batch_first=True),
    "lstm cell": recurrent(nn.LSTMCell),
    "gru cell": recurrent(nn.GRUCell, bias=False),
    "plain recurrent cell": recurrent(nn.RNNCell),
    "a convolution of a map": lambda: (
        Net(lambda s, x: s.head(s.a(x) * s.g(x)), a=conv_bn(3, 8), g=conv_bn(3, 1), head=Head(8)),
        image(),
    ),
}
GRAPH = {
    "attention: fused",
    "attention: module",
    "attention: repeated",
    "attention: one head",
    "class token",
    "root-mean-square norm",
    "slice",
    "select",
    "unequal split",
    "unequal chunks",
    "view with a size",
}
# Their statistics are those of the channels that are left, which no masking of weights gives.
STATISTICS = {
    *(n for n in WIDE if n.startswith("attention") or "norm" in n or "mean over" in n),
    "class token",
    "convnext",
    "words",
    "weight standardization",
    "spatial attention",
    "one map for all",
}
