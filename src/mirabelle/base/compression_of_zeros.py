"""Sparse tensors in a file: the values that are not zero and where they are, exact to the bit.

A weight in blocks of b outputs is stored by block: where one of a block's weights is not zero, all
of them are stored. Where they are is the distances between them, a byte for each (255 stands for
255 empty places), or a bit for every place, whichever is shorter: for single weights that is bits
from about one in eight on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mirabelle.base.errors import InputError

GAP = 255


def encode(tensor: torch.Tensor, block: int) -> dict[str, torch.Tensor] | None:
    """`values` (stored blocks, block) and either `gaps` or `bits` (uint8); None where the tensor
    itself is not longer.
    """
    matrix = tensor.detach().cpu().flatten(1)
    missing = -len(matrix) % block
    blocks = (
        torch.cat([matrix, matrix.new_zeros(missing, matrix.shape[1])])
        .reshape(-1, block, matrix.shape[1])
        .transpose(1, 2)
        .reshape(-1, block)
    )
    used = (blocks != 0).any(1)
    gaps, bits = _gaps(used.nonzero()[:, 0].numpy()), np.packbits(used.numpy(), bitorder="little")
    where = (
        {"gaps": torch.from_numpy(gaps)}
        if len(gaps) < len(bits)
        else {"bits": torch.from_numpy(bits)}
    )
    found = {"values": blocks[used].contiguous(), **where}
    return (
        found
        if sum(t.numel() * t.element_size() for t in found.values())
        < tensor.numel() * tensor.element_size()
        else None
    )


def decode(
    parts: Mapping[str, torch.Tensor], shape: Sequence[int], block: int, name: str
) -> torch.Tensor:
    """The tensor that `encode` was given. `InputError` with `name` where the parts do not fit
    together.
    """
    values, columns = parts["values"], math.prod(shape[1:])
    places = -(-shape[0] // block) * columns
    used = (
        _positions(parts["gaps"].numpy())
        if "gaps" in parts
        else np.flatnonzero(np.unpackbits(parts["bits"].numpy(), bitorder="little"))
    )
    if tuple(values.shape) != (len(used), block) or (len(used) and used[-1] >= places):
        raise InputError(
            f"{name} is damaged: its {tuple(values.shape)} values do not fit the places that "
            f"they belong to, {len(used)} of {places}"
        )
    blocks = torch.zeros(places, block, dtype=values.dtype)
    blocks[torch.from_numpy(used)] = values
    return (
        blocks.reshape(-1, columns, block)
        .transpose(1, 2)
        .reshape(-1, columns)[: shape[0]]
        .reshape(tuple(shape))
        .contiguous()
    )


def _gaps(positions: np.ndarray) -> np.ndarray:
    """How many empty places lie before each position, in bytes: as many of 255 as go into it, and
    the rest.
    """
    empty = np.diff(positions, prepend=-1) - 1
    full = empty // GAP
    found = np.full(len(positions) + int(full.sum()), GAP, np.uint8)
    found[np.cumsum(full + 1) - 1] = empty % GAP
    return found


def _positions(gaps: np.ndarray) -> np.ndarray:
    ends = np.cumsum(np.where(gaps == GAP, GAP, gaps.astype(np.int64) + 1))
    return ends[gaps != GAP] - 1
