"""im2col: rows that a convolution's weights multiply, read off small images by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mirabelle.fitting.patches import patches


def test_by_hand() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3)
    y = torch.zeros(1, 1, 2, 2)
    y[0, 0, 1, 0] = 7
    rows, given = patches(x, y, (2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), 1, torch.tensor([2]))
    assert rows.tolist() == [[[3, 4, 6, 7]]]  # of the second row of outputs, the first
    assert given.tolist() == [[[7]]]


def test_odd_padding_without_height() -> None:
    x = torch.tensor([[[1.0, 2.0, 3.0]]])
    rows, _ = patches(x, x, (2,), (1,), ((0, 1),), (1,), 1, torch.arange(3))
    assert rows.tolist() == [[[1, 2], [2, 3], [3, 0]]]  # one zero, behind


@pytest.mark.parametrize("groups", [1, 2])
def test_rows_times_weights_are_outputs(groups: int) -> None:
    layer = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=groups)
    x = torch.randn(3, 4, 8, 7)
    with torch.no_grad():
        y = F.conv2d(x, layer.weight, None, layer.stride, (1, 0), layer.dilation, groups)
        pick = torch.randperm(y[0, 0].numel())[:5]
        settings = (3, 2), (2, 1), ((1, 1), (0, 0)), (1, 2), groups
        rows, given = patches(x, y, *settings, pick)
        weight = layer.weight.view(groups, 6 // groups, -1)
        assert rows.shape == (groups, 3 * 5, 4 // groups * 6)
        assert torch.allclose(rows @ weight.transpose(1, 2), given, atol=1e-5)
