"""Which inputs a convolution or a pool reads for each of its outputs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Array = np.ndarray


def places(
    x: Array,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    outside: int = 0,
) -> Iterator[tuple[int, int, Array]]:
    """(N, C, H, W): for each place (i, j) of a window, what every output position reads there: (N,
    C, OH, OW). `outside` stands beyond the edges.
    """
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2), constant_values=outside)
    size = [(x.shape[2 + d] - (kernel[d] - 1) * dilation[d] - 1) // stride[d] + 1 for d in (0, 1)]
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows, columns = i * dilation[0], j * dilation[1]
            yield (
                i,
                j,
                x[
                    :,
                    :,
                    rows : rows + (size[0] - 1) * stride[0] + 1 : stride[0],
                    columns : columns + (size[1] - 1) * stride[1] + 1 : stride[1],
                ],
            )


def patches(
    x: Array,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    outside: int = 0,
) -> Array:
    """(N, C, H, W) -> (N, OH, OW, kh * kw, C): what each output position of a convolution reads,
    place by place, as kernels on images store it.
    """
    return np.stack(
        [
            seen.transpose(0, 2, 3, 1)
            for _, _, seen in places(x, kernel, stride, padding, dilation, outside)
        ],
        3,
    )
