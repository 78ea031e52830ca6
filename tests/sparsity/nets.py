"""A layer for criteria, and a small network to make sparse."""

import torch
from torch import nn

from mirabelle.fitting.gram import Gram
from mirabelle.sparsity.layers import ScoredLayer


def layer(weight, block=1, gram=None, sensitivity=None):
    found = (
        None
        if gram is None
        else Gram(
            torch.tensor([gram], dtype=torch.float64),
            None if sensitivity is None else torch.diag(torch.tensor(sensitivity)),
        )
    )
    return ScoredLayer("w", "", torch.tensor(weight, dtype=torch.float64), block, found)


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


WEIGHT = [[3.0, -1.0], [-4.0, 2.0], [0.0, 5.0]]


class Net(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.pointwise = nn.Conv2d(width, 10, 1)
        self.fc = nn.Linear(10, 3)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        return self.fc(torch.relu(self.pointwise(self.depthwise(x))).mean((2, 3)))


SPARSE = ["conv.weight", "pointwise.weight", "fc.weight"]


def net(seed=0):
    torch.manual_seed(seed)
    return Net().eval()


def calibration(seed=0, count=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(8, 1, 6, 6, generator=generator),
            torch.randint(0, 3, (8,), generator=generator),
        )
        for _ in range(count)
    ]
