"""Kernels that add pairs of products in 16 bits, and clip: x86 without VNNI. NumPy only.

`pmaddubsw` multiplies unsigned by signed bytes and adds two neighboring products in a signed
16-bit register: beyond ±2^15 the sum is clipped, and the result silently wrong. Which inputs are
neighbors is the kernel's affair:

| layout | order of what a filter reads | pairs |
|---|---|---|
| `mlas` (ONNX Runtime) | place by place, all channels of the group | (0, 1), (2, 3), ... |
| `onednn` (OpenVINO) | the same | within a place |

An odd last input, of all or of a place, stands alone.

Signed bytes are raised by 128 first, by all of OpenVINO's kernels. ONNX Runtime multiplies them
exactly, but turns most files of int8 into files of uint8 when
it opens them: all but the values that something else reads, too. Depthwise convolutions go through
other instructions and never clip. All of this was read off both runtimes' kernels on processors
without VNNI.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Array = np.ndarray
LAYOUTS = ("mlas", "onednn")


class Kernels(NamedTuple):
    """layout: which products are paired. signed: whether layers of signed bytes clip, too, which
    are raised by 128 for that.
    """

    layout: str
    signed: bool


KERNELS = {
    "mlas": Kernels("mlas", False),
    "mlas-u8": Kernels("mlas", True),
    "onednn": Kernels("onednn", True),
}
LOW, HIGH = -(2**15), 2**15 - 1


def paired(values: Array, channels: int, layout: str, axis: int) -> Array:
    """What a filter reads along `axis`, place by place with `channels` at each, with zeros put in
    so that neighbors (2i, 2i + 1) are the kernel's pairs.
    """
    if channels % 2 and layout == "onednn":
        shape = values.shape
        values = values.reshape(*shape[:axis], -1, channels, *shape[axis + 1 :])
        values = np.pad(values, [(0, int(a == axis + 1)) for a in range(values.ndim)])
        return values.reshape(*shape[:axis], -1, *shape[axis + 1 :])
    return np.pad(values, [(0, values.shape[axis] % 2 * (a == axis)) for a in range(values.ndim)])


def reach(columns: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """The least and the largest sum of each pair, (pairs, O) each, for unsigned inputs between
    `low` and `high`, (K,) each; columns: (K, O) weights, paired.
    """
    columns, low, high = (
        columns.astype(np.int32),
        low.astype(np.int32)[:, None],
        high.astype(np.int32)[:, None],
    )
    ends = columns * low, columns * high
    least, largest = (pick(*ends) for pick in (np.minimum, np.maximum))
    return least[::2] + least[1::2], largest[::2] + largest[1::2]


def excess(rows: Array, columns: Array) -> Array:
    """What clipping adds to sums of products. rows: (R, K) unsigned bytes, columns: (K, O) weights,
    both paired. Returns (R, O) int64.

    Only pairs that can leave 16 bits with these rows are multiplied out.
    """
    found = np.zeros((len(rows), columns.shape[1]), np.int64)
    least, largest = reach(columns, rows.min(0), rows.max(0))
    outside = (least < LOW) | (largest > HIGH)
    for pair in np.flatnonzero(outside.any(1)):
        outputs = np.flatnonzero(outside[pair])
        sums = rows[:, 2 * pair : 2 * pair + 2].astype(np.int32) @ columns[
            2 * pair : 2 * pair + 2, outputs
        ].astype(np.int32)
        found[:, outputs] += np.clip(sums, LOW, HIGH) - sums
    return found
