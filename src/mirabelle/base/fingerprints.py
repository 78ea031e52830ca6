"""Samples known by their content, never by their place."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError


def fingerprints(batch: Batch) -> np.ndarray:
    """The content of each sample: the first 128 bits of the SHA-256 of its input tensors, with
    their names, types and shapes. (N, 2) int64, equal on any device.

    Raises `InputError` for an input without one row for each sample.
    """
    n = batch.size
    digests = [hashlib.sha256() for _ in range(n)]
    for name, tensor in [
        *((str(i), t) for i, t in enumerate(batch.args)),
        *sorted(batch.kwargs.items()),
    ]:
        if not tensor.ndim or len(tensor) != n:
            raise InputError(
                f"input {name!r} has shape {tuple(tensor.shape)} in a batch of {n}; outputs are "
                "kept by sample, so each input needs one row for each"
            )
        about = f"{name} {tuple(tensor.shape[1:])} {tensor.dtype} ".encode()
        rows = tensor.detach().cpu().contiguous().reshape(n, -1).view(torch.uint8).numpy()
        for digest, row in zip(digests, rows):
            digest.update(about)
            digest.update(row.data)
    return np.frombuffer(b"".join(d.digest()[:16] for d in digests), np.int64).reshape(n, 2)
