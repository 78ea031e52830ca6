"""Networks, data and results that the sections of `benchmarks.distillation` share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mirabelle as mb
from examples import fashion
from mirabelle.base.data import cache_folder, seed_everything
from mirabelle.base.files import read_json, read_tensors, write_json, write_tensors
from mirabelle.measurement.accuracy import evaluate, predictor
from mirabelle.measurement.machine import machine, versions

RESULTS = Path(__file__).parent / "results"
PLAIN = {"lr": 0.01, "precision": "float32", "progress": ""}


class Batches:
    """Images, and labels where there are some, in batches of a size, shuffled by torch's
    generator.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
        size: int = 128,
        shuffle: bool = True,
    ):
        self.images, self.labels, self.size, self.shuffle = (
            images,
            labels,
            min(size, len(images)),
            shuffle,
        )

    def __len__(self) -> int:
        return len(self.images) // self.size

    def __iter__(self) -> Iterator:
        order = torch.randperm(len(self.images)) if self.shuffle else torch.arange(len(self.images))
        for i in range(len(self)):
            chosen = order[i * self.size : (i + 1) * self.size]
            yield (
                self.images[chosen]
                if self.labels is None
                else (self.images[chosen], self.labels[chosen])
            )


def _stack(channels: list[tuple[int, int, int]], classes: int = 10) -> nn.Sequential:
    """Convolutions 3x3 (inputs, outputs, stride) with BatchNorm and ReLU, the mean over the image,
    a linear layer.
    """
    layers: list[nn.Module] = []
    for inputs, outputs, stride in channels:
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1][1], classes)
    )


def student(seed: int) -> nn.Module:
    """6 282 parameters, 0.15 M MACs."""
    seed_everything(seed)
    return _stack([(1, 8, 2), (8, 16, 2), (16, 32, 2)])


def middle(seed: int) -> nn.Module:
    """56 618 parameters, 2.8 M MACs."""
    seed_everything(seed)
    return _stack([(1, 32, 2), (32, 64, 2), (64, 64, 1)])


class Bench:
    """Data, teachers and the file of results."""

    def __init__(self, quick: bool):
        self.quick = quick
        self.seeds = range(1 if quick else 5)
        self.path = RESULTS / f"distillation{'_quick' if quick else ''}.json"
        self.results: dict[str, Any] = read_json(self.path) if self.path.exists() else {}
        self.folder = cache_folder() / f"distillation_benchmark{'_quick' if quick else ''}"
        images, labels = fashion.images_and_labels("train")
        self.x, self.y = images[:55000], labels[:55000]
        self.validation = Batches(images[55000:], labels[55000:], 500, False)
        test_images, test_labels = fashion.images_and_labels("t10k")
        self.test_x, self.test_y = test_images, test_labels
        self.test = Batches(test_images, test_labels, 500, False)
        self.teacher = fashion.resnet()

    def once(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The kept result of `key`, or the one measured now."""
        if key not in self.results:
            begun = time.monotonic()
            self.results[key] = {**measure(), "seconds": round(time.monotonic() - begun, 1)}
            self.results["conditions"] = {
                "machine": machine(),
                "threads": torch.get_num_threads(),
                **versions("torch"),
            }
            write_json(self.path, self.results)
            print(key, self.results[key], flush=True)
        return self.results[key]

    def score(self, model: nn.Module) -> dict[str, float]:
        return {
            "top1": evaluate(predictor(model), self.test).value,
            "validation": evaluate(predictor(model), self.validation).value,
        }

    def some(self, count: int, seed: int) -> torch.Tensor:
        """Indices of `count` training images."""
        return torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))[:count]

    def network(
        self, name: str, build: Callable[[], nn.Module], train: Callable[[nn.Module], nn.Module]
    ) -> nn.Module:
        """A teacher that is trained once and kept in the user's cache."""
        path = self.folder / f"{name}.safetensors"
        model = build()
        if not path.exists():
            write_tensors(path, train(model).state_dict())
        model.load_state_dict(read_tensors(path)[0])
        return model.eval()

    def middles(self) -> list[nn.Module]:
        steps = 40 if self.quick else 860
        data = Batches(self.x, self.y)
        return [
            self.network(
                f"middle{s}",
                lambda s=s: middle(s),
                lambda m, s=s: mb.fit(m, data, steps=steps, seed=s, **PLAIN),
            )
            for s in (100, 101, 102)
        ]

    def novices(self) -> list[nn.Module]:
        """Teachers that know 1 000 labels each."""

        def train(model: nn.Module, k: int) -> nn.Module:
            chosen = self.some(1000, 900 + k)
            return mb.fit(
                model,
                Batches(self.x[chosen], self.y[chosen]),
                steps=40 if self.quick else 600,
                seed=k,
                **PLAIN,
            )

        return [
            self.network(f"novice{k}", lambda k=k: middle(200 + k), lambda m, k=k: train(m, k))
            for k in range(3)
        ]
