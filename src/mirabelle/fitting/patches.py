"""What a convolution reads at some positions of its output, as rows that its weights multiply
(im2col). The integers' own is in `integers/arithmetic.py`, which is NumPy's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def patches(
    x: torch.Tensor,
    y: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    pick: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a convolution reads at the positions `pick` of its output map, the same for every
    sample, and what it gives there.

    x: (N, C, H, W), y: (N, outputs, h, w), or both without height. padding: zeros before and
    behind, for each dimension. pick: numbers of 0 .. h w - 1. Returns (groups, rows, C / groups *
    kernel), its columns in the order of the flattened weights, and (groups, rows, outputs /
    groups); rows are sample by sample.
    """
    if len(kernel) == 1:  # over images of height 1
        x, y, kernel = x[:, :, None], y[:, :, None], (1, *kernel)
        stride, padding, dilation = (1, *stride), ((0, 0), *padding), (1, *dilation)
    rows, columns = (
        (along * stride[d])[:, None] + torch.arange(kernel[d]) * dilation[d]
        for d, along in enumerate((pick // y.shape[-1], pick % y.shape[-1]))
    )
    padded = F.pad(x, (*padding[1], *padding[0]))
    found = padded[
        :, :, rows[:, :, None].to(x.device), columns[:, None].to(x.device)
    ]  # (N, C, positions, height, width of the kernel)
    n, c, p = found.shape[:3]
    a = (
        found.reshape(n, groups, c // groups, p, -1)
        .permute(1, 0, 3, 2, 4)
        .reshape(groups, n * p, -1)
    )
    return a, y.flatten(2)[:, :, pick.to(y.device)].reshape(n, groups, -1, p).permute(
        1, 0, 3, 2
    ).reshape(groups, n * p, -1)
