"""Pictures of one disc, square or triangle, drawn from a seed, and a small network that tells them
apart: what the tutorials work on. `python -m examples.shapes` trains it in two minutes of one core.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from examples.scenes import SHAPES, filled
from mirabelle.base.data import seeded
from mirabelle.base.files import read_tensors, write_tensors

FILE = Path(__file__).parent / "weights" / "shapes.safetensors"
SIZE = 24
SEEDS = {"train": 1, "calibration": 2, "validation": 3, "test": 4}
COUNTS = {"train": 1024, "calibration": 128, "validation": 256, "test": 512}


def draw(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 3, 24, 24), about normalized, and their classes (count,)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    images = rng.normal(0, 0.5, (count, 3, SIZE, SIZE)).astype(np.float32)
    classes = rng.integers(len(SHAPES), size=count)
    for image, kind in zip(images, classes, strict=True):
        radius = rng.uniform(4, 7)
        x, y = rng.uniform(radius, SIZE - radius, 2)
        where = filled(int(kind), (columns - x) / radius, (rows - y) / radius)
        image[:, where] += rng.uniform(0.3, 1.2, (3, 1)) * rng.choice((-1, 1))
    return torch.from_numpy(images), torch.from_numpy(classes)


def data(**counts: int) -> dict[str, DataLoader]:
    """Loaders of train, calibration, validation and test. counts: images of each, `COUNTS` unless
    given.
    """
    found = {}
    for name, count in {**COUNTS, **counts}.items():
        shuffle = torch.Generator().manual_seed(SEEDS[name]) if name == "train" else None
        samples = TensorDataset(*draw(SEEDS[name], count))
        found[name] = DataLoader(samples, 32, shuffle=shuffle is not None, generator=shuffle)
    return found


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Net(nn.Module):
    """A stem, two residual blocks at 24 and 12 pixels, and a linear head."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.stem = _conv(3, width)
        self.block1 = nn.Sequential(_conv(width, width), _conv(width, width))
        self.down = _conv(width, 2 * width, 2)
        self.block2 = nn.Sequential(_conv(2 * width, 2 * width), _conv(2 * width, 2 * width))
        self.head = nn.Linear(2 * width, len(SHAPES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.down(x + self.block1(x))
        return self.head((x + self.block2(x)).mean((2, 3)))


def network() -> nn.Module:
    """The trained network, in eval mode."""
    model = Net()
    model.load_state_dict(read_tensors(FILE)[0], strict=False)
    return model.eval()


def main() -> None:
    import mirabelle as mb

    loaders = data(train=8192)
    with seeded(0):
        start = Net()
    options = {"validation": loaders["validation"], "holdout": 0.0, "warmup": 0.05}
    model = mb.fit(start, loaders["train"], epochs=8, lr=4e-3, seed=0, **options)
    print(mb.measure(model, loaders["test"]))
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    write_tensors(FILE, state, {"seed": "0", "epochs": "8"})


if __name__ == "__main__":
    main()
