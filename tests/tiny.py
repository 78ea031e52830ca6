"""A tiny network and tiny synthetic data for recipes: `tiny:model` and `tiny:data`; a whole run
takes seconds.

TINY_SLEEP: seconds that a training batch takes, so that a run can be killed in the middle of an
epoch. The rest are callables that are wrong in one way each.
"""

from __future__ import annotations

import os
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

CLASSES = 3


def model(seed: int = 0, width: int = 8) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(2 * width, CLASSES),
        )


def teacher() -> nn.Module:
    return model(1, 12)


def other_classes() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES + 2))


def broken() -> nn.Module:
    raise RuntimeError("no weights here")


class Noisy(Dataset):
    """Classes are brightnesses; each reading adds fresh noise from torch's generator, as an
    augmentation does.
    """

    def __init__(self, count: int, noise: float = 0.3, sleep: float = 0.0):
        self.count, self.noise, self.sleep = count, noise, sleep

    def __len__(self):
        return self.count

    def __getitem__(self, i: int):
        if i >= self.count:
            raise IndexError(i)
        time.sleep(self.sleep)
        image = torch.full((1, 8, 8), float(i % CLASSES)) + 0.1 * torch.randn(
            1, 8, 8, generator=torch.Generator().manual_seed(i)
        )
        return image + self.noise * torch.randn(1, 8, 8), i % CLASSES


def data() -> tuple:
    train = DataLoader(
        Noisy(48, sleep=float(os.environ.get("TINY_SLEEP", "0")) / 16), batch_size=16, shuffle=True
    )
    return (
        train,
        DataLoader(Noisy(32, 0.0), batch_size=16),
        DataLoader(Noisy(60, 0.0), batch_size=20),
    )


def own_generator() -> tuple:
    return DataLoader(
        Noisy(48), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(3)
    ), *data()[1:]


def wrong_shape() -> tuple:
    return [(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))], *data()[1:]


def unlabeled_test() -> tuple:
    return *data()[:2], [torch.zeros(4, 1, 8, 8)]


def nan_in_test() -> tuple:
    x = torch.zeros(4, 1, 8, 8)
    x[3, 0, 2, 1] = torch.nan
    return *data()[:2], [(x, torch.arange(4) % CLASSES)]


def unlabeled_train() -> tuple:
    return [torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))] * 3, *data()[1:]


def iterator() -> tuple:
    return iter(data()[0]), *data()[1:]


def empty() -> tuple:
    return [], *data()[1:]


def failing() -> tuple:
    raise RuntimeError("the disk with the images is gone")


class _Fails(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        raise ValueError("image 3 is truncated")


def failing_loader() -> tuple:
    return DataLoader(_Fails(), batch_size=2), *data()[1:]


def nothing() -> int:
    return 3


def by_name() -> dict:
    """Batches that are dicts, for `DictModel`."""
    batches = [({"x": x}, y) for x, y in data()[2]]
    return {"train": batches, "calibration": batches, "test": batches}


class DictModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = model()

    def forward(self, x):
        return self.inner(x)


not_callable = 3
