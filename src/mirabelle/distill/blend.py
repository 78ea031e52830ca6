"""Blending: some samples are mixed with another of their batch, so that the teacher is asked about what lies between classes too."""

from __future__ import annotations

import torch

from mirabelle.data import Batch
from mirabelle.errors import InputError


def check_blend(share: float, losses: object) -> None:
    """`InputError` for a share out of range and for labels, which blended samples do not have; needs no network."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise InputError(f"blend is the share of the samples that are blended, between 0 and 1; got {share!r}")
    if share and isinstance(losses, dict) and losses.get("labels"):
        raise InputError("blended samples have no labels: leave 'labels' out of losses, or set blend to 0")


def blended(batch: Batch, share: float) -> Batch:
    """The batch with about `share` of its samples x replaced by w x + (1 - w) y, where y is the sample before x and w is uniform in (1/2, 1].

    Every input keeps its shape; all inputs of a sample have the same w. The target is gone. Draws from torch's generator.
    Mixup (Zhang et al. 2018), with the teacher's answer in place of mixed labels: Beyer et al. 2022 ("function matching"), section 3.
    Raises `InputError` for inputs of integers, which have no blend.
    """
    if not share:
        return batch
    weight = torch.where(torch.rand(batch.size) < share, 1 - torch.rand(batch.size) / 2, 1.0)

    def blend(t: torch.Tensor) -> torch.Tensor:
        if not t.is_floating_point():
            raise InputError(f"blend mixes inputs, and one is of {t.dtype}; set blend to 0")
        w = weight.to(t).view(-1, *[1] * (t.ndim - 1))
        return w * t + (1 - w) * t.roll(1, 0)

    return batch.map(lambda t: blend(t) if t.ndim else t)._replace(target=None)
