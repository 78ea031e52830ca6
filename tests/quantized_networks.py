"""Small networks, calibration data and helpers for the tests of quantization, export and
verification.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mirabelle.base.errors import MissingRuntimeError
from mirabelle.runtimes import check_runs_here
from mirabelle.runtimes.artifact import require

CONVERTERS = {"litert": ["litert_torch"], "ncnn": ["pnnx"]}


def needs(runtime: str) -> None:
    """Skips the test where a runtime, or what makes its files, is not installed."""
    try:
        check_runs_here(runtime)
        for package in CONVERTERS.get(runtime, ()):
            require(package, runtime)
    except MissingRuntimeError as error:
        pytest.skip(str(error))


class Network(nn.Module):
    """A forward function and the modules that it uses."""

    def __init__(self, run: Callable, **modules: nn.Module):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.run(self, x)


def conv(inputs: int, outputs: int, kernel: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)


def head(n, x):
    return n.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _residual(n, x):
    x = F.max_pool2d(F.relu(n.bn0(n.c0(x))), 3, 2, 1)
    y = F.relu(n.bn1(n.c1(x)))
    return head(n, F.relu(n.bn2(n.c2(y)) + x))


def _residual_in_place(n, x):
    x = F.relu(n.bn0(n.c0(x)), inplace=True)
    y = n.bn1(n.c1(x))
    y += x
    return head(n, F.relu(y, inplace=True))


def _preactivation(n, x):
    y = n.a(x)
    return head(n, y + n.b(F.relu(y)))


def _with_itself(n, x):
    y = F.relu(n.a(x))
    return head(n, n.b(y + y))


def _broadcast(n, x):
    y = F.relu(n.a(x))
    return head(n, n.b(y + F.adaptive_avg_pool2d(y, 1)))


def _squeeze_excite(n, x):
    y = F.relu(n.a(x))
    return head(n, n.b(y * torch.sigmoid(n.e2(F.relu(n.e1(F.adaptive_avg_pool2d(y, 1)))))))


def _concatenation(n, x):
    y = F.relu(n.a(x))
    return head(n, n.b(torch.cat([y, F.relu(n.c(y))], 1)))


def _named(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def _tied() -> Network:
    network = Network(
        lambda n, x: head(n, F.relu(n.c(3 * F.relu(n.b(n.a(x)))))),
        a=conv(3, 8),
        b=conv(8, 8),
        c=conv(8, 8),
        fc=nn.Linear(8, 5),
    )
    network.c.weight, network.c.bias = network.b.weight, network.b.bias
    return network


# Name: how to build it, and the operators that stay in float.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "residual": (
        lambda: Network(
            _residual,
            c0=conv(3, 16, padding=1, bias=False),
            bn0=nn.BatchNorm2d(16),
            c1=conv(16, 16, padding=1, bias=False),
            bn1=nn.BatchNorm2d(16),
            c2=conv(16, 16, padding=1),
            bn2=nn.BatchNorm2d(16),
            fc=nn.Linear(16, 5),
        ),
        set(),
    ),
    "residual_in_place": (
        lambda: Network(
            _residual_in_place,
            c0=conv(3, 8),
            bn0=nn.BatchNorm2d(8),
            c1=conv(8, 8, padding="same"),
            bn1=nn.BatchNorm2d(8),
            fc=nn.Linear(8, 5),
        ),
        set(),
    ),
    "depthwise": (
        lambda: Network(
            lambda n, x: head(n, n.r(n.pw(n.r(n.dw(n.r(n.c(x))))))),
            r=nn.ReLU6(inplace=True),
            c=conv(3, 8, stride=2),
            dw=conv(8, 8, groups=8, padding=1),
            pw=conv(8, 16, 1),
            fc=nn.Linear(16, 5),
        ),
        set(),
    ),
    "grouped": (
        lambda: Network(
            lambda n, x: head(n, F.relu(n.b(F.relu(n.a(x))))),
            a=conv(3, 8),
            b=conv(8, 12, groups=4, dilation=2),
            fc=nn.Linear(12, 5),
        ),
        set(),
    ),
    "sequential": (
        lambda: nn.Sequential(
            conv(3, 8),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            nn.Sequential(conv(8, 8), nn.ReLU()),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(8 * 36, 16, bias=False),
            nn.ReLU(),
            nn.Linear(16, 5),
        ),
        set(),
    ),
    "concatenation": (
        lambda: Network(
            _concatenation, a=conv(3, 8), c=conv(8, 4, padding=1), b=conv(12, 8), fc=nn.Linear(8, 5)
        ),
        set(),
    ),
    "ends_in_conv": (
        lambda: Network(lambda n, x: n.b(F.relu(n.a(x))), a=conv(3, 8), b=conv(8, 5, 1)),
        set(),
    ),
    "mean": (
        lambda: Network(
            lambda n, x: n.fc(F.relu(n.a(x)).mean((2, 3))), a=conv(3, 8), fc=nn.Linear(8, 5)
        ),
        set(),
    ),
    "with_itself": (
        lambda: Network(_with_itself, a=conv(3, 8), b=conv(8, 8), fc=nn.Linear(8, 5)),
        set(),
    ),
    "two_readers": (
        lambda: Network(
            lambda n, x: head(n, n.b(x) + n.a(x)), a=conv(3, 8), b=conv(3, 8), fc=nn.Linear(8, 5)
        ),
        set(),
    ),
    "colliding_names": (
        lambda: Network(
            lambda n, x: head(n, F.relu(n.a_b.c(F.relu(n.a.b_c(x))))),
            a=_named(b_c=conv(3, 8)),
            a_b=_named(c=conv(8, 8)),
            fc=nn.Linear(8, 5),
        ),
        set(),
    ),
    "called_quantizers": (
        lambda: Network(
            lambda n, x: head(n, n.quantizers[1](F.relu(n.quantizers[0](x)))),
            quantizers=nn.Sequential(conv(3, 8), conv(8, 8)),
            fc=nn.Linear(8, 5),
        ),
        set(),
    ),
    "used_twice": (
        lambda: Network(
            lambda n, x: head(n, F.relu(n.b(3 * F.relu(n.b(n.a(x)))))),
            a=conv(3, 8),
            b=conv(8, 8),
            fc=nn.Linear(8, 5),
        ),
        {"mul"},
    ),
    "tied": (_tied, {"mul"}),
    "preactivation": (
        lambda: Network(_preactivation, a=conv(3, 8), b=conv(8, 8, padding=1), fc=nn.Linear(8, 5)),
        {"relu"},
    ),
    "broadcast": (
        lambda: Network(_broadcast, a=conv(3, 8), b=conv(8, 8), fc=nn.Linear(8, 5)),
        {"add"},
    ),
    "clamp": (
        lambda: Network(
            lambda n, x: head(n, n.b(torch.clamp(n.a(x), 0, 1))),
            a=conv(3, 8),
            b=conv(8, 8),
            fc=nn.Linear(8, 5),
        ),
        {"clamp"},
    ),
    "hardtanh": (
        lambda: Network(
            lambda n, x: head(n, n.b(F.hardtanh(n.a(x)))),
            a=conv(3, 8),
            b=conv(8, 8),
            fc=nn.Linear(8, 5),
        ),
        {"hardtanh"},
    ),
    "hardswish": (
        lambda: Network(
            lambda n, x: head(n, F.hardswish(n.b(F.hardswish(n.a(x))))),
            a=conv(3, 8),
            b=conv(8, 8),
            fc=nn.Linear(8, 5),
        ),
        {"hardswish", "adaptive_avg_pool2d"},
    ),
    "squeeze_excite": (
        lambda: Network(
            _squeeze_excite,
            a=conv(3, 8),
            b=conv(8, 8),
            e1=conv(8, 4, 1),
            e2=conv(4, 8, 1),
            fc=nn.Linear(8, 5),
        ),
        {"sigmoid", "mul"},
    ),
    "sigmoid": (
        lambda: Network(
            lambda n, x: torch.sigmoid(head(n, F.relu(n.a(x)))), a=conv(3, 8), fc=nn.Linear(8, 5)
        ),
        {"sigmoid"},
    ),
    "reflecting": (
        lambda: Network(
            lambda n, x: head(n, F.relu(n.a(x))),
            a=conv(3, 8, padding=1, padding_mode="reflect"),
            fc=nn.Linear(8, 5),
        ),
        {"pad"},
    ),
    "padded": (
        lambda: Network(
            lambda n, x: head(
                n, F.relu(n.b(F.pad(F.relu(n.a(F.pad(x, (1, 1, 2, 2)))), (0, 1, 0, 1))))
            ),
            a=conv(3, 8, padding=1),
            b=conv(8, 8, stride=2),
            fc=nn.Linear(8, 5),
        ),
        set(),
    ),
    "transposed": (
        lambda: Network(
            lambda n, x: n.b(F.relu(n.t(F.relu(n.a(x))))),
            a=conv(3, 8),
            t=nn.ConvTranspose2d(8, 8, 2, 2),
            b=conv(8, 2),
        ),
        {"conv_transpose2d", "relu"},
    ),
    "conv1d": (
        lambda: Network(
            lambda n, x: n.fc(F.relu(n.b(F.relu(n.a(x)))).flatten(1)),
            a=nn.Conv1d(3, 8, 5, stride=2, padding=2),
            b=nn.Conv1d(8, 8, 3, groups=4, dilation=2, padding="same"),
            fc=nn.Linear(64, 5),
        ),
        set(),
    ),
    "tokens": (
        lambda: Network(
            lambda n, x: n.fc(F.relu(n.bn(n.a(x)))).flatten(1),
            a=nn.Linear(16, 8),
            bn=nn.BatchNorm1d(8),
            fc=nn.Linear(8, 5),
        ),
        {"batch_norm", "relu", "flatten"},
    ),
}
SHAPES = {"conv1d": (3, 16), "tokens": (8, 16)}


def build(name: str, seed: int = 0) -> nn.Module:
    """A network of `NETWORKS` in eval mode, its BatchNorm with statistics that are not trivial."""
    torch.manual_seed(seed)
    network = NETWORKS[name][0]().eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network


def batches(name: str = "", count: int = 4, size: int = 16, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(size, *SHAPES.get(name, (3, 16, 16)), generator=generator) for _ in range(count)
    ]
