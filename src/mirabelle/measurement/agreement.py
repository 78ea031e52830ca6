"""How much a network's outputs are those of another: what is left to measure without labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from mirabelle.base.data import Batch, batches, length_of
from mirabelle.measurement.accuracy import predictor

METRIC = "mirabelle.measurement.agreement:agreement"


def agreement(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(N,): of classes, (N, C), 1 where the largest of both is the same; of other outputs
    1 - |output - target|² / |target|² of each sample, which is 1 where they are equal.
    """
    if output.ndim == 2 and output.shape[1] > 1 and output.is_floating_point():
        return (output.argmax(1) == target.argmax(1)).float()
    if not output.is_floating_point():
        return (output == target).reshape(len(output), -1).float().mean(1)
    a, b = output.reshape(len(output), -1).double(), target.reshape(len(target), -1).double()
    noise, signal = (a - b).square().sum(1), b.square().sum(1)
    return 1 - noise / signal.clamp_min(1e-12)


class Answered:
    """A loader's inputs with a network's outputs as targets: batches that can be read again."""

    def __init__(self, loader: Iterable, network: nn.Module):
        self.loader, self.predict = loader, predictor(network)
        self.generator = getattr(loader, "generator", None)

    def __len__(self) -> int:
        found = length_of(self.loader)
        if found is None:
            raise TypeError("the loader has no length")
        return found

    def __iter__(self) -> Iterator[Batch]:
        for batch in batches(self.loader):
            yield batch._replace(target=self.predict(batch))
