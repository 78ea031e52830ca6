"""Networks with something that cannot be pruned."""

import copy

import networks
import torch
from torch import nn
from torch.nn import functional as F

from tests.modules import Head, conv_bn, image
from tests.wide_networks import after


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = conv_bn(3, 8), Head(8)
        self.constant = [torch.randn(8, 1, 1)]

    def forward(self, x):
        return self.head(self.a(x) * self.constant[0])


STUCK = {
    "cumsum": (after(lambda y: y.cumsum(1)), "cumsum"),
    "softmax over channels": (after(lambda y: y.softmax(1)), "softmax"),
    "roll": (after(lambda y: y.roll(2, 1)), "cuts the channels"),
    "roll of everything": (after(lambda y: y.roll(2)), "cuts the channels"),
    "unbind": (after(lambda y: torch.stack(y.unbind(1)[::-1], 1)), "a single channel"),
    "pooling over channels": (
        after(lambda y: F.avg_pool2d(y.permute(0, 2, 3, 1), 3, 1, 1).permute(0, 3, 1, 2)),
        "dimension that it changes",
    ),
    "max pooling over channels": (
        after(
            lambda y: (
                F.max_pool1d(y.flatten(2).transpose(1, 2), 3, 1, 1)
                .transpose(1, 2)
                .unflatten(2, (8, 8))
            )
        ),
        "dimension that it changes",
    ),
    "reflected channels": (
        after(
            lambda y: (
                F.pad(y.flatten(2).transpose(1, 2), (1, 1), mode="reflect")
                .transpose(1, 2)
                .unflatten(2, (8, 8))
            )
        ),
        "repeats channels",
    ),
    "conv over channels": (
        after(
            lambda y: (
                F.conv1d(y.flatten(2).transpose(1, 2), torch.ones(64, 1, 3), padding=1, groups=64)
                .transpose(1, 2)
                .unflatten(2, (8, 8))
            )
        ),
        "does not read",
    ),
    "matrix product": (
        after(lambda y: torch.einsum("nchw,nkhw->nck", y, y)[..., None]),
        "two dimensions at once",
    ),
    "a product of three": (
        after(lambda y: torch.einsum("nchw,nchw,nchw->nchw", y, y, y)),
        "not a product of two",
    ),
    "a constant": (Constant(), "cannot be removed"),
    "ones made in forward": (
        after(lambda y: y * torch.ones(y.shape[1], 1, 1)),
        "cannot be removed",
    ),
    "padded channels met": (
        after(lambda y: F.pad(y, (0, 0, 0, 0, 0, 2), value=1.0) + F.pad(y, (0, 0, 0, 0, 2, 0))),
        "cannot be removed",
    ),
    "in-place copy": (
        after(lambda y: torch.cat([y, y], 1).clone().index_fill_(1, torch.tensor([0]), 0.0)),
        "no rule",
    ),
    "manual concatenation": (after(lambda y: _by_hand(y)), "a part of a tensor"),
    "no_grad inside": (after(lambda y: _no_grad(y)), "depends on all the others"),
}


def _by_hand(y):
    out = torch.zeros(y.shape[0], 16, *y.shape[2:], dtype=y.dtype)
    out[:, :8] = y
    out[:, 8:] = -y
    return out


def _no_grad(y):
    with torch.no_grad():
        return torch.cumsum(y, 1)


def stuck(name: str) -> tuple[nn.Module, str]:
    torch.manual_seed(0)
    model, reason = STUCK[name]
    model.eval()(image())  # lazy layers
    return networks.stir(copy.deepcopy(model)), reason
